// The fleets kept in benchmarks/fleets: plans whose gap is proved, and their pictures.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "planner/plan_picture.hpp"
#include "planner/planner_test_fleet.hpp"
#include "planner/profile_json.hpp"
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

const ModelShape kOf96Layers = make_shape(
    {.layers = 96, .hidden = 8192, .heads = 64, .kv_heads = 8, .head_dim = 128, .ffn = 28672, .vocab = 128256});
const ModelShape kOf32Layers = make_shape(
    {.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 8, .head_dim = 128, .ffn = 14336, .vocab = 128256});

PlanReport planned(const ModelShape& shape, const PlanInput& input, uint32_t concurrency = 64) {
  PlanRequest request;
  request.concurrency = concurrency;
  const auto report = plan(shape, input, request);
  EXPECT_TRUE(report.ok()) << report.error().message();
  return report.ok() ? *report : PlanReport();
}

TEST(Fleets, CertifiedGapIsWithinTenPercent) {
  struct Case {
    const char* file;
    const ModelShape& shape;
    size_t devices;
    uint32_t concurrency;  // enough streams for that many devices
  };
  for (const Case& c :
       {Case{"64_of_4_kinds.json", kOf96Layers, 64, 64}, Case{"two_gpus_and_a_cpu.json", kOf32Layers, 3, 16},
        Case{"five_mixed.json", kOf32Layers, 5, 128}}) {
    const PlanInput input = fleet(c.file);
    ASSERT_EQ(input.devices.size(), c.devices);
    const PlanReport report = planned(c.shape, input, c.concurrency);
    EXPECT_LE(report.gap, 0.10) << c.file;
    EXPECT_GE(report.gap, 0) << c.file;
  }
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
