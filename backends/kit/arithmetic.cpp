#include "kit/arithmetic.hpp"

#include <algorithm>

namespace motley::kit {
namespace {

// Positions of a sequence whose blocks lie elsewhere.
class Holes {
 public:
  Holes(std::span<const int32_t> blocks, uint32_t block_size) : blocks_(blocks), block_size_(block_size) {
    if (std::find(blocks.begin(), blocks.end(), MOTLEY_NONE) == blocks.end()) return;
    before_.push_back(0);
    for (const int32_t block : blocks) before_.push_back(before_.back() + (block == MOTLEY_NONE ? block_size : 0));
  }
  // Of the positions [begin, end) those that do not.
  double there(int64_t begin, int64_t end) const {
    return static_cast<double>(end - begin - (before_.empty() ? 0 : before(end) - before(begin)));
  }

 private:
  int64_t before(int64_t position) const {
    const auto block = std::min(static_cast<size_t>(position / block_size_), blocks_.size());
    const bool inside = block < blocks_.size() && blocks_[block] == MOTLEY_NONE;
    return before_[block] + (inside ? position % block_size_ : 0);
  }
  std::span<const int32_t> blocks_;
  int64_t block_size_;
  std::vector<int64_t> before_;  // [block], and at the end; empty: there are none
};

}  // namespace

Attended attended(const motley_batch& batch, int64_t window, uint32_t block_size) {
  Attended sum;
  const auto first_seen = [&](uint32_t row) {
    return window ? std::max<int64_t>(0, int64_t{batch.positions[row]} + 1 - window) : 0;
  };
  for (uint32_t s = 0; s < batch.seqs; ++s) {
    const uint32_t begin = batch.seq_row_begin[s], end = batch.seq_row_begin[s + 1];
    std::span<const int32_t> blocks;
    if (batch.blocks != nullptr)
      blocks = {batch.blocks + batch.seq_block_begin[s], batch.blocks + batch.seq_block_begin[s + 1]};
    const Holes holes(blocks, block_size);
    for (uint32_t r = begin; r < end; ++r) sum.pairs += holes.there(first_seen(r), int64_t{batch.positions[r]} + 1);
    sum.positions += holes.there(first_seen(begin), batch.seq_context[s]);
  }
  return sum;
}

Arithmetic::Arithmetic(const Plan& plan, std::span<const double> kept) {
  const auto value = [&](int32_t id) -> const PlanValue& { return plan.values[static_cast<size_t>(id)]; };
  for (const PlanOp& op : plan.ops) {
    double flops = 0;
    if (op.kind == MOTLEY_OP_MATMUL) {
      flops = 2.0 * static_cast<double>(value(op.in[0]).width) * static_cast<double>(value(op.out[0]).width);
    } else if (op.kind == MOTLEY_OP_GROUPED_MATMUL) {
      const double chosen = static_cast<double>(value(op.in[1]).width) * kept[static_cast<size_t>(op.weight[0])];
      flops = 2.0 * static_cast<double>(value(op.in[0]).last) * static_cast<double>(value(op.out[0]).last) * chosen;
    } else if (op.kind == MOTLEY_OP_PAGED_ATTENTION) {
      const auto& a = op.attr.attention;
      auto at = std::find_if(attentions_.begin(), attentions_.end(),
                             [&](const Attention& each) { return each.window == a.window; });
      if (at == attentions_.end()) at = attentions_.insert(at, {a.window, 0});
      at->flops += 4.0 * a.heads * a.head_dim;  // scores, and values weighed by them
      continue;
    } else {
      continue;
    }
    const int64_t rows = value(op.out[0]).rows;
    if (rows == MOTLEY_DIM_ROWS)
      per_row_ += flops;
    else if (rows == MOTLEY_DIM_HEAD_ROWS)
      per_head_row_ += flops;
    else if (rows > 0)
      fixed_ += flops * static_cast<double>(rows);
  }
}

double Arithmetic::of(const motley_batch& batch, uint32_t block_size) const {
  double sum = fixed_ + per_row_ * batch.rows + per_head_row_ * batch.head_row_count;
  for (const Attention& each : attentions_) sum += each.flops * attended(batch, each.window, block_size).pairs;
  return sum;
}

}  // namespace motley::kit
