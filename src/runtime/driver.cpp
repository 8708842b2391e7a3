// What a driver is made of; how it runs is in driver_run.cpp.
#include "runtime/driver.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "runtime/kv_request.hpp"

namespace motley {

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

Driver::Driver(const Model& model, const Device& device, ShardGraph shard, DriverLinks links,
               const DriverOptions& options, const Clock& clock, Waiter waiter)
    : model_(model),
      device_(device),
      shard_(std::move(shard)),
      links_(std::move(links)),
      options_(options),
      clock_(clock),
      waiter_(std::move(waiter)),
      trace_(options_.trace, device_, options_.name, options_.simulated) {}

Result<std::unique_ptr<Driver>> Driver::create(const Model& model, const Device& device, ShardGraph shard,
                                               DriverLinks links, const DriverOptions& options, const Clock& clock) {
  ASSIGN_OR_RETURN(Waiter waiter, Waiter::create());
  std::unique_ptr<Driver> driver(
      new Driver(model, device, std::move(shard), std::move(links), options, clock, std::move(waiter)));
  RETURN_IF_ERROR(driver->pack_weights());
  RETURN_IF_ERROR(driver->make_kv());
  RETURN_IF_ERROR(driver->make_buffers());
  RETURN_IF_ERROR(driver->compile());
  return driver;
}

Status Driver::pack_weights() {
  for (const ShardWeight& weight : shard_.weights) {
    ASSIGN_OR_RETURN(PackedWeight packed, pack_weight(model_, weight, device_));
    weight_bytes_ += packed.info.bytes;
    weights_.push_back(std::move(packed));
  }
  return ok_status();
}

Status Driver::make_kv() {
  ASSIGN_OR_RETURN(queue_, device_.create_queue());
  if (shard_.kv_layers.empty()) return ok_status();
  const KvRequest request(shard_.kv_layers, options_.kv_dtype, options_.block_size, options_.kv_blocks);
  ASSIGN_OR_RETURN(kv_, device_.create_kv(request.desc));
  return ok_status();
}

Status Driver::clear_kv(uint32_t first_blocks, uint64_t timeout_ns) {
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
                     device_.import_kv(queue_, kv_, blocks, static_cast<uint32_t>(shard_.kv_layers.size()), from));
    RETURN_IF_ERROR(device_.wait(event, timeout_ns));
  }
  return ok_status();
}

Result<HostBuffer*> Driver::make_buffer(uint64_t bytes) {
  ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device_, bytes));
  buffers_.push_back(std::make_unique<HostBuffer>(std::move(buffer)));
  if (trace_.on()) buffers_.back()->observe(&trace_);
  return buffers_.back().get();
}

Status Driver::make_buffers() {
  const Graph& graph = shard_.graph;
  const uint64_t rows = options_.rows_max, heads = options_.logit_rows_max;
  const auto of_all_sets = [&](int32_t value, HostBuffer* buffer) {
    if (value >= 0) values_[value].assign(options_.steps_ahead + 1, buffer);
  };
  const uint64_t row_bytes = rows * model_.config().hidden * sizeof(float);
  ASSIGN_OR_RETURN(residual_, make_buffer(row_bytes));
  of_all_sets(graph.residual, residual_);
  if (shard_.embeds || shard_.samples) {
    ASSIGN_OR_RETURN(slots_, make_buffer(uint64_t{options_.slots} * sizeof(int32_t)));
    of_all_sets(graph.token_slots, slots_);
  }
  // A summed value is read by the next program, which may write the next one: two take turns.
  std::array<HostBuffer*, 2> exchange = {};
  size_t turn = 0;
  for (const ShardPiece& piece : shard_.pieces) {
    if (piece.kind == ShardPiece::Kind::kReduce && !values_.contains(piece.value)) {
      HostBuffer*& buffer = exchange[turn++ % exchange.size()];
      if (buffer == nullptr) {
        ASSIGN_OR_RETURN(buffer, make_buffer(row_bytes));
      }
      of_all_sets(piece.value, buffer);
    } else if (piece.kind == ShardPiece::Kind::kLogits) {
      ASSIGN_OR_RETURN(own_logits_, make_buffer(heads * static_cast<uint64_t>(shard_.vocab_rows) * sizeof(float)));
      of_all_sets(piece.value, own_logits_);
    }
  }
  if (!shard_.samples) return ok_status();
  ASSIGN_OR_RETURN(all_logits_, make_buffer(heads * model_.config().vocab_size * sizeof(float)));
  of_all_sets(graph.logits, all_logits_);
  return make_results();
}

