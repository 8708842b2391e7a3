// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cpu/ops.hpp"

namespace motley::cpu {
namespace {

// One call of PAGED_ATTENTION. in [0] q; out [0] result, [1] log-sum-exp or none, [2] room for partial results.
//
// The work is cut in items of (sequence, some rows, KV head); if there are fewer of them than keep the threads busy,
// every split of the context is an item of its own and the parts are merged after a barrier. Both ways give the same
// bits (kernels_attention.inc).
class Attention {
 public:
  explicit Attention(const kit::OpCall& call)
      : call_(call),
        a_(call.op->attr.attention),
        layer_(call.kv->layers[static_cast<size_t>(a_.layer)]),
        set_(*static_cast<const OpData*>(call.op->data.get())->set),
        group_(a_.heads / a_.kv_heads),
        rows_per_item_(std::max(1, kAttentionQueries / group_)),
        stride_(state_floats(a_.head_dim)),
        scratch_(reinterpret_cast<float*>(call.scratch)),
        states_(scratch_ + attention_scratch_floats(a_.head_dim)) {}

  void run() {
    const int64_t partial_states = split_states();
    if (partial_states == 0) {
      run_items();
      return;
    }
    run_splits();
    call_.barrier();
    merge_splits();
  }

 private:
  static int32_t splits_of(int32_t context) { return (context + kAttentionSplit - 1) / kAttentionSplit; }
  int32_t position(int64_t row) const { return call_.batch->positions[row]; }
  // The split that holds the first position row sees.
  int32_t first_split(int32_t at) const {
    return a_.window > 0 ? std::max(0, at - a_.window + 1) / kAttentionSplit : 0;
  }

  // States needed to run split by split; 0: not worth it, or no room.
  int64_t split_states() const {
    const motley_batch& b = *call_.batch;
    int64_t items = 0, parts = 0;
    for (uint32_t s = 0; s < b.seqs; ++s) {
      const int64_t rows = b.seq_row_begin[s + 1] - b.seq_row_begin[s];
      items += (rows + rows_per_item_ - 1) / rows_per_item_ * a_.kv_heads;
      for (int64_t r = b.seq_row_begin[s]; r < b.seq_row_begin[s + 1]; ++r)
        parts += splits_of(position(r) + 1) - first_split(position(r));
    }
    if (call_.threads == 1 || items >= 4 * static_cast<int64_t>(call_.threads) || parts == b.rows) return 0;
    const int64_t states = parts * a_.heads;
    return states * stride_ <= call_.out[2].width ? states : 0;
  }

  // Part i of the contexts belongs to one thread: forth and back, so that parts of growing cost spread evenly.
  bool mine(int64_t i) const {
    const int64_t lap = i / call_.threads, at = i % call_.threads;
    return (lap % 2 == 0 ? at : call_.threads - 1 - at) == call_.thread;
  }

  AttentionArgs item(uint32_t seq, int64_t row, int32_t rows, int32_t kv_head) const {
    const kit::KvPool& pool = *call_.kv;
    AttentionArgs g;
    const int64_t at = layer_.offset(0, 0, kv_head), key_at = layer_.key_offset(0, 0, kv_head),
                  scale_at = layer_.scale_offset(0, 0, kv_head);
    g.kv.dtype = pool.dtype;
    g.kv.k = layer_.k + key_at * pool.element_bytes;
    g.kv.v = layer_.v + at * pool.element_bytes;
    g.kv.k_scale = layer_.k_scale ? layer_.k_scale + scale_at : nullptr;
    g.kv.v_scale = layer_.v_scale ? layer_.v_scale + scale_at : nullptr;
    g.kv.block_stride = layer_.block_stride;
    g.kv.k_position_stride = layer_.key_position_stride;
    g.kv.k_dim_stride = layer_.key_dim_stride;
    g.kv.v_position_stride = layer_.position_stride;
    g.kv.scale_block_stride = layer_.scale_block_stride;
    g.kv.scale_position_stride = layer_.scale_position_stride;
    g.kv.blocks = call_.batch->blocks + call_.batch->seq_block_begin[seq];
    g.kv.block_size = static_cast<int32_t>(pool.block_size);
    g.kv.holes = call_.holes;
    g.kv.context = call_.batch->seq_context[seq];
    g.q = call_.in[0].f32(row) + int64_t{kv_head} * group_ * a_.head_dim;
    g.q_stride = call_.in[0].width;
    g.rows = rows;
    g.group = group_;
    g.head_dim = a_.head_dim;
    g.first_position = position(row);
    g.window = a_.window;
    g.scale = a_.scale;
    g.softcap = a_.softcap;
    g.split_begin = first_split(position(row));
    g.split_end = splits_of(position(row + rows - 1) + 1);
    g.state = states_;
    g.scratch = scratch_;
    return g;
  }

