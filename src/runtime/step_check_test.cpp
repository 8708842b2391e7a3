#include "runtime/step_check.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace motley {
namespace {

ExecutorDescription description() {
  ExecutorDescription made;
  made.epoch = 3;
  made.vocab_size = 100;
  made.positions_max = 64;
  made.slots = 4;
  made.pools = {{16, 8}};
  made.lanes.resize(1);
  return made;
}

// Two sequences: three prompt rows, and one generated row whose token lies in slot 1.
StepPlan good_plan() {
  StepPlan plan;
  plan.epoch = 3;
  plan.tokens = {1, 2, 3, 0};
  plan.token_slots = {-1, -1, -1, 1};
  plan.positions = {0, 1, 2, 16};
  plan.generated = {0, 0, 0, 1};
  plan.sequences = {{7, 0, 3, 3, 0, 1, 0, 1}, {8, 3, 1, 17, 1, 2, 1, 1}};
  plan.blocks = {5, 0, 7};
  plan.logit_rows = {2, 3};
  plan.samples.resize(2);
  for (auto& sample : plan.samples) {
    sample.out_slot = 2;
    sample.top_p = 1;
    sample.repetition_penalty = 1;
  }
  return plan;
}

TEST(CheckStep, GoodPlan_Passes) { EXPECT_TRUE(check_step(good_plan(), description(), {8, 8}).ok()); }

TEST(CheckStep, EveryBreachOfTheContract_IsRefused) {
  const std::vector<std::pair<std::string, std::function<void(StepPlan&)>>> breaches = {
      {"old epoch", [](StepPlan& p) { p.epoch = 2; }},
      {"lane", [](StepPlan& p) { p.lane = 1; }},
      {"no rows",
       [](StepPlan& p) {
         StepPlan none;
         none.epoch = 3;
         p = none;
       }},
      {"array lengths", [](StepPlan& p) { p.positions.pop_back(); }},
      {"negative token", [](StepPlan& p) { p.tokens[0] = -1; }},
      {"token beyond the vocabulary", [](StepPlan& p) { p.tokens[0] = 100; }},
      {"slot beyond the slots", [](StepPlan& p) { p.token_slots[0] = 4; }},
      {"position beyond the context", [](StepPlan& p) { p.positions[3] = 64; }},
      {"position out of step", [](StepPlan& p) { p.positions[1] = 5; }},
      {"rows of no sequence", [](StepPlan& p) { p.sequences.pop_back(); }},
      {"rows twice", [](StepPlan& p) { p.sequences[1].row_begin = 2; }},
      {"empty sequence", [](StepPlan& p) { p.sequences[0].row_count = 0; }},
      {"more rows than context", [](StepPlan& p) { p.sequences[0].context = 2; }},
      {"blocks beyond the list", [](StepPlan& p) { p.sequences[1].block_count = 3; }},
      {"blocks that do not cover", [](StepPlan& p) { p.sequences[1].block_count = 1; }},
      {"block beyond the pool", [](StepPlan& p) { p.blocks[0] = 8; }},
      {"negative block", [](StepPlan& p) { p.blocks[0] = -1; }},
      {"logit row", [](StepPlan& p) { p.logit_rows[1] = 4; }},
      {"sample missing", [](StepPlan& p) { p.samples.pop_back(); }},
      {"counts range", [](StepPlan& p) { p.samples[0].counts_end = 1; }},
      {"range backwards", [](StepPlan& p) { p.samples[0].biases_begin = 1; }},
      {"out slot", [](StepPlan& p) { p.samples[0].out_slot = 4; }},
      {"out slot below none", [](StepPlan& p) { p.samples[0].out_slot = -2; }},
      {"temperature that is no number", [](StepPlan& p) { p.samples[0].temperature = NAN; }},
      {"top-p above one", [](StepPlan& p) { p.samples[0].top_p = 1.5f; }},
      {"negative top-k", [](StepPlan& p) { p.samples[0].top_k = -1; }},
      {"repetition penalty of zero", [](StepPlan& p) { p.samples[0].repetition_penalty = 0; }},
      {"biases out of order",
       [](StepPlan& p) {
         p.biases = {{5, 1.0f}, {5, 1.0f}};
         p.samples[0].biases_end = 2;
       }},
      {"top logprobs", [](StepPlan& p) { p.samples[0].top_logprobs = 21; }},
      {"bias token",
       [](StepPlan& p) {
         p.biases.push_back({100, 1.0f});
       }},
      {"count token",
       [](StepPlan& p) {
         p.counts.push_back({-1, 0, 1});
       }},
      {"pending slot", [](StepPlan& p) { p.pending.push_back(4); }},
  };
  for (const auto& [name, breach] : breaches) {
    StepPlan plan = good_plan();
    breach(plan);
    EXPECT_FALSE(check_step(plan, description(), {8, 8}).ok()) << name;
  }
  EXPECT_FALSE(check_step(good_plan(), description(), {3, 8}).ok());
  EXPECT_FALSE(check_step(good_plan(), description(), {8, 1}).ok());
}

}  // namespace
}  // namespace motley
