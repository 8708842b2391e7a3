#include "planner/adaptation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

namespace motley {
namespace {

constexpr double kPoolWorthGrowing = 1.25;  // of its blocks; less is not worth a pool beside the one that is there
constexpr int64_t kSettledEnough = 4;       // times as long as a move has to settle

// Blocks of a pool, as close to what it has now as is good.
void settle_pools(const Placement& now, Placement* next) {
  for (const Lane& lane : now.lanes) {
    if (!lane.sections.empty()) continue;
    const std::set<KvPart> before = kv_parts(now, lane.pool), after = kv_parts(*next, lane.pool);
    if (std::none_of(after.begin(), after.end(), [&](const KvPart& each) { return before.contains(each); })) continue;
    for (Lane& other : next->lanes) {
      if (!other.sections.empty()) continue;
      const bool near = other.kv_blocks >= lane.kv_blocks && other.kv_blocks < kPoolWorthGrowing * lane.kv_blocks;
      if (other.pool == lane.pool && near) other.kv_blocks = lane.kv_blocks;
    }
  }
}

}  // namespace

void Adaptation::observe(std::string_view device, double busy_ns, double predicted_ns) {
  const int64_t now_ns = clock_.now_ns();
  watch_.observe(device, now_ns, busy_ns, predicted_ns);
  if (!restless_) return;
  if (watch_.changed()) {
    changed_at_ns_ = now_ns;
    watch_.looked();
  } else if (now_ns - changed_at_ns_ >= kSettledEnough * settle_ns_) {
    restless_ = false;
    settle_ns_ = options_.settle_ns;
  }
}

void Adaptation::measured(const DriftFactors& factors) {
  bool news = false;
  for (const auto& [device, factor] : factors) news |= watch_.tell(device, factor);
  measured_at_ns_ = clock_.now_ns();
  measure_again_ns_ = news ? options_.measure_again_ns : std::min(2 * measure_again_ns_, options_.measure_again_ns_max);
}

bool Adaptation::due() const {
  const int64_t now_ns = clock_.now_ns();
  if (moved_before_ && now_ns < moved_at_ns_ + settle_ns_) return false;
  if (!restless_ && watch_.changed()) return true;
  return (restless_ ? watch_.off_plan_on_average() : watch_.off_plan()) && now_ns >= looked_at_ns_ + look_again_ns_;
}

bool Adaptation::judge(double gain, const MoveCost& cost) {
  judged_ = factors();
  watch_.looked();
  if (cost.gain_over(gain, horizon_ns()) >= options_.worth_moving) return true;
  look_later();
  return false;
}

double Adaptation::horizon_ns() const { return static_cast<double>(std::max(options_.horizon_ns, settle_ns_)); }

void Adaptation::moved() {
  const int64_t now_ns = clock_.now_ns();
  if (moved_before_ && now_ns - moved_at_ns_ < kSettledEnough * settle_ns_) {
    settle_ns_ = std::min(2 * settle_ns_, options_.settle_ns_max);
    restless_ = true;
    changed_at_ns_ = now_ns;
  }
  moved_before_ = true;
  moved_at_ns_ = now_ns;
  look_again_ns_ = options_.look_again_ns;
  measured_at_ns_ = now_ns;  // it may leave out others
  measure_again_ns_ = options_.measure_again_ns;
  watch_.plan_is_for(judged_);
}

void Adaptation::not_moved() { look_later(); }

void Adaptation::planned_for(const DriftFactors& factors) {
  watch_.plan_is_for(factors);
  watch_.looked();
}

void Adaptation::look_later() {
  const int64_t now_ns = clock_.now_ns();
  const bool again = looked_at_ns_ > 0 && now_ns - looked_at_ns_ < kSettledEnough * look_again_ns_;
  look_again_ns_ = again ? std::min(2 * look_again_ns_, options_.look_again_ns_max) : options_.look_again_ns;
  looked_at_ns_ = now_ns;
}

std::string text_of(const Move& move, double horizon_ns) {
  constexpr double kMb = 1e6, kMs = 1e6, kSecond = 1e9;
  const MoveCost& cost = move.cost;
  return fmt::format(
      "worth {:.2f} of the plan before; packs {:.1f} MB in about {:.0f} ms, {:.1f} MB of it and {:.1f} MB of KV in a "
      "pause of about {:.0f} ms: {:.2f} within {:.0f} s",
      move.gain, static_cast<double>(cost.packed_bytes) / kMb, cost.prepare_ns / kMs,
      static_cast<double>(cost.without_room_bytes) / kMb, static_cast<double>(cost.kv_bytes) / kMb, cost.pause_ns / kMs,
      cost.gain_over(move.gain, horizon_ns), horizon_ns / kSecond);
}

Result<Move> better_plan(const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                         const Placement& now, const DriftFactors& factors, const std::stop_token& stop) {
  const PlanInput input = with_drift(measured, factors);
  Placement as_much_as_fits = now;
  for (Lane& lane : as_much_as_fits.lanes) {
    lane.kv_blocks = 0;
    for (KvSection& section : lane.sections) section.blocks = 0;
  }
  ASSIGN_OR_RETURN(const PlanReport stays, report_on(shape, input, request, as_much_as_fits));
  Move move;
  ASSIGN_OR_RETURN(move.report, plan(shape, input, request, Effort::kFull, stop));
  const Prediction &best = move.report.predicted, &same = stays.predicted;
  move.gain = request.objective == Objective::kLatency ? same.request_ms / std::max(best.request_ms, 1e-9)
                                                       : best.tokens_per_s / std::max(same.tokens_per_s, 1e-9);
  settle_pools(now, &move.report.placement);
  for (size_t i = 0; i < move.report.lanes.size(); ++i)
    move.report.lanes[i].kv_tokens = uint64_t{pool_blocks(move.report.placement.lanes[i])} * now.block_size;
  move.report.kv_capacity_tokens = kv_tokens(move.report.placement);
  ASSIGN_OR_RETURN(move.cost, move_cost(shape, input, request, stays, move.report.placement));
  return move;
}

}  // namespace motley
