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
  auto step = std::find_if(steps_.begin(), steps_.end(), [](const Step& each) { return !each.under_way; });
  if (step == steps_.end()) {
    tracks_.push_back(trace_->track(kGroup, fmt::format("steps {}", steps_.size() + 1)));
    step = steps_.emplace(steps_.end());
  }
  const auto generated = std::count(plan.generated.begin(), plan.generated.end(), uint8_t{1});
  *step = {plan.step, plan.lane,
           now_ns,    static_cast<int64_t>(plan.tokens.size()) - generated,
           generated, static_cast<int64_t>(plan.sequences.size()),
           true};
}

void StepTrace::ended(const StepResult& result, int64_t now_ns) {
  if (trace_ == nullptr) return;
  const auto step = std::find_if(steps_.begin(), steps_.end(),
                                 [&](const Step& each) { return each.under_way && each.id == result.step; });
  if (step == steps_.end()) return;
  step->under_way = false;
  trace_->span(tracks_[static_cast<size_t>(step - steps_.begin())], kind_of(step->prompt_rows, step->generated_rows),
               step->begin_ns, now_ns,
               {{"step", static_cast<int64_t>(step->id)},
                {"epoch", static_cast<int64_t>(result.epoch)},
                {"lane", step->lane},
                {"sequences", step->sequences},
                {"rows", step->prompt_rows + step->generated_rows},
                {"prompt_rows", step->prompt_rows},
                {"generated_rows", step->generated_rows},
                {"status", result.status.code()}});
}

void StepTrace::paused(int64_t begin_ns, int64_t end_ns, bool lost, Epoch next) {
  if (trace_ == nullptr) return;
  trace_->span(trace_->track(kGroup, "pauses"), lost ? "recovery" : "replacement", begin_ns, end_ns,
               {{"epoch", static_cast<int64_t>(next)}});
}

}  // namespace motley
