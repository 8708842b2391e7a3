#include "runtime/device_part.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "runtime/kv_request.hpp"

namespace motley {

std::vector<std::unique_ptr<Segment>> segments_of(const ShardGraph& shard) {
  std::vector<int32_t> kept;  // beside what later nodes read
  for (const ShardPiece& piece : shard.pieces) {
    if (piece.value >= 0) kept.push_back(piece.value);
    kept.insert(kept.end(), piece.gives.begin(), piece.gives.end());
  }
  std::vector<std::unique_ptr<Segment>> segments;
  for (const ShardPiece& piece : shard.pieces) {
    segments.emplace_back();
    if (piece.kind != ShardPiece::Kind::kProgram) continue;
    segments.back() = std::make_unique<Segment>(Segment::of_nodes(
        shard.graph, piece.cut, piece.layer_begin, piece.layer_end, piece.node_begin, piece.node_end, kept));
  }
  return segments;
}

Result<std::shared_ptr<const DevicePart>> DevicePart::create(const Model& model, const Device& device, ShardGraph shard,
                                                             PartOptions options, Holdings* holdings) {
  std::shared_ptr<DevicePart> part(new DevicePart(model, device, std::move(shard), std::move(options)));
  const ShardGraph& graph = part->shard_;
  for (const ShardWeight& weight : graph.weights) {
    if (part->options_.stop.stop_requested()) return error(MOTLEY_CANCELLED, "nobody waits for the plan any more");
    ASSIGN_OR_RETURN(part->weights_.emplace_back(), holdings->weight(device, weight));
  }
  if (!graph.kv_layers.empty()) {
    ASSIGN_OR_RETURN(part->kv_, holdings->kv(device, part->options_.pool, graph.layer_begin, graph.kv_heads,
                                             graph.kv_layers, part->options_.kv));
  }
  RETURN_IF_ERROR(part->compile(holdings));
  return std::shared_ptr<const DevicePart>(std::move(part));
}

Result<ProgramsHandle> DevicePart::compile(const Segment& segment, std::span<const uint32_t> buckets) const {
  std::vector<motley_weight*> weights;
  for (const int32_t id : segment.graph_weights()) weights.push_back(weights_[static_cast<size_t>(id)]->weight.get());
  const motley_segment view = segment.view();
  if (options_.cache == nullptr) return device_.compile(view, weights, buckets);
  return options_.cache->compile(device_, options_.identity, view, weights, buckets);
}

// Drops the buckets that are why the segment does not compile, where others do; only tells of them where none does.
void DevicePart::drop_uncompiled(const Segment& segment, const Status& failed) {
  const auto other_reason = [](const Status& status) {
    return status.code() == MOTLEY_RESOURCE_EXHAUSTED || status.code() == MOTLEY_UNAVAILABLE ||
           status.code() == MOTLEY_CANCELLED || status.code() == MOTLEY_DEADLINE_EXCEEDED;
  };
  if (options_.uncompiled == nullptr || other_reason(failed)) return;
  std::vector<uint32_t> good;
  std::map<uint32_t, Status> bad;
  for (const uint32_t rows : options_.buckets) {
    if (options_.stop.stop_requested()) return;
    const auto alone = compile(segment, std::span(&rows, 1));
    if (!alone.ok() && other_reason(alone.error())) return;
    if (alone.ok()) {
      good.push_back(rows);
    } else {
      bad.emplace(rows, alone.error());
    }
  }
  if (bad.empty() || (good.empty() && !options_.others)) return;
  for (const auto& [rows, why] : bad) options_.uncompiled->add(rows, why.message());
  if (!good.empty()) options_.buckets = std::move(good);
}

Result<std::shared_ptr<const ProgramsHandle>> DevicePart::programs_of(const Segment& segment,
                                                                      Holdings* holdings) const {
  if (!options_.shares_programs) {
    ASSIGN_OR_RETURN(ProgramsHandle own, compile(segment, options_.buckets));
    return std::make_shared<const ProgramsHandle>(std::move(own));
  }
  std::vector<const void*> weights;  // that are held as long as the programs are
  for (const int32_t id : segment.graph_weights()) weights.push_back(weights_[static_cast<size_t>(id)].get());
  return holdings->programs(
      device_,
      fmt::format("{:x} on {} for {}", segment.view().hash, fmt::join(weights, " "), fmt::join(options_.buckets, " ")),
      [&] { return compile(segment, options_.buckets); });
}

Status DevicePart::compile(Holdings* holdings) {
  for (;;) {
    const size_t buckets = options_.buckets.size();
    const Status status = compile_all(holdings);
    if (status.ok() || options_.buckets.size() == buckets) return status;
    programs_.clear();  // each has the same buckets
  }
}

Status DevicePart::compile_all(Holdings* holdings) {
  for (const auto& segment : segments_of(shard_)) {
    programs_.emplace_back();
    if (segment == nullptr) continue;
    if (options_.stop.stop_requested()) return error(MOTLEY_CANCELLED, "nobody waits for the plan any more");
    auto compiled = programs_of(*segment, holdings);
    if (!compiled.ok()) drop_uncompiled(*segment, compiled.error());
    auto made = std::make_unique<PartProgram>();
    ASSIGN_OR_RETURN(made->programs, std::move(compiled));
    made->segment = std::move(*segment);
    programs_.back() = std::move(made);
  }
  return ok_status();
}

Status DevicePart::clear_kv(const QueueHandle& queue, uint32_t first_blocks, uint64_t timeout_ns) const {
  constexpr uint32_t kBlocksAtOnce = 16;
  if (shard_.kv_layers.empty()) return ok_status();
  const KvRequest request(shard_.kv_layers, options_.kv.dtype, options_.kv.block_size, options_.kv.blocks);
  ASSIGN_OR_RETURN(const motley_kv_layout layout, device_.kv_layout(request.desc));
  const std::vector<std::byte> zeros(layout.canonical_bytes_per_block * kBlocksAtOnce);
  std::vector<int32_t> blocks;
  const uint32_t end = std::min(first_blocks, options_.kv.blocks);
  for (uint32_t begin = 0; begin < end; begin += kBlocksAtOnce) {
    blocks.resize(std::min(kBlocksAtOnce, end - begin));
    std::iota(blocks.begin(), blocks.end(), static_cast<int32_t>(begin));
    const std::span<const std::byte> from = std::span(zeros).first(layout.canonical_bytes_per_block * blocks.size());
    ASSIGN_OR_RETURN(const EventHandle event, device_.import_kv(queue, kv_->handle, blocks,
                                                                static_cast<uint32_t>(shard_.kv_layers.size()), from));
    RETURN_IF_ERROR(device_.wait(event, timeout_ns));
  }
  return ok_status();
}

}  // namespace motley
