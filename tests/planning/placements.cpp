#include "planning/placements.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.hpp"
#include "planning/step_shape.hpp"

namespace motley::testing {
namespace {

// Ends of the parts of `count` units by shares.
std::vector<int64_t> ends_of(int64_t count, const std::vector<double>& shares) {
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int64_t> ends;
  double done = 0;
  for (const double share : shares) {
    done += share;
    ends.push_back(std::llround(static_cast<double>(count) * done / sum));
  }
  return ends;
}

// Queries [begin, end) of every KV head's.
void replicate(const ModelShape& shape, int64_t begin, int64_t end, Shard* shard) {
  if (begin == end) return;
  const int64_t each = shape.query_heads_per_kv();
  shard->kv_heads = {{0, shape.kv_heads}};
  for (int64_t kv = 0; kv < shape.kv_heads; ++kv) shard->query_heads.push_back({kv * each + begin, kv * each + end});
}

}  // namespace

Placement place(const ModelShape& shape, const DeviceSet& devices, const std::vector<StageParts>& stages) {
  Placement placement;
  placement.epoch = 1;
  placement.block_size = kKvBlockSize;
  placement.kv_dtype = MOTLEY_F32;
  Lane lane;
  lane.kv_blocks = kKvBlocks;
  std::vector<double> layers;
  for (const StageParts& stage : stages) layers.push_back(stage.layers);
  const std::vector<int64_t> layer_ends = ends_of(static_cast<int64_t>(shape.layers.size()), layers);
  int64_t layer = 0;
  for (size_t s = 0; s < stages.size(); ++s) {
    Stage stage;
    stage.layer_begin = static_cast<uint32_t>(layer);
    layer = layer_ends[s];
    stage.layer_end = static_cast<uint32_t>(layer);
    std::vector<double> heads, ffn, vocab;
    for (const Part& part : stages[s].parts) {
      heads.push_back(part.heads);
      ffn.push_back(part.ffn);
      vocab.push_back(part.vocab);
    }
    const int64_t head_units = stages[s].replicates ? shape.query_heads_per_kv() : shape.kv_heads;
    const auto head_ends = ends_of(head_units, heads), vocab_ends = ends_of(shape.vocab, vocab);
    const auto ffn_ends = ends_of(shape.ffn_columns / shape.ffn_unit, ffn);
    int64_t head = 0, column = 0, row = 0;
    for (size_t i = 0; i < stages[s].parts.size(); ++i) {
      Shard shard;
      shard.device = devices.listed(stages[s].parts[i].device).description.name;
      const auto take = [](int64_t* at, int64_t end) {
        std::vector<UnitRange> ranges;
        if (*at < end) ranges.push_back({*at, end});
        *at = end;
        return ranges;
      };
      if (stages[s].replicates) {
        replicate(shape, std::exchange(head, head_ends[i]), head_ends[i], &shard);
      } else {
        shard.kv_heads = take(&head, head_ends[i]);
      }
      shard.ffn_columns = take(&column, ffn_ends[i] * shape.ffn_unit);
      if (s == 0 || s + 1 == stages.size()) shard.vocab_rows = take(&row, vocab_ends[i]);
      if (const size_t partner = stages[s].parts[i].partner; partner != SIZE_MAX && !shard.kv_heads.empty())
        shard.partner = devices.listed(partner).description.name;
      if (!shard.kv_heads.empty()) stage.kv_owners.push_back(shard.kv_owner());
      stage.shards.push_back(std::move(shard));
    }
    lane.stages.push_back(std::move(stage));
  }
  placement.lanes.push_back(std::move(lane));
  return placement;
}

Placement on_one(const ModelShape& shape, const DeviceSet& devices, size_t device) {
  return place(shape, devices, {{1, {{device}}}});
}

Placement in_parallel(const ModelShape& shape, const DeviceSet& devices, const std::vector<double>& shares) {
  StageParts stage;
  for (size_t d = 0; d < shares.size(); ++d) stage.parts.push_back({d, shares[d], shares[d], shares[d]});
  return place(shape, devices, {stage});
}

Placement in_line(const ModelShape& shape, const DeviceSet& devices, const std::vector<double>& shares) {
  std::vector<StageParts> stages;
  for (size_t d = 0; d < shares.size(); ++d) stages.push_back({shares[d], {{d}}});
  return place(shape, devices, stages);
}

}  // namespace motley::testing
