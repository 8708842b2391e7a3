#include "runtime/runtime_executor.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/log.hpp"
#include "base/memory_patience.hpp"

namespace motley {
namespace {

// The segments of one device that holds the whole model, in the order in which they run.
constexpr std::array kCuts = {MOTLEY_CUT_EMBED, MOTLEY_CUT_STAGE, MOTLEY_CUT_HEAD, MOTLEY_CUT_SAMPLE};

}  // namespace

KvRequest::KvRequest(const Model& model, int32_t dtype, uint32_t block_size, uint32_t blocks) {
  for (const KvLayer& layer : model.kv_layers()) {
    kv_heads.push_back(static_cast<int32_t>(layer.kv_heads));
    head_dim.push_back(static_cast<int32_t>(layer.head_dim));
    windows.push_back(static_cast<int32_t>(layer.window));
  }
  desc.struct_size = sizeof desc;
  desc.dtype = dtype;
  desc.block_size = block_size;
  desc.blocks = blocks;
  desc.layers = static_cast<uint32_t>(kv_heads.size());
  desc.kv_heads = kv_heads.data();
  desc.head_dim = head_dim.data();
  desc.windows = windows.data();
}

RuntimeExecutor::RuntimeExecutor(const Model& model, const Device& device, const RuntimeOptions& options,
                                 const Clock& clock, Waiter waiter)
    : model_(model), device_(device), options_(options), clock_(clock), waiter_(std::move(waiter)) {}

Result<std::unique_ptr<RuntimeExecutor>> RuntimeExecutor::create(const Model& model, const Placement& placement,
                                                                 const Device& device, const RuntimeOptions& options,
                                                                 const Clock& clock) {
  if (placement.lanes.size() != 1 || placement.lanes[0].stages.size() != 1 ||
      placement.lanes[0].stages[0].shards.size() != 1) {
    return error(MOTLEY_UNIMPLEMENTED, "placements over several devices are not built yet; name one device");
  }
  ASSIGN_OR_RETURN(Waiter waiter, Waiter::create());
  std::unique_ptr<RuntimeExecutor> runtime(new RuntimeExecutor(model, device, options, clock, std::move(waiter)));
  const ModelConfig& config = model.config();
  ExecutorDescription& description = runtime->description_;
  description.epoch = placement.epoch;
  description.vocab_size = config.vocab_size;
  description.positions_max = options.positions_max == 0 ? config.context_length : options.positions_max;
  description.slots = kSlots;
  description.lookahead = kStepsInFlightMax - 1;
  LaneDescription lane;
  lane.pool = {placement.block_size, placement.lanes[0].kv_blocks};
  lane.rows_max = options.rows_max;
  description.lanes.push_back(lane);
  RETURN_IF_ERROR(runtime->pack_weights());
  RETURN_IF_ERROR(runtime->make_buffers());
  RETURN_IF_ERROR(runtime->compile(placement));
  runtime->collector_ = std::thread([raw = runtime.get()] { raw->collect(); });
  return runtime;
}

Result<uint64_t> step_bytes(const Model& model, const Device& device, const RuntimeOptions& options) {
  const uint64_t rows = options.rows_max, logit_rows = options.logit_rows_max;
  const std::array<uint32_t, 1> buckets = {options.rows_max};
  uint64_t workspace = 0;  // of one segment after another
  for (const motley_cut cut : kCuts) {
    const Segment segment = Segment::cut(model.graph(), cut, 0, static_cast<int32_t>(model.config().layers));
    ASSIGN_OR_RETURN(const uint64_t bytes, device.query(segment.view(), buckets));
    workspace = std::max(workspace, bytes);
  }
  return workspace + sizeof(float) * (rows * model.config().hidden + logit_rows * model.config().vocab_size);
}

Result<PackedWeight> pack_weight(const Model& model, size_t index, const Device& device) {
  const GraphWeight& weight = model.graph().weights[index];
  const WeightSource& source = model.weight(index);
  ASSIGN_OR_RETURN(WeightBytes bytes, model.read(index));
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = weight.name.c_str();
  desc.dtype = source.dtype;
  desc.format = source.dtype;
  desc.uses = weight.uses;
  desc.experts = source.experts;
  desc.rows = source.rows;
  desc.cols = source.cols;
  desc.data = bytes.data.data();
  desc.bytes = bytes.data.size();
  ASSIGN_OR_RETURN(PackedWeight packed, device.pack(desc));
  if (packed.info.aliases_source == 0) {
    model.release(index);
  } else {
    packed.source = std::move(bytes.made);
  }
  return packed;
}

Status RuntimeExecutor::pack_weights() {
  for (size_t i = 0; i < model_.graph().weights.size(); ++i) {
    ASSIGN_OR_RETURN(PackedWeight packed, pack_weight(model_, i, device_));
    weights_.push_back(std::move(packed));
  }
  return ok_status();
}

Status RuntimeExecutor::make_buffers() {
  const uint64_t rows = options_.rows_max, logit_rows = options_.logit_rows_max;
  const auto make = [&](uint64_t bytes) { return device_.allocate(bytes, MOTLEY_USE_ACTIVATION); };
  ASSIGN_OR_RETURN(slots_, make(uint64_t{kSlots} * sizeof(int32_t)));
  ASSIGN_OR_RETURN(residual_, make(rows * model_.config().hidden * sizeof(float)));
  ASSIGN_OR_RETURN(logits_, make(logit_rows * model_.config().vocab_size * sizeof(float)));
  for (uint32_t i = 0; i < kStepsInFlightMax; ++i) {
    ResultSet set;
    const auto make_host = [&](uint64_t elements, BufferHandle* buffer) -> Result<void*> {
      ASSIGN_OR_RETURN(*buffer, device_.allocate(elements * sizeof(int32_t), MOTLEY_USE_STAGING));
      return device_.map(*buffer);
    };
    ASSIGN_OR_RETURN(void* ids, make_host(logit_rows, &set.ids));
    ASSIGN_OR_RETURN(void* logprobs, make_host(logit_rows, &set.logprobs));
    ASSIGN_OR_RETURN(void* top_ids, make_host(logit_rows * MOTLEY_TOP_MAX, &set.top_ids));
    ASSIGN_OR_RETURN(void* top_logprobs, make_host(logit_rows * MOTLEY_TOP_MAX, &set.top_logprobs));
    set.ids_host = static_cast<const int32_t*>(ids);
    set.logprobs_host = static_cast<const float*>(logprobs);
    set.top_ids_host = static_cast<const int32_t*>(top_ids);
    set.top_logprobs_host = static_cast<const float*>(top_logprobs);
    results_.push_back(std::move(set));
  }
  return ok_status();
}

Result<motley_buffer*> RuntimeExecutor::buffer_of(int32_t graph_value, size_t set) const {
  const Graph& graph = model_.graph();
  const ResultSet& result = results_[set];
  const std::array<std::pair<int32_t, motley_buffer*>, 7> known = {{{graph.token_slots, slots_.get()},
                                                                    {graph.residual, residual_.get()},
                                                                    {graph.logits, logits_.get()},
                                                                    {graph.sampled_ids, result.ids.get()},
                                                                    {graph.sampled_logprobs, result.logprobs.get()},
                                                                    {graph.top_ids, result.top_ids.get()},
                                                                    {graph.top_logprobs, result.top_logprobs.get()}}};
  for (const auto& [value, buffer] : known) {
    if (value == graph_value) return buffer;
  }
  return error(MOTLEY_INTERNAL, "value {} crosses a cut but has no buffer",
               graph.values[static_cast<size_t>(graph_value)].name);
}

Status RuntimeExecutor::add_to_tape(const CompiledSegment& compiled) {
  TapeEntry entry;
  entry.device = &device_;
  entry.queue = &queue_;
  entry.programs = &compiled.programs;
  entry.kv = compiled.segment.uses_kv() ? kv_.get() : nullptr;
  for (size_t set = 0; set < results_.size(); ++set) {
    std::vector<motley_binding> bindings;
    std::vector<int32_t> values = compiled.segment.inputs();
    for (const int32_t id : compiled.segment.outputs()) {
      if (std::find(values.begin(), values.end(), id) == values.end()) values.push_back(id);
    }
    for (const int32_t id : values) {
      ASSIGN_OR_RETURN(motley_buffer * buffer,
                       buffer_of(compiled.segment.graph_values()[static_cast<size_t>(id)], set));
      bindings.push_back({id, buffer, 0});
    }
    entry.bindings.push_back(std::move(bindings));
  }
  tape_.add(std::move(entry));
  return ok_status();
}

Status RuntimeExecutor::compile(const Placement& placement) {
  const KvRequest request(model_, placement.kv_dtype, placement.block_size, placement.lanes[0].kv_blocks);
  ASSIGN_OR_RETURN(kv_, device_.create_kv(request.desc));
  ASSIGN_OR_RETURN(queue_, device_.create_queue());
  const auto layers = static_cast<int32_t>(model_.config().layers);
  const std::array<uint32_t, 1> buckets = {options_.rows_max};
  for (const motley_cut cut : kCuts) {
    auto compiled = std::make_unique<CompiledSegment>();
    compiled->segment = Segment::cut(model_.graph(), cut, 0, layers);
    std::vector<motley_weight*> weights;
    for (const int32_t id : compiled->segment.graph_weights()) {
      weights.push_back(weights_[static_cast<size_t>(id)].weight.get());
    }
    const motley_segment view = compiled->segment.view();
    ASSIGN_OR_RETURN(compiled->programs, device_.compile(view, weights, buckets));
    RETURN_IF_ERROR(add_to_tape(*compiled));
    segments_.push_back(std::move(compiled));
  }
  return ok_status();
}

void RuntimeExecutor::fill_batch(Flight& flight) const {
  const StepPlan& plan = flight.plan;
  const uint32_t block_size = description_.lanes[0].pool.block_size;
  flight.kv_slots.resize(plan.tokens.size());
  flight.seq_row_begin.push_back(0);
  flight.seq_block_begin.push_back(0);
  for (const PlanSequence& sequence : plan.sequences) {
    const BlockId* blocks = plan.blocks.data() + sequence.block_begin;
    for (uint32_t i = 0; i < sequence.row_count; ++i) {
      const uint32_t position = sequence.context - sequence.row_count + i;
      flight.kv_slots[sequence.row_begin + i] = static_cast<int32_t>(
          static_cast<uint32_t>(blocks[position / block_size]) * block_size + position % block_size);
    }
    flight.seq_row_begin.push_back(sequence.row_begin + sequence.row_count);
    flight.seq_context.push_back(static_cast<int32_t>(sequence.context));
    flight.seq_blocks.insert(flight.seq_blocks.end(), blocks, blocks + sequence.block_count);
    flight.seq_block_begin.push_back(static_cast<uint32_t>(flight.seq_blocks.size()));
  }
  motley_batch& batch = flight.batch;
  batch.struct_size = sizeof batch;
  batch.rows = static_cast<uint32_t>(plan.tokens.size());
  batch.token_ids = plan.tokens.data();
  batch.token_slots = plan.token_slots.data();
  batch.positions = plan.positions.data();
  batch.kv_slots = flight.kv_slots.data();
  batch.generated = plan.generated.data();
  batch.seqs = static_cast<uint32_t>(plan.sequences.size());
  batch.seq_row_begin = flight.seq_row_begin.data();
  batch.seq_context = flight.seq_context.data();
  batch.seq_block_begin = flight.seq_block_begin.data();
  batch.blocks = flight.seq_blocks.data();
  batch.head_row_count = static_cast<uint32_t>(plan.logit_rows.size());
  batch.head_rows = plan.logit_rows.data();
  batch.samples = plan.samples.data();
  batch.counts = plan.counts.data();
  batch.pending = plan.pending.data();
  batch.biases = plan.biases.data();
  batch.slot_count = kSlots;
}

Status RuntimeExecutor::admit(const StepPlan& plan) {
  {
    std::lock_guard lock(mutex_);
    if (!lost_.ok()) return lost_;
    if (flights_.size() >= kStepsInFlightMax)
      return invalid_argument("{} steps are under way already", flights_.size());
  }
  return check_step(plan, description_, {options_.rows_max, options_.logit_rows_max});
}

void RuntimeExecutor::launch(Flight& flight) {
  flight.set = std::exchange(next_set_, (next_set_ + 1) % kStepsInFlightMax);
  flight.submitted_ns = clock_.now_ns();
  fill_batch(flight);
  Tape::Run run = tape_.replay(flight.batch, flight.set);
  flight.event = std::move(run.last);
  flight.failed = std::move(run.status);
  if (flight.event) flight.watched = waiter_.watch({&device_.api(), flight.event.get()}).ok();
}

Future<StepResult> RuntimeExecutor::submit(StepPlan plan) {
  auto flight = std::make_unique<Flight>();
  flight->plan = std::move(plan);
  Future<StepResult> future = flight->promise.future();
  flight->failed = admit(flight->plan);
  if (flight->failed.ok()) launch(*flight);
  {
    std::lock_guard lock(mutex_);
    flights_.push_back(std::move(flight));
  }
  waiter_.ring();  // its event may have fired before it stood in the queue
  return future;
}

StepResult RuntimeExecutor::result_of(Flight& flight, Status status) {
  StepResult result;
  result.epoch = flight.plan.epoch;
  result.step = flight.plan.step;
  result.status = std::move(status);
  const int64_t now_ns = clock_.now_ns();
  result.busy_ns = now_ns - std::max(flight.submitted_ns, last_finished_ns_);
  last_finished_ns_ = now_ns;
  if (!result.status.ok()) return result;
  const ResultSet& set = results_[flight.set];
  result.tokens.resize(flight.plan.logit_rows.size());
  for (size_t i = 0; i < result.tokens.size(); ++i) {
    SampledToken& token = result.tokens[i];
    const int32_t wanted = flight.plan.samples[i].top_logprobs;
    token.id = set.ids_host[i];
    if (wanted < 0) continue;
    token.logprob = set.logprobs_host[i];
    for (size_t k = 0; k < static_cast<size_t>(wanted); ++k) {
      token.top.push_back({set.top_ids_host[i * MOTLEY_TOP_MAX + k], set.top_logprobs_host[i * MOTLEY_TOP_MAX + k]});
    }
  }
  return result;
}

// Sleeps until the step's last event has fired, and says how it ended.
Status RuntimeExecutor::await(const Flight& flight) const {
  if (!flight.event) return flight.failed;
  const WaitEvent event{&device_.api(), flight.event.get()};
  Status ended;
  if (flight.watched) {
    wait_any({&event, 1}, kNoDeadline, waiter_, clock_);
    ended = event_state(event).status;
  } else {  // the device could not promise to ring: block in it
    motley_error failure{};
    ended = to_status(event.api->event_wait(event.event, UINT64_MAX, &failure), failure, "device");
  }
  return flight.failed.ok() ? ended : flight.failed;
}

// The collecting thread: hands out the steps' results in order.
void RuntimeExecutor::collect() {
  const MemoryPatience patience;  // a result that is there must reach the engine
  for (;;) {
    Flight* oldest = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (!flights_.empty()) oldest = flights_.front().get();
      if (oldest == nullptr && stopping_) return;
    }
    if (oldest == nullptr) {
      waiter_.wait(kNoDeadline, clock_);
      continue;
    }
    StepResult result = result_of(*oldest, await(*oldest));
    std::unique_ptr<Flight> done;
    {
      std::lock_guard lock(mutex_);
      if (result.status.code() == MOTLEY_UNAVAILABLE) lost_ = result.status;
      done = std::move(flights_.front());
      flights_.pop_front();
    }
    done->promise.set(std::move(result));
  }
}

RuntimeExecutor::~RuntimeExecutor() {
  if (!collector_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  waiter_.ring();
  collector_.join();
}

}  // namespace motley
