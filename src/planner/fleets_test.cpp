// The fleets kept in benchmarks/fleets: plans whose gap is proved, and their pictures.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "planner/bound.hpp"
#include "planner/plan_picture.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/profile_json.hpp"
#include "planner/replay.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

using testing::make_shape;

PlanInput fleet(const std::string& name) {
  std::ifstream file(std::string(MOTLEY_SOURCE_DIR) + "/benchmarks/fleets/" + name);
  std::stringstream text;
  text << file.rdbuf();
  auto input = read_plan_input(text.str());
  EXPECT_TRUE(input.ok()) << name << ": " << input.error().message();
  return input.ok() ? *input : PlanInput();
}

const ModelShape kOf32Layers = make_shape(
    {.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 8, .head_dim = 128, .ffn = 14336, .vocab = 128256});

PlanReport planned(const ModelShape& shape, const PlanInput& input, uint32_t concurrency = 64) {
  PlanRequest request;
  request.concurrency = concurrency;
  const auto report = plan(shape, input, request);
  EXPECT_TRUE(report.ok()) << report.error().message();
  return report.ok() ? *report : PlanReport();
}

// Several lanes have a bound that knows of partners, and is far above: replicas are put beside that of one lane.
TEST(Fleets, CertifiedGapIsWithinTenPercent) {
  int with_replicas = 0;
  for (const testing::FleetFile& file : testing::fleet_files()) {
    const PlanInput input = fleet(file.name);
    for (const uint32_t concurrency : {1u, 4u, 16u, 64u, 256u}) {
      SCOPED_TRACE(file.name + " with " + std::to_string(concurrency));
      PlanRequest request;
      request.concurrency = concurrency;
      const PlanReport report = planned(file.model, input, concurrency);
      EXPECT_GE(report.gap, 0);
      Predictor predictor(file.model, input, request);
      const double replayed = testing::replayed_tokens_per_s(file.model, input, request, report, 1000);
      EXPECT_LE(replayed, report.bound_tokens_per_s);
      EXPECT_NEAR(replayed / report.predicted.tokens_per_s, 1, 0.012);
      const bool replicas = report.lanes.size() > 1;
      for (const Lane& lane : report.placement.lanes) EXPECT_EQ(lane.share > 0, replicas);
      const double of_one_lane = replicas ? tokens_per_s_bound(&predictor) : report.bound_tokens_per_s;
      EXPECT_LE(1 - report.predicted.tokens_per_s / of_one_lane, 0.10);
      with_replicas += replicas ? 1 : 0;
    }
  }
  EXPECT_EQ(with_replicas, 5);
}

TEST(PlanPicture, ShowsEveryDeviceAndTheFigures) {
  const PlanInput input = fleet("two_gpus_and_a_cpu.json");
  const PlanReport report = planned(kOf32Layers, input);
  const std::string text = plan_text(report, kOf32Layers), svg = plan_svg(report, kOf32Layers);
  for (const std::string& out : {text, svg}) {
    for (const DeviceProfile& device : input.devices) EXPECT_NE(out.find(device.name), std::string::npos) << out;
    EXPECT_NE(out.find("left out"), std::string::npos);
    EXPECT_NE(out.find("next best"), std::string::npos);
  }
  EXPECT_NE(text.find("bound"), std::string::npos);
  EXPECT_EQ(text, plan_text(report, kOf32Layers));
  EXPECT_EQ(svg.rfind("<svg", 0), 0u);
}

TEST(PlanPicture, NamesAreNoMarkup) {
  PlanInput input = fleet("two_gpus_and_a_cpu.json");
  input.devices[0].name = "<script>&\"";
  input.links.clear();
  const std::string svg = plan_svg(planned(kOf32Layers, input), kOf32Layers);
  EXPECT_EQ(svg.find("<script"), std::string::npos);
  EXPECT_NE(svg.find("&lt;script&gt;&amp;&quot;"), std::string::npos);
}

}  // namespace
}  // namespace motley