  // Rows from `row` on, before `end`, whose positions follow each other.
  int32_t run_of(int64_t row, int64_t end) const {
    int32_t rows = 1;
    while (row + rows < end && position(row + rows) == position(row) + rows) ++rows;
    return rows;
  }

  void finish(int64_t row, int32_t head, const float* state) const {
    const float* sink = call_.weight[0] ? call_.weight[0]->vector() + head : nullptr;
    const float lse = set_.finish(state, a_.head_dim, sink, call_.out[0].f32(row) + int64_t{head} * a_.head_dim);
    if (call_.out[1].data) call_.out[1].f32(row)[head] = lse;
  }

  // f(sequence, row, rows) for the rows of an item of each KV head.
  template <class F>
  void each_item(F f) const {
    const motley_batch& b = *call_.batch;
    for (uint32_t s = 0; s < b.seqs; ++s) {
      int32_t rows = 0;
      for (int64_t row = b.seq_row_begin[s]; row < b.seq_row_begin[s + 1]; row += rows) {
        rows = run_of(row, std::min<int64_t>(row + rows_per_item_, b.seq_row_begin[s + 1]));
        f(s, row, rows);
      }
    }
  }

  void run_items() const {
    int64_t items = 0, i = 0;
    each_item([&](uint32_t, int64_t, int32_t) { items += a_.kv_heads; });
    kit::Range mine = call_.take(items);
    each_item([&](uint32_t seq, int64_t row, int32_t rows) {
      for (int32_t h = 0; h < a_.kv_heads; ++h, ++i) {
        if (i == mine.end && mine.end < items) mine = call_.take(items);
        if (i < mine.begin || i >= mine.end) continue;
        set_.attend(item(seq, row, rows, h));
        for (int32_t q = 0; q < rows * group_; ++q)
          finish(row + q / group_, h * group_ + q % group_, states_ + q * stride_);
      }
    });
  }

  // f(sequence, row, split, first state of the split's heads) in the order of the states.
  template <class F>
  void each_split(F f) const {
    const motley_batch& b = *call_.batch;
    float* state = call_.out[2].f32();
    for (uint32_t s = 0; s < b.seqs; ++s) {
      for (int64_t row = b.seq_row_begin[s]; row < b.seq_row_begin[s + 1]; ++row) {
        for (int32_t split = first_split(position(row)); split < splits_of(position(row) + 1); ++split) {
          f(s, row, split, state);
          state += a_.heads * stride_;
        }
      }
    }
  }

  void run_splits() const {
    int64_t i = 0;
    each_split([&](uint32_t seq, int64_t row, int32_t split, float* state) {
      for (int32_t h = 0; h < a_.kv_heads; ++h) {
        if (!mine(i++)) continue;
        AttentionArgs g = item(seq, row, 1, h);
        g.split_begin = split;
        g.split_end = split + 1;
        g.state = state + int64_t{h} * group_ * stride_;
        set_.attend(g);
      }
    });
  }

  // Each head's parts in ascending order into the first of them.
  void merge_splits() const {
    float* first = nullptr;
    each_split([&](uint32_t, int64_t row, int32_t split, float* state) {
      if (split == first_split(position(row))) first = state;
      const bool last = split + 1 == splits_of(position(row) + 1);
      for (int32_t h = 0; h < a_.heads; ++h) {
        if ((row * a_.heads + h) % call_.threads != call_.thread) continue;
        if (state != first) set_.merge(first + h * stride_, state + h * stride_, a_.head_dim);
        if (last) finish(row, h, first + h * stride_);
      }
    });
  }

  const kit::OpCall& call_;
  const decltype(motley_attr::attention)& a_;
  const kit::KvLayer& layer_;
  const KernelSet& set_;
  const int32_t group_, rows_per_item_;
  const int64_t stride_;
  float *const scratch_, *const states_;
};

}  // namespace

int64_t attention_scratch_bytes(int64_t head_dim) {
  return 4 * (attention_scratch_floats(head_dim) + kAttentionQueries * state_floats(head_dim));
}

void run_attention(const kit::OpCall& call) { Attention(call).run(); }

}  // namespace motley::cpu
