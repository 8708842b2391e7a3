#include "sim/cost.hpp"

#include <algorithm>

#include "kit/arithmetic.hpp"

namespace motley::sim {

ProgramCost::ProgramCost(const kit::Plan& plan, const std::vector<WeightFacts>& weights) {
  const auto value = [&](int32_t id) -> const kit::PlanValue& { return plan.values[static_cast<size_t>(id)]; };
  for (const kit::PlanOp& op : plan.ops) {
    Op cost;
    bool first = true;
    for (const auto* ids : {&op.out, &op.in}) {
      for (const int32_t id : *ids) {
        if (id == MOTLEY_NONE || value(id).rows == MOTLEY_DIM_SLOTS) continue;
        if (first) cost.rows = value(id).rows, first = false;
        if (op.kind != MOTLEY_OP_SELECT_ROWS || ids == &op.out) cost.bytes += static_cast<double>(value(id).row_bytes);
      }
    }
    WeightFacts weight;
    for (const int32_t id : op.weight) {
      if (id == MOTLEY_NONE) continue;
      const WeightFacts& facts = weights[static_cast<size_t>(id)];
      if (weight.bytes == 0) weight = facts;
      if (op.kind != MOTLEY_OP_EMBED) cost.fixed_bytes += static_cast<double>(facts.bytes);
    }
    cost.work = work_class(weight.format);
    if (op.kind == MOTLEY_OP_MATMUL) {
      cost.flops = 2.0 * static_cast<double>(value(op.in[0]).width) * static_cast<double>(value(op.out[0]).width);
    } else if (op.kind == MOTLEY_OP_GROUPED_MATMUL) {
      cost.top_k = value(op.in[1]).width, cost.experts = std::max<int64_t>(weight.experts, 1), cost.kept = weight.kept;
      cost.flops = 2.0 * static_cast<double>(value(op.in[0]).last) * static_cast<double>(value(op.out[0]).last);
      cost.fixed_bytes /= static_cast<double>(cost.experts);
      cost.bytes /= static_cast<double>(std::max<int64_t>(cost.top_k, 1));
    } else if (op.kind == MOTLEY_OP_PAGED_ATTENTION) {
      const auto& a = op.attr.attention;
      cost.attends = true, cost.work = kWorkAttention, cost.window = a.window;
      cost.flops = 4.0 * a.heads * a.head_dim;
      cost.bytes = 2.0 * a.kv_heads * a.head_dim;  // elements
    }
    ops_.push_back(cost);
  }
}

double ProgramCost::seconds(const Rates& rates, const motley_batch& batch, const KvSize& kv,
                            double bandwidth_share) const {
  const double bandwidth = rates.bandwidth_gb_s * 1e9 * bandwidth_share;
  double sum = rates.dispatch_us * 1e-6;
  std::vector<std::pair<int64_t, kit::Attended>> by_window;  // layers have one or two kinds
  for (const Op& op : ops_) {
    double rows = static_cast<double>(op.rows);
    if (op.rows == MOTLEY_DIM_ROWS) rows = batch.rows;
    if (op.rows == MOTLEY_DIM_HEAD_ROWS) rows = batch.head_row_count;
    if (rows <= 0) continue;
    const double peak = rates.gflops[op.work] * 1e9;
    double flops = op.flops * rows, bytes = op.bytes * rows + op.fixed_bytes, efficiency = 1;
    if (op.attends) {
      auto known =
          std::find_if(by_window.begin(), by_window.end(), [&](const auto& w) { return w.first == op.window; });
      if (known == by_window.end())
        known = by_window.insert(by_window.end(), {op.window, kit::attended(batch, op.window, kv.block_size)});
      flops = op.flops * known->second.pairs;
      bytes = op.bytes * known->second.positions * kv.element_bytes + op.fixed_bytes;
    } else {
      if (op.top_k) {
        const double chosen = rows * static_cast<double>(op.top_k) * op.kept;
        const double touched = std::min(static_cast<double>(op.experts), chosen);
        if (touched <= 0) continue;
        flops = op.flops * chosen;
        bytes = op.bytes * chosen + op.fixed_bytes * touched;
        rows = chosen / touched;  // of an expert
      }
      efficiency = rows / (rows + rates.half_rows[op.work]);
    }
    sum += std::max(flops / (peak * efficiency), bytes / bandwidth);
  }
  return sum;
}

double copy_seconds(const Rates& rates, uint64_t bytes) {
  return rates.link_latency_us * 1e-6 + static_cast<double>(bytes) / (rates.link_gb_s * 1e9);
}

}  // namespace motley::sim
