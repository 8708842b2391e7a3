// What a driver is made of; how it runs is in driver_run.cpp.
#include "runtime/driver.hpp"

#include <algorithm>
#include <map>
#include <random>
#include <utility>

namespace motley {

Driver::Driver(std::shared_ptr<const DevicePart> part, DriverLinks links, const DriverOptions& options,
               const Clock& clock, Waiter waiter)
    : part_(std::move(part)),
      model_(part_->model()),
      device_(part_->device()),
      shard_(part_->shard()),
      links_(std::move(links)),
      options_(options),
      clock_(clock),
      waiter_(std::move(waiter)),
      trace_(options_.trace, device_, options_.name, options_.simulated),
      busy_(options_.busy ? options_.busy : std::make_shared<BusyTime>()) {
  for (const auto* devices : {&links_.stage_devices, &links_.send_devices, &links_.partner_devices}) {
    for (const std::string& device : *devices)
      if (device != options_.name) bytes_to_[device] = 0;
  }
}

DriverWork Driver::work() const {
  DriverWork work{programs_, rows_, bytes_moved_, busy_ns_};
  for (const auto& [device, bytes] : bytes_to_) work.bytes_to[device] = bytes;
  return work;
}

Result<std::unique_ptr<Driver>> Driver::create(std::shared_ptr<const DevicePart> part, DriverLinks links,
                                               const DriverOptions& options, const Clock& clock) {
  ASSIGN_OR_RETURN(Waiter waiter, Waiter::create());
  std::unique_ptr<Driver> driver(new Driver(std::move(part), std::move(links), options, clock, std::move(waiter)));
  ASSIGN_OR_RETURN(driver->queue_, driver->device_.create_queue());
  RETURN_IF_ERROR(driver->make_buffers());
  RETURN_IF_ERROR(driver->make_tape());
  return driver;
}

Result<HostBuffer*> Driver::make_buffer(uint64_t bytes) {
  ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device_, bytes));
  buffers_.push_back(std::make_unique<HostBuffer>(std::move(buffer)));
  if (trace_.on()) buffers_.back()->observe(&trace_);
  return buffers_.back().get();
}

void Driver::bind(int32_t value, HostBuffer* buffer) {
  if (value >= 0) values_[value].assign(options_.steps_ahead + 1, buffer);
}

Status Driver::make_buffers() {
  const Graph& graph = shard_.graph;
  const uint64_t heads = options_.logit_rows_max;
  if (shard_.role != ShardRole::kAttention) {
    ASSIGN_OR_RETURN(residual_, make_buffer(part_->rows_max() * row_bytes(graph.residual)));
    bind(graph.residual, residual_);
  }
  if (shard_.embeds || shard_.samples) {
    ASSIGN_OR_RETURN(slots_, make_buffer(uint64_t{options_.slots} * sizeof(int32_t)));
    bind(graph.token_slots, slots_);
  }
  for (const ShardPiece& piece : shard_.pieces) {
    if (piece.kind != ShardPiece::Kind::kLogits) continue;
    ASSIGN_OR_RETURN(own_logits_, make_buffer(heads * static_cast<uint64_t>(shard_.vocab_rows) * sizeof(float)));
    bind(piece.value, own_logits_);
  }
  if (shard_.samples) {
    ASSIGN_OR_RETURN(all_logits_, make_buffer(heads * model_.config().vocab_size * sizeof(float)));
    bind(graph.logits, all_logits_);
    RETURN_IF_ERROR(make_results());
  }
  return make_border_buffers();
}

