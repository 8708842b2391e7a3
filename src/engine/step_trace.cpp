#include "engine/step_trace.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace motley {
namespace {

constexpr std::string_view kGroup = "scheduler";

std::string_view kind_of(int64_t prompt_rows, int64_t generated_rows) {
  if (generated_rows == 0) return "prefill";
  return prompt_rows == 0 ? "decode" : "prefill and decode";
}

}  // namespace

void StepTrace::planned(const StepPlan& plan, int64_t now_ns) {
  if (trace_ == nullptr) return;
  auto lane = std::find_if(lanes_.begin(), lanes_.end(), [](const Step& step) { return !step.under_way; });
  if (lane == lanes_.end()) {
    tracks_.push_back(trace_->track(kGroup, fmt::format("steps {}", lanes_.size() + 1)));
    lane = lanes_.emplace(lanes_.end());
  }
  const auto generated = std::count(plan.generated.begin(), plan.generated.end(), uint8_t{1});
  *lane = {plan.step,
           now_ns,
           static_cast<int64_t>(plan.tokens.size()) - generated,
           generated,
           static_cast<int64_t>(plan.sequences.size()),
           true};
}

void StepTrace::ended(const StepResult& result, int64_t now_ns) {
  if (trace_ == nullptr) return;
  const auto lane = std::find_if(lanes_.begin(), lanes_.end(),
                                 [&](const Step& step) { return step.under_way && step.id == result.step; });
  if (lane == lanes_.end()) return;
  lane->under_way = false;
  trace_->span(tracks_[static_cast<size_t>(lane - lanes_.begin())], kind_of(lane->prompt_rows, lane->generated_rows),
               lane->begin_ns, now_ns,
               {{"step", static_cast<int64_t>(lane->id)},
                {"epoch", static_cast<int64_t>(result.epoch)},
                {"sequences", lane->sequences},
                {"rows", lane->prompt_rows + lane->generated_rows},
                {"prompt_rows", lane->prompt_rows},
                {"generated_rows", lane->generated_rows},
                {"status", result.status.code()}});
}

void StepTrace::paused(int64_t begin_ns, int64_t end_ns, bool lost, Epoch next) {
  if (trace_ == nullptr) return;
  trace_->span(trace_->track(kGroup, "pauses"), lost ? "recovery" : "replacement", begin_ns, end_ns,
               {{"epoch", static_cast<int64_t>(next)}});
}

}  // namespace motley
