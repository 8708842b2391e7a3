#include "planner/adaptation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
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

// With as much KV as fits.
Placement with_any_kv(Placement placement) {
  for (Lane& lane : placement.lanes) {
    lane.kv_blocks = 0;
    for (KvSection& section : lane.sections) section.blocks = 0;
  }
  return placement;
}

// Of replicas those alone that are as even as replicas are planned: a device that fades keeps its share of the
// requests, and would give many of them few tokens each.
double even_tokens_per_s(const PlanReport& report) {
  if (report.placement.lanes[0].share == 0) return report.predicted.tokens_per_s;
  double fastest_ms = std::numeric_limits<double>::max(), sum = 0;
  for (const LaneReport& lane : report.lanes)
    if (lane.predicted.tokens_per_s > 0) fastest_ms = std::min(fastest_ms, lane.predicted.tpot_ms);
  for (const LaneReport& lane : report.lanes)
    if (lane.predicted.tpot_ms <= kSlowestReplica * fastest_ms) sum += lane.predicted.tokens_per_s;
  return sum;
}

double gain_of(const PlanRequest& request, const PlanReport& next, const PlanReport& now) {
  return request.objective == Objective::kLatency ? now.predicted.request_ms / std::max(next.predicted.request_ms, 1e-9)
                                                  : even_tokens_per_s(next) / std::max(even_tokens_per_s(now), 1e-9);
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
  judged_at_ns_ = clock_.now_ns();
  watch_.looked();
  moving_ = cost.gain_over(gain, horizon_ns()) >= options_.worth_moving;
  if (!moving_) look_later();
  return moving_;
}

double Adaptation::horizon_ns() const { return static_cast<double>(std::max(options_.horizon_ns, settle_ns_)); }

void Adaptation::moved() {
  const int64_t now_ns = clock_.now_ns();
  if (moved_before_ && now_ns - moved_at_ns_ < kSettledEnough * settle_ns_) {
    settle_ns_ = std::min(2 * settle_ns_, options_.settle_ns_max);
    restless_ = true;
    changed_at_ns_ = now_ns;
  }
  moved_before_ = true, moving_ = false;
  moved_at_ns_ = now_ns;
  look_again_ns_ = options_.look_again_ns;
  measured_at_ns_ = now_ns;  // it may leave out others
  measure_again_ns_ = options_.measure_again_ns;
  watch_.plan_is_for(judged_);
}

// Where it was judged again, and is not worth it any more, that is known.
void Adaptation::not_moved() {
  if (std::exchange(moving_, false)) look_later();
}

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
      "worth {:.2f} of the plan before; packs {:.1f} MB in about {:.0f} ms, {:.1f} MB of it in a pause of about {:.0f} "
      "ms, {:.0f} of them for steps to end; moves {:.1f} MB of KV, the last {:.0f} ms behind the pause: {:.2f} within "
      "{:.0f} s",
      move.gain, static_cast<double>(cost.packed_bytes) / kMb, cost.prepare_ns / kMs,
      static_cast<double>(cost.without_room_bytes) / kMb, cost.pause_ns / kMs, cost.under_way_ns / kMs,
      static_cast<double>(cost.kv_bytes) / kMb, cost.late_ns / kMs, cost.gain_over(move.gain, horizon_ns),
      horizon_ns / kSecond);
}

Result<Move> move_to(const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                     const Placement& now, PlanReport next, const DriftFactors& factors, uint64_t host_bytes) {
  const PlanInput input = with_drift(measured, factors);
  ASSIGN_OR_RETURN(PlanReport stays, report_on(shape, input, request, with_any_kv(now)));
  Move move;
  move.report = std::move(next);
  move.gain = gain_of(request, move.report, stays);
  settle_pools(now, &move.report.placement);
  for (size_t i = 0; i < move.report.lanes.size(); ++i)
    move.report.lanes[i].kv_tokens = uint64_t{pool_blocks(move.report.placement.lanes[i])} * now.block_size;
  move.report.kv_capacity_tokens = kv_tokens(move.report.placement);
  stays.placement = now;  // with the pools that there are
  ASSIGN_OR_RETURN(move.cost, move_cost(shape, input, request, stays, move.report, host_bytes));
  return move;
}

Result<Move> weigh_again(const ModelShape& shape, const PlanInput& measured, const PlanRequest& request,
                         const Placement& now, const PlanReport& next, const DriftFactors& factors,
                         uint64_t host_bytes) {
  const PlanInput input = with_drift(measured, factors);
  ASSIGN_OR_RETURN(PlanReport stays, report_on(shape, input, request, with_any_kv(now)));
  ASSIGN_OR_RETURN(const PlanReport goes, report_on(shape, input, request, with_any_kv(next.placement)));
  Move move;
  move.report = next;
  move.gain = gain_of(request, goes, stays);
  stays.placement = now;
  ASSIGN_OR_RETURN(move.cost, move_cost(shape, input, request, stays, next, host_bytes));
  move.cost.prepare_ns = 0;
  return move;
}

}  // namespace motley
