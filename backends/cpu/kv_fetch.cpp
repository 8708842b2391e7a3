// SPDX-License-Identifier: Apache-2.0
#include "cpu/kv_fetch.hpp"

#include <algorithm>

#include "cpu/weight.hpp"
#include "kit/host.hpp"

namespace motley::cpu {
namespace {

// The blocks of a sequence that its row sees, if that is a generated one.
kit::Range blocks_seen(const kit::OpCall& call, const kit::KvLayer& layer, uint32_t seq) {
  const motley_batch& b = *call.batch;
  const int64_t size = call.kv->block_size, context = b.seq_context[seq];
  if (!b.generated[b.seq_row_begin[seq]]) return {0, 0};
  return {layer.window > 0 ? std::max<int64_t>(0, context - layer.window) / size : 0, (context + size - 1) / size};
}

// Of a product that asks: rows x columns of its matrices.
int64_t work_of(const kit::Plan& plan, const kit::PlanOp& op) {
  if (op.kernel != run_matmuls) return 0;
  const auto& data = *static_cast<const MatmulData*>(op.data.get());
  int64_t rows = 0;
  for (size_t i = 0; i < data.rows.size(); ++i) {
    const kit::Weight& weight = *plan.weights[static_cast<size_t>(op.weight[2 * i])];
    const PanelKind kind = static_cast<const PackedWeight&>(weight).matrix().kind;
    if (data.set->fetches && is_quantised(kind) && !has_halves(kind)) rows += data.rows[i].count;
  }
  return rows * plan.values[static_cast<size_t>(op.in[0])].width;
}

}  // namespace

void share_fetches(kit::Plan& plan) {
  static const kit::HostCaches caches = kit::host_caches();
  for (size_t begin = 0, end = 0; end < plan.ops.size(); ++end) {
    if (plan.ops[end].kernel == run_grouped) begin = end + 1;  // experts' weights would push out what was asked for
    if (plan.ops[end].kind != MOTLEY_OP_PAGED_ATTENTION) continue;
    FetchShare share;
    share.layer = plan.ops[end].attr.attention.layer;
    share.bytes = caches.second * plan.threads + caches.third / 2;  // the other half is the weights'
    for (size_t i = begin; i < end; ++i) share.all += work_of(plan, plan.ops[i]);
    for (; begin < end; ++begin) {
      const int64_t work = work_of(plan, plan.ops[begin]);
      if (work == 0) continue;
      share.from = share.to, share.to += work;
      auto data = std::make_shared<MatmulData>(*static_cast<const MatmulData*>(plan.ops[begin].data.get()));
      data->fetch = share;
      plan.ops[begin].data = std::move(data);
    }
  }
}

KvLines* KvFetch::of(const kit::OpCall& call, const FetchShare& share) {
  if (share.layer < 0 || !call.kv) return nullptr;
  const motley_batch& b = *call.batch;
  const kit::KvLayer& layer = call.kv->layers[static_cast<size_t>(share.layer)];
  const int64_t bytes = layer.block_stride * call.kv->element_bytes;
  int64_t blocks = 0;
  for (uint32_t s = 0; s < b.seqs; ++s) {
    const kit::Range seen = blocks_seen(call, layer, s);
    blocks += seen.end - seen.begin;
  }
  blocks = std::min(blocks, share.bytes / (2 * bytes));
  const int64_t first = blocks * share.from / share.all, count = blocks * share.to / share.all - first;
  kit::Range mine = call.part(count);
  mine.begin += first, mine.end += first;
  mine.end = std::min(mine.end, mine.begin + static_cast<int64_t>(runs_.size()) / 2);
  int64_t at = 0;  // blocks of the sequences before
  for (uint32_t s = 0; s < b.seqs && at < mine.end; ++s) {
    const kit::Range seen = blocks_seen(call, layer, s);
    const int64_t count_here = seen.end - seen.begin;
    for (int64_t i = std::max<int64_t>(0, mine.begin - at); i < std::min(count_here, mine.end - at); ++i) {
      const int64_t block = b.blocks[b.seq_block_begin[s] + seen.begin + i];
      if (block < 0) continue;  // lies elsewhere
      runs_[static_cast<size_t>(fetch_.count++)] = reinterpret_cast<const uint8_t*>(layer.k) + block * bytes;
      runs_[static_cast<size_t>(fetch_.count++)] = reinterpret_cast<const uint8_t*>(layer.v) + block * bytes;
    }
    at += count_here;
  }
  fetch_.runs = runs_.data(), fetch_.run_lines = bytes / kLineBytes;
  // Evenly over the blocks of all tiles, of eight rows and two panels each; of more than six lines a core waits for
  // them.
  const int64_t work = 8 * 2 * kPanelRows * kBlockColumns;  // of a block
  const int64_t all = std::max<int64_t>(1, (share.to - share.from) * call.in[0].rows / (work * call.threads));
  fetch_.with_block = std::clamp<int64_t>((fetch_.count * fetch_.run_lines + all - 1) / all, 1, 6);
  return fetch_.count > 0 && fetch_.run_lines > 0 ? &fetch_ : nullptr;
}

}  // namespace motley::cpu
