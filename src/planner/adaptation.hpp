// Adaptation: when the plan in force is to follow its devices, and to what. Pure but for its clock.
#pragma once

#include <cstdint>
#include <stop_token>
#include <string>
#include <string_view>

#include "base/clock.hpp"
#include "planner/drift.hpp"
#include "planner/move_cost.hpp"
#include "planner/search.hpp"

namespace motley {

struct AdaptationOptions {
  DriftOptions drift;
  // A move is to have paid for itself within this time, or within that in which nothing else moves, if that is longer:
  // what a device changed its speed for (heat, another program) has lasted for a second when it is seen, and lasts for
  // some tens of seconds.
  int64_t horizon_ns = 30'000'000'000;
  // Tokens within the horizon, of those that come without a move. Noise of 15 % is noise of 5 % (its deviation) in
  // a factor that is smoothed over windows; two devices that are off by twice that, one either way, seem to gain 1.11.
  double worth_moving = 1.12;
  // After a move nothing moves for so long: at least, and twice as long after each that comes within four times as long
  // of the one before.
  int64_t settle_ns = 5'000'000'000, settle_ns_max = 300'000'000'000;
  // The same plan is looked for again after so long, and twice as long each time that nothing comes of it.
  int64_t look_again_ns = 5'000'000'000, look_again_ns_max = 300'000'000'000;
  // Devices that the plan leaves out are measured after so long, and twice as long each time that they are as before:
  // requests wait for it.
  int64_t measure_again_ns = 10'000'000'000, measure_again_ns_max = 300'000'000'000;
  // A plan whose programs and weights took longer to make than this is judged again before it takes over.
  int64_t judged_for_ns = 2'000'000'000;
};

// The control law: what devices say of themselves goes in, and what came of looking for a better plan; out comes when
// to look, and whether to move. A device that changes is seen within six windows. Once moves come in quick succession
// the devices are restless: then what they take on average since the last move counts, not what they take now, until
// none has changed for four times as long as moves have to settle. Not thread-safe.
class Adaptation {
 public:
  // `clock` outlives this.
  explicit Adaptation(const Clock& clock, const AdaptationOptions& options = {})
      : clock_(clock),
        options_(options),
        watch_(options.drift),
        settle_ns_(options.settle_ns),
        look_again_ns_(options.look_again_ns),
        measured_at_ns_(clock.now_ns()),
        measure_again_ns_(options.measure_again_ns) {}

  // As of DriftWatch, now.
  void observe(std::string_view device, double busy_ns, double predicted_ns);
  void begin_anew() { watch_.begin_anew(); }
  // Whether devices that the plan in force leaves out are to be measured; what came of it, of those of which something
  // did.
  bool measuring_due() const { return clock_.now_ns() >= measured_at_ns_ + measure_again_ns_; }
  void measured(const DriftFactors& factors);
  // What plans are to count with.
  DriftFactors factors() const { return restless_ ? watch_.averages() : watch_.factors(); }

  // Whether a better plan is to be looked for, for factors() as they are.
  bool due() const;
  // The best plan for factors() gives `gain` times the tokens/s of the one in force, and going there costs that. True:
  // move; one of the two below follows, perhaps after the plan was judged again. 0: no plan was found.
  bool judge(double gain, const MoveCost& cost = {});
  // Whether that is so long ago that the plan, prepared by now, is to be judged again; and how long devices are to be
  // observed for that where they were not meanwhile.
  bool judged_long_ago() const { return clock_.now_ns() - judged_at_ns_ >= options_.judged_for_ns; }
  int64_t observed_for_ns() const { return (options_.drift.windows + 1) * options_.drift.window_ns; }
  // Within which a move is to have paid for itself.
  double horizon_ns() const;
  void moved();      // the plan is in force
  void not_moved();  // it could not be, or is not to be any more
  // Somebody else put a plan in force, made for these factors: a device was lost, or came.
  void planned_for(const DriftFactors& factors);

 private:
  void look_later();

  const Clock& clock_;
  const AdaptationOptions options_;
  DriftWatch watch_;
  DriftFactors judged_;
  bool moved_before_ = false, restless_ = false;
  bool moving_ = false;  // what was judged last is to be moved to
  int64_t moved_at_ns_ = 0, settle_ns_, judged_at_ns_ = 0;
  int64_t changed_at_ns_ = 0;  // while restless
  int64_t looked_at_ns_ = 0, look_again_ns_;
  int64_t measured_at_ns_, measure_again_ns_;
};

struct Move {
  PlanReport report;
  // Of the tokens/s that the plan in force would still give, replicas more than kSlowestReplica times as slow as the
  // fastest not counted (or its time of a lone request by the new one's, if that is what is asked for): each with as
  // much KV as fits.
  double gain = 0;
  MoveCost cost;  // of going there
};
// For people, with the gain that is left of it within this time.
std::string text_of(const Move& move, double horizon_ns);

// Going from `now` to a plan that was made with these factors, perhaps of fewer devices. Where an owner of KV keeps its
// layers and heads, and the plan would hold as many blocks as now or few more, their number stays, so that its pool can
// stay, too. `host_bytes`: as of move_cost().
Result<Move> move_to(const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                     const Placement& now, PlanReport next, const DriftFactors& factors, uint64_t host_bytes = 0);
// What going to a plan is worth with these factors that was made with others, and is prepared by now. `host_bytes`: as
// it was before that.
Result<Move> weigh_again(const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                         const Placement& now, const PlanReport& next, const DriftFactors& factors,
                         uint64_t host_bytes = 0);

}  // namespace motley
