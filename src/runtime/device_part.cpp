#include "runtime/device_part.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/kv_request.hpp"

namespace motley {
namespace {

constexpr uint32_t kRowsOfFirstBucket = 16;

}  // namespace

std::vector<uint32_t> row_buckets(uint32_t rows_max) {
  std::vector<uint32_t> buckets;
  for (uint32_t rows = kRowsOfFirstBucket; rows < rows_max; rows *= 4) buckets.push_back(rows);
  buckets.push_back(rows_max);
  return buckets;
}

Result<PackedWeight> pack_weight(const Model& model, const ShardWeight& weight, const Device& device) {
  const GraphWeight& graph_weight = model.graph().weights[weight.source];
  const WeightSource& source = model.weight(weight.source);
  ASSIGN_OR_RETURN(WeightBytes bytes, model.read(weight.source));
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = graph_weight.name.c_str();
  desc.dtype = source.dtype;
  desc.format = source.dtype;
  desc.uses = graph_weight.uses;
  desc.experts = source.experts;
  desc.rows = source.rows;
  desc.cols = source.cols;
  desc.data = bytes.data.data();
  desc.bytes = bytes.data.size();
  desc.row_ranges = weight.rows.data();
  desc.row_range_count = static_cast<uint32_t>(weight.rows.size());
  desc.col_ranges = weight.cols.data();
  desc.col_range_count = static_cast<uint32_t>(weight.cols.size());
  desc.expert_ranges = weight.experts.data();
  desc.expert_range_count = static_cast<uint32_t>(weight.experts.size());
  ASSIGN_OR_RETURN(PackedWeight packed, device.pack(desc));
  if (packed.info.aliases_source == 0) {
    model.release(weight.source);
  } else {
    packed.source = std::move(bytes.made);
  }
  return packed;
}

Result<std::shared_ptr<const DevicePart>> DevicePart::create(const Model& model, const Device& device, ShardGraph shard,
                                                             PartOptions options) {
  std::shared_ptr<DevicePart> part(new DevicePart(model, device, std::move(shard), std::move(options)));
  RETURN_IF_ERROR(part->pack_weights());
  RETURN_IF_ERROR(part->make_kv());
  RETURN_IF_ERROR(part->compile());
  return std::shared_ptr<const DevicePart>(std::move(part));
}

Status DevicePart::pack_weights() {
  for (const ShardWeight& weight : shard_.weights) {
    ASSIGN_OR_RETURN(PackedWeight packed, pack_weight(model_, weight, device_));
    weight_bytes_ += packed.info.bytes;
    weights_.push_back(std::move(packed));
  }
  return ok_status();
}

Status DevicePart::make_kv() {
  if (shard_.kv_layers.empty()) return ok_status();
  const KvRequest request(shard_.kv_layers, options_.kv_dtype, options_.block_size, options_.kv_blocks);
  ASSIGN_OR_RETURN(kv_, device_.create_kv(request.desc));
  return ok_status();
}

Status DevicePart::compile() {
  std::vector<int32_t> kept;  // beside what later nodes read
  for (const ShardPiece& piece : shard_.pieces) {
    if (piece.value >= 0) kept.push_back(piece.value);
    kept.insert(kept.end(), piece.gives.begin(), piece.gives.end());
  }
  for (const ShardPiece& piece : shard_.pieces) {
    programs_.emplace_back();
    if (piece.kind != ShardPiece::Kind::kProgram) continue;
    auto made = std::make_unique<PartProgram>();
    made->segment = Segment::of_nodes(shard_.graph, piece.cut, piece.layer_begin, piece.layer_end, piece.node_begin,
                                      piece.node_end, kept);
    std::vector<motley_weight*> weights;
    for (const int32_t id : made->segment.graph_weights())
      weights.push_back(weights_[static_cast<size_t>(id)].weight.get());
    ASSIGN_OR_RETURN(made->programs, device_.compile(made->segment.view(), weights, options_.buckets));
    programs_.back() = std::move(made);
  }
  return ok_status();
}

Status DevicePart::clear_kv(const QueueHandle& queue, uint32_t first_blocks, uint64_t timeout_ns) const {
  constexpr uint32_t kBlocksAtOnce = 16;
  if (shard_.kv_layers.empty()) return ok_status();
  const KvRequest request(shard_.kv_layers, options_.kv_dtype, options_.block_size, options_.kv_blocks);
  ASSIGN_OR_RETURN(const motley_kv_layout layout, device_.kv_layout(request.desc));
  const std::vector<std::byte> zeros(layout.canonical_bytes_per_block * kBlocksAtOnce);
  std::vector<int32_t> blocks;
  const uint32_t end = std::min(first_blocks, options_.kv_blocks);
  for (uint32_t begin = 0; begin < end; begin += kBlocksAtOnce) {
    blocks.resize(std::min(kBlocksAtOnce, end - begin));
    std::iota(blocks.begin(), blocks.end(), static_cast<int32_t>(begin));
    const std::span<const std::byte> from = std::span(zeros).first(layout.canonical_bytes_per_block * blocks.size());
    ASSIGN_OR_RETURN(const EventHandle event,
                     device_.import_kv(queue, kv_, blocks, static_cast<uint32_t>(shard_.kv_layers.size()), from));
    RETURN_IF_ERROR(device_.wait(event, timeout_ns));
  }
  return ok_status();
}

}  // namespace motley
