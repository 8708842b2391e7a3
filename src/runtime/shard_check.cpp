#include "runtime/shard_check.hpp"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "model/axes.hpp"

namespace motley {

std::vector<UnitRange> query_heads_of(const Shard& shard, int64_t per_kv_head) {
  if (!shard.query_heads.empty()) return shard.query_heads;
  std::vector<UnitRange> heads;
  for (const UnitRange& range : shard.kv_heads) heads.push_back({range.begin * per_kv_head, range.end * per_kv_head});
  return heads;
}

namespace {

Status check_cover(std::vector<UnitRange> ranges, int64_t count, std::string_view axis) {
  std::sort(ranges.begin(), ranges.end(), [](UnitRange a, UnitRange b) { return a.begin < b.begin; });
  int64_t at = 0;
  for (const UnitRange& range : ranges) {
    if (range.begin != at || range.end < range.begin || range.end > count)
      return invalid_argument("the shards' {} do not cover 0 to {} once each: [{}, {}) after {}", axis, count,
                              range.begin, range.end, at);
    at = range.end;
  }
  if (at != count) return invalid_argument("the shards hold {} of {} {}", at, count, axis);
  return ok_status();
}

std::vector<int64_t> items_of(const std::vector<UnitRange>& ranges) {
  std::vector<int64_t> items;
  for (const UnitRange& range : ranges) {
    for (int64_t i = range.begin; i < range.end; ++i) items.push_back(i);
  }
  return items;
}

// Attention pairs a shard's query heads with its KV heads in order, the same number with each.
Status check_queries(const Shard& shard, int64_t kv_heads, int64_t per_kv_head) {
  if (shard.query_heads.empty()) return ok_status();
  for (const UnitRange& range : shard.kv_heads) {
    if (range.begin < 0 || range.end > kv_heads || range.end <= range.begin)
      return invalid_argument("KV heads [{}, {}) of {} are not there", range.begin, range.end, kv_heads);
  }
  for (const UnitRange& range : shard.query_heads) {
    if (range.begin < 0 || range.end > kv_heads * per_kv_head || range.end <= range.begin)
      return invalid_argument("query heads [{}, {}) of {} are not there", range.begin, range.end,
                              kv_heads * per_kv_head);
  }
  const std::vector<int64_t> held = items_of(shard.kv_heads), queries = items_of(shard.query_heads);
  const size_t each = held.empty() ? 0 : queries.size() / held.size();
  for (size_t i = 0; i < queries.size(); ++i) {
    if (each == 0 || queries.size() != each * held.size() || queries[i] / per_kv_head != held[i / each])
      return invalid_argument("{} holds {} query heads that do not belong to its {} KV heads, as many to each",
                              shard.device, queries.size(), held.size());
  }
  return ok_status();
}

Status check_heads(const Stage& stage, int64_t kv_heads, int64_t per_kv_head) {
  std::vector<UnitRange> queries;
  for (const Shard& shard : stage.shards) {
    RETURN_IF_ERROR(check_queries(shard, kv_heads, per_kv_head));
    const std::vector<UnitRange> some = query_heads_of(shard, per_kv_head);
    queries.insert(queries.end(), some.begin(), some.end());
  }
  return check_cover(std::move(queries), kv_heads * per_kv_head, "query heads");
}

Status check_stage(const ModelAxes& axes, const Stage& stage, int64_t queries_per_kv_head, bool with_vocab) {
  for (const Shard& shard : stage.shards) {
    if (!shard.partner.empty() && (shard.kv_heads.empty() || shard.partner == shard.device))
      return invalid_argument("{} names {} as its partner: another device, of a shard with heads", shard.device,
                              shard.partner);
  }
  std::array<std::vector<UnitRange>, 3> all;
  for (const Shard& shard : stage.shards) {
    const auto append = [](std::vector<UnitRange>* to, const std::vector<UnitRange>& from) {
      to->insert(to->end(), from.begin(), from.end());
    };
    append(&all[0], shard.ffn_columns);
    append(&all[1], shard.vocab_rows);
    for (const int32_t id : shard.experts) all[2].push_back({id, int64_t{id} + 1});
  }
  RETURN_IF_ERROR(check_heads(stage, axes.kv_heads, queries_per_kv_head));
  RETURN_IF_ERROR(check_cover(all[0], axes.ffn_columns, "FFN columns"));
  if (with_vocab) RETURN_IF_ERROR(check_cover(all[1], axes.vocab, "vocabulary rows"));
  return check_cover(all[2], axes.experts, "experts");
}

}  // namespace

Status check_shards(const Model& model, const Lane& lane, size_t stage) {
  uint32_t layer = 0;
  for (const Stage& each : lane.stages) {
    if (each.layer_begin != layer || each.layer_end <= each.layer_begin || each.shards.empty())
      return invalid_argument("the stages do not hold each layer once: [{}, {}) after {}", each.layer_begin,
                              each.layer_end, layer);
    layer = each.layer_end;
  }
  if (layer != model.config().layers)
    return invalid_argument("the stages hold {} of {} layers", layer, model.config().layers);
  const bool vocab = stage == 0 || stage + 1 == lane.stages.size();
  return check_stage(axes_of(model), lane.stages[stage], int64_t{model.config().heads} / model.config().kv_heads,
                     vocab);
}

}  // namespace motley