Status Driver::make_results() {
  const Graph& graph = shard_.graph;
  for (uint32_t i = 0; i <= options_.steps_ahead; ++i) {
    ResultSet& set = results_.emplace_back();
    const auto make = [&](uint64_t elements, int32_t value, std::unique_ptr<HostBuffer>* to) -> Status {
      ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device_, elements * sizeof(int32_t)));
      *to = std::make_unique<HostBuffer>(std::move(buffer));
      if (trace_.on()) (*to)->observe(&trace_);
      values_[value].push_back(to->get());
      return ok_status();
    };
    const uint64_t rows = options_.logit_rows_max;
    RETURN_IF_ERROR(make(rows, graph.sampled_ids, &set.ids));
    RETURN_IF_ERROR(make(rows, graph.sampled_logprobs, &set.logprobs));
    RETURN_IF_ERROR(make(rows * MOTLEY_TOP_MAX, graph.top_ids, &set.top_ids));
    RETURN_IF_ERROR(make(rows * MOTLEY_TOP_MAX, graph.top_logprobs, &set.top_logprobs));
  }
  return ok_status();
}

HostBuffer* Driver::buffer_of(int32_t value, size_t set) const {
  const auto found = values_.find(value);
  return found == values_.end() ? nullptr : found->second[set];
}

void Driver::add(TapeOp op, HostBuffer* buffer, bool contributes) {
  tape_.push_back({op, {}, buffer, contributes});
  meets_ = true;
}

Status Driver::add_program(const ShardPiece& piece) {
  auto compiled = std::make_unique<CompiledPiece>();
  std::vector<int32_t> kept;
  for (const ShardPiece& other : shard_.pieces) {
    if (other.value >= 0) kept.push_back(other.value);
  }
  compiled->segment = Segment::of_nodes(shard_.graph, piece.cut, piece.layer_begin, piece.layer_end, piece.node_begin,
                                        piece.node_end, kept);
  const Segment& segment = compiled->segment;
  std::vector<motley_weight*> weights;
  for (const int32_t id : segment.graph_weights()) weights.push_back(weights_[static_cast<size_t>(id)].weight.get());
  const std::array<uint32_t, 1> buckets = {options_.rows_max};
  ASSIGN_OR_RETURN(compiled->programs, device_.compile(segment.view(), weights, buckets));
  TapeProgram program{&device_,  &queue_,           &compiled->programs, segment.uses_kv() ? kv_.get() : nullptr,
                      piece.cut, piece.layer_begin, piece.layer_end,     {}};
  std::vector<int32_t> borders = segment.inputs();
  for (const int32_t id : segment.outputs()) {
    if (std::find(borders.begin(), borders.end(), id) == borders.end()) borders.push_back(id);
  }
  for (size_t set = 0; set <= options_.steps_ahead; ++set) {
    std::vector<motley_binding> bindings;
    for (const int32_t id : borders) {
      const int32_t value = segment.graph_values()[static_cast<size_t>(id)];
      HostBuffer* buffer = buffer_of(value, set);
      if (buffer == nullptr) {
        return error(MOTLEY_INTERNAL, "value {} crosses a cut but has no buffer",
                     shard_.graph.values[static_cast<size_t>(value)].name);
      }
      bindings.push_back({id, buffer->device_buffer(), 0});
    }
    program.bindings.push_back(std::move(bindings));
  }
  tape_.push_back({TapeOp::kProgram, std::move(program), nullptr, true});
  pieces_.push_back(std::move(compiled));
  return ok_status();
}

Status Driver::compile() {
  if (links_.receive_from) add(TapeOp::kReceive);
  for (const ShardPiece& piece : shard_.pieces) {
    switch (piece.kind) {
      case ShardPiece::Kind::kProgram: RETURN_IF_ERROR(add_program(piece)); break;
      case ShardPiece::Kind::kReduce: add(TapeOp::kReduce, buffer_of(piece.value, 0), piece.contributes); break;
      case ShardPiece::Kind::kLogits: add(TapeOp::kLogits); break;
    }
  }
  if (!links_.send_to.empty()) add(TapeOp::kSend);
  if (!links_.embedders.empty() && (shard_.samples || shard_.embeds)) add(TapeOp::kTokens);
  return ok_status();
}

}  // namespace motley