Status Driver::fill_residual(uint64_t timeout_ns) {
  constexpr size_t kPeriod = 65'537;  // a prime: rows of any width begin elsewhere in it
  if (residual_ == nullptr) return ok_status();
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(kPeriod);
  for (float& number : numbers) number = normal(random);
  RETURN_IF_ERROR(residual_->acquire(timeout_ns));
  std::span<float> rows = residual_->view<float>(residual_->bytes() / sizeof(float));
  while (!rows.empty()) {
    const size_t count = std::min(kPeriod, rows.size());
    std::copy_n(numbers.begin(), count, rows.begin());
    rows = rows.subspan(count);
  }
  RETURN_IF_ERROR(residual_->push(queue_, residual_->bytes()));
  return residual_->acquire(timeout_ns);
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

uint64_t Driver::row_bytes(int32_t value) const {
  const motley_value& shape = shard_.graph.values[static_cast<size_t>(value)].shape;
  uint64_t elements = 1;
  for (int32_t axis = 1; axis < shape.rank; ++axis) elements *= static_cast<uint64_t>(shape.dims[axis]);
  return elements * sizeof(float);  // f32 or i32
}

namespace {

// Calls visit(value) for what a piece reads or writes across its borders.
template <typename Visit>
void visit_borders(const DevicePart& part, size_t piece, const Visit& visit) {
  if (const PartProgram* program = part.program(piece)) {
    for (const auto* side : {&program->segment.inputs(), &program->segment.outputs()}) {
      for (const int32_t id : *side) visit(program->segment.graph_values()[static_cast<size_t>(id)]);
    }
    return;
  }
  const ShardPiece& each = part.shard().pieces[piece];
  if (each.value >= 0) visit(each.value);
  for (const int32_t id : each.gives) visit(id);
  for (const int32_t id : each.takes) visit(id);
}

}  // namespace

// Of the values that cross from piece to piece: those that do not live at the same time share a buffer.
Status Driver::make_border_buffers() {
  struct Life {
    size_t first = 0, last = 0;
  };
  std::map<int32_t, Life> lives;
  std::vector<int32_t> order;  // by first
  for (size_t piece = 0; piece < shard_.pieces.size(); ++piece) {
    visit_borders(*part_, piece, [&](int32_t value) {
      if (values_.contains(value)) return;
      const auto [life, made] = lives.try_emplace(value, Life{piece, piece});
      life->second.last = piece;
      if (made) order.push_back(value);
    });
  }
  std::vector<std::pair<HostBuffer*, size_t>> free_after;  // buffer, the last piece that needs it
  for (const int32_t value : order) {
    const uint64_t bytes = part_->rows_max() * row_bytes(value);
    const Life life = lives.at(value);
    const auto found = std::find_if(free_after.begin(), free_after.end(), [&](const auto& each) {
      return each.second < life.first && each.first->bytes() == bytes;
    });
    if (found != free_after.end()) {
      found->second = life.last;
      bind(value, found->first);
      continue;
    }
    ASSIGN_OR_RETURN(HostBuffer * buffer, make_buffer(bytes));
    free_after.emplace_back(buffer, life.last);
    bind(value, buffer);
  }
  return ok_status();
}

HostBuffer* Driver::buffer_of(int32_t value, size_t set) const {
  const auto found = values_.find(value);
  return found == values_.end() ? nullptr : found->second[set];
}

void Driver::add(TapeOp op, HostBuffer* buffer, bool contributes) {
  tape_.push_back({op, {}, buffer, contributes, {}, {}});
  meets_ = true;
}

Status Driver::add_program(const ShardPiece& piece, const PartProgram& compiled) {
  const Segment& segment = compiled.segment;
  TapeProgram program;
  program.device = &device_;
  program.queue = &queue_;
  program.programs = compiled.programs.get();
  program.kv = segment.uses_kv() ? part_->kv() : nullptr;
  program.cut = piece.cut;
  program.layer_begin = piece.layer_begin;
  program.layer_end = piece.layer_end;
  program.buckets = part_->options().buckets;
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
  tape_.push_back({TapeOp::kProgram, std::move(program), nullptr, true, {}, {}});
  return ok_status();
}

void Driver::add_partner(const ShardPiece& piece) {
  add(TapeOp::kPartner);
  for (const int32_t id : piece.gives) tape_.back().gives.push_back({buffer_of(id, 0), row_bytes(id)});
  for (const int32_t id : piece.takes) tape_.back().takes.push_back({buffer_of(id, 0), row_bytes(id)});
}

Status Driver::make_tape() {
  if (links_.receive_from) add(TapeOp::kReceive);
  for (size_t i = 0; i < shard_.pieces.size(); ++i) {
    const ShardPiece& piece = shard_.pieces[i];
    switch (piece.kind) {
      case ShardPiece::Kind::kProgram: RETURN_IF_ERROR(add_program(piece, *part_->program(i))); break;
      case ShardPiece::Kind::kReduce: add(TapeOp::kReduce, buffer_of(piece.value, 0), piece.contributes); break;
      case ShardPiece::Kind::kPartner: add_partner(piece); break;
      case ShardPiece::Kind::kLogits: add(TapeOp::kLogits); break;
    }
  }
  if (!links_.send_to.empty()) add(TapeOp::kSend);
  if (!links_.embedders.empty() && (shard_.samples || shard_.embeds)) add(TapeOp::kTokens);
  return ok_status();
}

}  // namespace motley
