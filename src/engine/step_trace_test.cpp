// What the engine tells a trace.
#include "engine/step_trace.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/check.hpp"
#include "engine/engine.hpp"
#include "engine/testing/inbox.hpp"
#include "engine/testing/scripted_executor.hpp"

namespace motley {
namespace {

using testing::expected_tokens;
using testing::Inbox;
using testing::request_of;
using testing::ScriptedExecutor;
using testing::ScriptedOptions;
using testing::text_of;

// A trace in a file of the test's own.
class StepTraceTest : public ::testing::Test {
 protected:
  StepTraceTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-trace-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    auto trace = Trace::open(folder_ / "trace.json");
    CHECK(trace.ok(), "{}", trace.error().message());
    trace_ = *std::move(trace);
  }
  ~StepTraceTest() override {
    trace_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  // Spans by the name of their track, in the order in which they were told.
  std::map<std::string, std::vector<nlohmann::json>> read() {
    EXPECT_TRUE(trace_->close().ok());
    std::ifstream file(folder_ / "trace.json");
    const nlohmann::json trace = nlohmann::json::parse(file);
    std::map<uint64_t, std::string> names;
    std::map<std::string, std::vector<nlohmann::json>> tracks;
    for (const auto& event : trace["traceEvents"]) {
      if (event["name"] == "thread_name") names[event["tid"]] = event["args"]["name"].get<std::string>();
      if (event["name"] == "process_name") {
        EXPECT_EQ(event["args"]["name"], "scheduler");
      }
      if (event["ph"] == "X") tracks[names.at(event["tid"])].push_back(event);
    }
    return tracks;
  }

  std::filesystem::path folder_;
  std::unique_ptr<Trace> trace_;
};

StepPlan plan_of(StepId id, const std::vector<uint8_t>& generated, size_t sequences) {
  StepPlan plan;
  plan.step = id;
  plan.tokens.resize(generated.size());
  plan.generated = generated;
  plan.sequences.resize(sequences);
  return plan;
}

StepResult result_of(StepId id, const Status& status = ok_status()) {
  StepResult result;
  result.step = id;
  result.epoch = 3;
  result.status = status;
  return result;
}

TEST_F(StepTraceTest, StepsUnderWayTogether_StandOnTracksOfTheirOwn) {
  StepTrace steps(trace_.get());
  steps.planned(plan_of(1, {0, 0, 0}, 2), 1000);
  StepPlan beside = plan_of(2, {1, 1}, 2);
  beside.lane = 3;
  steps.planned(beside, 2000);
  steps.ended(result_of(1), 5000);
  steps.planned(plan_of(3, {0, 1}, 2), 6000);
  steps.ended(result_of(9), 6500);  // nobody planned it
  steps.ended(result_of(2), 7000);
  steps.ended(result_of(3, invalid_argument("no")), 8000);
  const auto tracks = read();
  ASSERT_EQ(tracks.size(), 2u);
  const auto &first = tracks.at("steps 1"), &second = tracks.at("steps 2");
  ASSERT_EQ(first.size(), 2u);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(first[0]["name"], "prefill");
  EXPECT_EQ(first[0]["ts"], 1.0);
  EXPECT_EQ(first[0]["dur"], 4.0);
  EXPECT_EQ(first[0]["args"], (nlohmann::json{{"step", 1},
                                              {"epoch", 3},
                                              {"lane", 0},
                                              {"sequences", 2},
                                              {"rows", 3},
                                              {"prompt_rows", 3},
                                              {"generated_rows", 0},
                                              {"status", MOTLEY_OK}}));
  EXPECT_EQ(second[0]["name"], "decode");
  EXPECT_EQ(second[0]["args"]["step"], 2);
  EXPECT_EQ(second[0]["args"]["lane"], 3);
  EXPECT_EQ(first[1]["name"], "prefill and decode");
  EXPECT_EQ(first[1]["args"]["status"], MOTLEY_INVALID_ARGUMENT);
}

TEST_F(StepTraceTest, Engine_TellsEveryStepAndBothKindsOfPause) {
  Inbox inbox;
  ScriptedOptions options;
  options.lookahead = 1;
  options.epoch = 1;
  options.steps_max = 5;
  ScriptedExecutor first(options);
  options.steps_max = UINT64_MAX;
  options.epoch = 2;
  ScriptedExecutor second(options);
  options.epoch = 3;
  ScriptedExecutor third(options);
  auto engine = Engine::create(
      first, {}, system_clock(), [&](const Status&) -> Result<Executor*> { return &second; }, trace_.get());
  ASSERT_TRUE(engine.ok()) << engine.error().message();
  const auto ask = [&](uint32_t seed) {
    const std::vector<TokenId> text = text_of(seed, 9);
    const RequestId id = (*engine)->submit(request_of(inbox, text, 12)).value();
    EXPECT_EQ(inbox.wait(id).tokens, expected_tokens(text, 12));
  };
  ask(1);
  ASSERT_TRUE((*engine)->replace([&]() -> Result<Executor*> { return &third; }).take().ok());
  ask(2);
  engine->reset();
  auto tracks = read();
  const auto pauses = tracks.extract("pauses").mapped();
  ASSERT_EQ(pauses.size(), 2u);
  EXPECT_EQ(pauses[0]["name"], "recovery");
  EXPECT_EQ(pauses[0]["args"]["epoch"], 2);
  EXPECT_EQ(pauses[1]["name"], "replacement");
  EXPECT_EQ(pauses[1]["args"]["epoch"], 3);
  std::set<uint64_t> seen;
  std::set<int> statuses;
  for (const auto& [name, spans] : tracks) {
    for (const auto& span : spans) {
      EXPECT_TRUE(seen.insert(span["args"]["step"].get<uint64_t>()).second);
      statuses.insert(span["args"]["status"].get<int>());
      for (const auto& pause : pauses) {
        const double begin = pause["ts"], end = begin + pause["dur"].get<double>();
        EXPECT_FALSE(span["ts"] > begin && span["ts"] < end) << "planned in a pause: " << span;
      }
    }
  }
  EXPECT_EQ(statuses, (std::set<int>{MOTLEY_OK, MOTLEY_UNAVAILABLE}));
  EXPECT_EQ(*seen.rbegin(), seen.size()) << "steps are numbered from 1";
}

}  // namespace
}  // namespace motley
