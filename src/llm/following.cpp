#include "llm/following.hpp"

#include <fmt/format.h>

#include <utility>

#include "base/log.hpp"
#include "llm/steps_done.hpp"

namespace motley {

std::string factors_text(const DriftFactors& factors) {
  std::string text;
  for (const auto& [device, factor] : factors)
    text += fmt::format("{}{} takes {:.2f} of its time", text.empty() ? "" : ", ", device, factor);
  return text;
}

bool Following::look(bool disturbed, const std::function<DriftFactors()>& planned_for) {
  const std::optional<ServedPlan> seen = see_();
  idle_ = !seen || seen->totals == totals_;
  if (idle_) return false;  // nobody asks for anything
  const std::vector<TotalsByDevice> before = std::exchange(totals_, seen->totals);
  if (seen->placement.epoch != epoch_) {
    if (!take_models(*seen)) return false;
    epoch_ = seen->placement.epoch;
    law_.begin_anew();
    if (std::exchange(moved_to_, 0) != epoch_) law_.planned_for(planned_for());
  }
  if (totals_.size() != seen->placement.lanes.size()) return false;
  if (disturbed) law_.begin_anew();
  observe(*seen, before);
  tell_(law_.factors());
  return law_.due();
}

// Steps of the plan that models_ are of.
void Following::observe(const ServedPlan& seen, const std::vector<TotalsByDevice>& before) {
  for (const auto& [name, by_lane] : models_) {
    if (before.size() == totals_.size() && !has_done_more(name, before)) continue;
    double predicted_ns = 0;
    for (size_t lane = 0; lane < by_lane.size(); ++lane) {
      const auto done = totals_[lane].find(name);
      if (done != totals_[lane].end()) predicted_ns += by_lane[lane].of(steps_done(done->second));
    }
    if (const auto busy_ns = seen.busy_ns(name)) law_.observe(name, *busy_ns, predicted_ns);
  }
}

// Looked at just behind the end of a step of its own, a device has little done that its model does not know of yet.
bool Following::has_done_more(const std::string& device, const std::vector<TotalsByDevice>& before) const {
  for (size_t lane = 0; lane < totals_.size(); ++lane) {
    const auto then = before[lane].find(device), now = totals_[lane].find(device);
    if (now != totals_[lane].end() && (then == before[lane].end() || then->second != now->second)) return true;
  }
  return false;
}

bool Following::take_models(const ServedPlan& seen) {
  models_.clear();
  for (size_t lane = 0; lane < seen.placement.lanes.size(); ++lane) {
    auto of_lane = busy_models(seen.planned->shape, seen.planned->input, seen.placement, lane, rows_max_);
    if (!of_lane.ok()) return false;
    for (BusyModel& model : *of_lane) {
      std::vector<BusyModel>& by_lane = models_[model.device];
      by_lane.resize(seen.placement.lanes.size());
      by_lane[lane] = std::move(model);
    }
  }
  return true;
}

// The plan that was looked at last, if it still serves.
Result<ServedPlan> Following::see_same() const {
  std::optional<ServedPlan> seen = see_();
  if (!seen || seen->placement.epoch != epoch_ || seen->totals.size() != totals_.size())
    return error(MOTLEY_UNAVAILABLE, "the plan that it was to follow is no longer in force");
  return *std::move(seen);
}

// After preparing a plan, during which nobody looked.
Status Following::observe_anew() {
  law_.begin_anew();
  const int64_t end_ns = clock_.now_ns() + law_.observed_for_ns();
  while (clock_.now_ns() < end_ns) {
    if (!wait_()) return error(MOTLEY_CANCELLED, "nobody follows the devices any more");
    ASSIGN_OR_RETURN(const ServedPlan seen, see_same());
    const std::vector<TotalsByDevice> before = std::exchange(totals_, seen.totals);
    observe(seen, before);
  }
  tell_(law_.factors());
  return ok_status();
}

Status Following::judge_again(const PlanInput& input, const PlanReport& next, uint64_t host_bytes) {
  ASSIGN_OR_RETURN(const ServedPlan seen, see_same());
  if (!law_.judged_long_ago()) return ok_status();
  RETURN_IF_ERROR(observe_anew());
  const PlannedModel& planned = *seen.planned;
  ASSIGN_OR_RETURN(const Move again, weigh_again(planned.shape, input, planned.request, seen.placement, next,
                                                 law_.factors(), host_bytes));
  log_info("the plan is prepared; meanwhile {}: {}", factors_text(law_.factors()), text_of(again, law_.horizon_ns()));
  if (law_.judge(again.gain, again.cost)) return ok_status();
  return error(MOTLEY_FAILED_PRECONDITION, "the one that was prepared is no longer worth it");
}

}  // namespace motley
