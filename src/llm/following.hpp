// Following: what the devices of a plan say of themselves, against what its steps should take them, and what the law
// makes of it. Knows nothing of how the plan is served.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/status.hpp"
#include "llm/placing.hpp"
#include "planner/adaptation.hpp"
#include "planner/drift.hpp"
#include "runtime/step_totals.hpp"

namespace motley {

// What one look needs of a model in service, all of the same moment.
struct ServedPlan {
  std::shared_ptr<const PlannedModel> planned;  // shared with who serves it
  Placement placement;
  std::vector<TotalsByDevice> totals;  // [lane]
  // How long a device says that it was busy so far; none of one that is lost.
  std::function<std::optional<double>(const std::string& device)> busy_ns;
};

// For people: what devices take of their times.
std::string factors_text(const DriftFactors& factors);

// Not thread-safe.
class Following {
 public:
  // `see`: what serves now; none while nothing does. `wait`: until the next look; false once nobody follows any more.
  // `tell`: hears factors that have changed. `rows_max`: of steps. The clock outlives this.
  Following(const Clock& clock, uint32_t rows_max, std::function<std::optional<ServedPlan>()> see,
            std::function<bool()> wait, std::function<void(const DriftFactors&)> tell)
      : rows_max_(rows_max),
        see_(std::move(see)),
        wait_(std::move(wait)),
        tell_(std::move(tell)),
        law_(clock),
        clock_(clock) {}

  Adaptation& law() { return law_; }
  // Nothing was done between the last two looks.
  bool idle() const { return idle_; }
  // Of the placement that was looked at last.
  Epoch epoch() const { return epoch_; }

  // Whether a better plan is to be looked for. `disturbed`: devices do other things than steps just now. `planned_for`:
  // what a plan that somebody else put in force was made for.
  bool look(bool disturbed, const std::function<DriftFactors()>& planned_for);
  // That placement came of the law.
  void moved_to(Epoch epoch) { moved_to_ = epoch; }
  // Asked once `next` is prepared, which took so long that nobody looked meanwhile: it was better than the plan in
  // force that was looked at last, by `input`. Observes the devices for a while if the judgement is old. UNAVAILABLE
  // where that plan is no longer in force, FAILED_PRECONDITION where `next` is not worth it any more, CANCELLED where
  // nobody follows.
  Status judge_again(const PlanInput& input, const PlanReport& next, uint64_t host_bytes);

 private:
  bool take_models(const ServedPlan& seen);
  void observe(const ServedPlan& seen, const std::vector<TotalsByDevice>& before);
  bool has_done_more(const std::string& device, const std::vector<TotalsByDevice>& before) const;
  Result<ServedPlan> see_same() const;
  Status observe_anew();

  const uint32_t rows_max_;
  const std::function<std::optional<ServedPlan>()> see_;
  const std::function<bool()> wait_;
  const std::function<void(const DriftFactors&)> tell_;
  Adaptation law_;
  const Clock& clock_;
  std::map<std::string, std::vector<BusyModel>> models_;  // by device, [lane]
  Epoch epoch_ = 0, moved_to_ = 0;
  std::vector<TotalsByDevice> totals_;
  bool idle_ = true;
};

}  // namespace motley
