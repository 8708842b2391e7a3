// The reference of the ops on the KV pool.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>

#include "kit/internal.hpp"
#include "kit/reference.hpp"

namespace motley::kit {

void kv_write(const OpCall& call) {
  const KvPool& pool = *call.kv;
  const KvLayer& layer = pool.layers[static_cast<size_t>(call.op->attr.kv.layer)];
  const int64_t dim = layer.head_dim;
  const Range rows = call.part(call.in[0].rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int32_t slot = call.batch->kv_slots[r];
    if (slot < 0) continue;
    const int64_t block = slot / pool.block_size, position = slot % pool.block_size;
    for (int64_t h = 0; h < layer.kv_heads; ++h) {
      const int64_t at = layer.offset(block, position, h) * pool.element_bytes;
      const int64_t key_at = layer.key_offset(block, position, h) * pool.element_bytes;
      const int64_t scale_at = layer.scale_offset(block, position, h);
      std::byte key[kHeadDimMax * 4];
      kv_store(pool.dtype, call.in[0].f32(r) + h * dim, dim, key, layer.k_scale ? layer.k_scale + scale_at : nullptr);
      kv_scatter(pool.element_bytes, key, dim, layer.k + key_at, layer.key_dim_stride);
      kv_store(pool.dtype, call.in[1].f32(r) + h * dim, dim, layer.v + at,
               layer.v_scale ? layer.v_scale + scale_at : nullptr);
    }
  }
}

namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// Softmax-weighted sum over positions that come one after another.
class RunningSoftmax {
 public:
  RunningSoftmax(double* sum, int64_t dim) : sum_(sum), dim_(dim) { std::fill(sum, sum + dim, 0.0); }
  void add(double score, const float* value) {
    const double weight = weigh(score);
    for (int64_t i = 0; value && i < dim_; ++i) sum_[i] += weight * value[i];
  }
  void finish(float* out) const {
    for (int64_t i = 0; i < dim_; ++i) out[i] = total_ > 0 ? static_cast<float>(sum_[i] / total_) : 0.0f;
  }
  double log_sum_exp() const { return total_ > 0 ? largest_ + std::log(total_) : kNothing; }

 private:
  double weigh(double score) {
    if (score > largest_) {
      const double shrink = largest_ == kNothing ? 0.0 : std::exp(largest_ - score);
      for (int64_t i = 0; i < dim_; ++i) sum_[i] *= shrink;
      total_ *= shrink;
      largest_ = score;
    }
    const double weight = score == kNothing ? 0.0 : std::exp(score - largest_);
    total_ += weight;
    return weight;
  }
  double* sum_;
  int64_t dim_;
  double largest_ = kNothing, total_ = 0;
};

// One head of one row over its visible positions, in ascending order.
void attend(const OpCall& call, int64_t row, int32_t head, double* sum, float* element) {
  const auto& a = call.op->attr.attention;
  const motley_batch& batch = *call.batch;
  const KvPool& pool = *call.kv;
  const KvLayer& layer = pool.layers[static_cast<size_t>(a.layer)];
  const int64_t kv_head = head / (a.heads / a.kv_heads), dim = a.head_dim;
  const int32_t* blocks = batch.blocks + batch.seq_block_begin[call.row_sequence[row]];
  const int64_t position = batch.positions[row];
  const int64_t first = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
  const float* q = call.in[0].f32(row) + int64_t{head} * dim;
  RunningSoftmax softmax(sum, dim);
  if (call.weight[0]) softmax.add(call.weight[0]->vector()[head], nullptr);  // a sink takes weight and adds no value
  for (int64_t p = first; p <= position; ++p) {
    const int64_t block = blocks[p / pool.block_size], within = p % pool.block_size;
    if (block == MOTLEY_NONE) continue;
    const int64_t at = layer.offset(block, within, kv_head) * pool.element_bytes;
    const int64_t key_at = layer.key_offset(block, within, kv_head) * pool.element_bytes;
    const int64_t scale_at = layer.scale_offset(block, within, kv_head);
    std::byte key[kHeadDimMax * 4];
    kv_gather(pool.element_bytes, layer.k + key_at, layer.key_dim_stride, dim, key);
    kv_load(pool.dtype, key, dim, layer.k_scale ? layer.k_scale[scale_at] : 1.0f, element);
    double score = 0;
    for (int64_t i = 0; i < dim; ++i) score += static_cast<double>(q[i]) * element[i];
    score *= a.scale;
    if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
    kv_load(pool.dtype, layer.v + at, dim, layer.v_scale ? layer.v_scale[scale_at] : 1.0f, element);
    softmax.add(score, element);
  }
  softmax.finish(call.out[0].f32(row) + int64_t{head} * dim);
  if (call.out[1].data) call.out[1].f32(row)[head] = static_cast<float>(softmax.log_sum_exp());
}

}  // namespace

void paged_attention(const OpCall& call) {
  const int32_t heads = call.op->attr.attention.heads, dim = call.op->attr.attention.head_dim;
  auto* sum = reinterpret_cast<double*>(call.scratch);
  auto* element = reinterpret_cast<float*>(sum + dim);
  const Range part = call.part(call.in[0].rows * heads);
  for (int64_t i = part.begin; i < part.end; ++i)
    attend(call, i / heads, static_cast<int32_t>(i % heads), sum, element);
}

int64_t paged_attention_scratch(const Plan&, const PlanOp& op) { return int64_t{op.attr.attention.head_dim} * 12; }

void attn_merge(const OpCall& call) {
  const int64_t heads = call.in[2].width, dim = call.in[0].width / heads;
  const Range rows = call.part(call.in[0].rows);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const double a = call.in[2].f32(r)[h], b = call.in[3].f32(r)[h], largest = std::max(a, b);
      const double wa = a == kNothing ? 0.0 : std::exp(a - largest), wb = b == kNothing ? 0.0 : std::exp(b - largest);
      for (int64_t i = h * dim; i < (h + 1) * dim; ++i) {
        // A part without positions (log-sum-exp -inf) is not read: its content is undefined.
        const double sum = (wa > 0 ? wa * call.in[0].f32(r)[i] : 0.0) + (wb > 0 ? wb * call.in[1].f32(r)[i] : 0.0);
        call.out[0].f32(r)[i] = wa + wb > 0 ? static_cast<float>(sum / (wa + wb)) : 0.0f;
      }
      if (call.out[1].data)
        call.out[1].f32(r)[h] = static_cast<float>(wa + wb > 0 ? largest + std::log(wa + wb) : kNothing);
    }
  }
}

}  // namespace motley::kit
