#include "runtime/probe.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "device/virtual_time.hpp"
#include "model/axes.hpp"

namespace motley {
namespace {

constexpr uint64_t kPoolPart = 16;  // of a device's memory, a KV pool at most

// The share as the first shard of a stage; a second one, which nobody runs, holds the rest.
Stage stage_of(const ModelAxes& axes, const ProbeShare& asked, uint32_t begin, uint32_t end) {
  ProbeShare share = asked;
  if (share.whole) {
    share.kv_heads = axes.kv_heads, share.ffn_columns = axes.ffn_columns;
    share.experts = axes.experts, share.vocab_rows = axes.vocab;
  }
  const auto parts = [](int64_t take, int64_t count) {
    std::pair<std::vector<UnitRange>, std::vector<UnitRange>> both;
    take = std::clamp<int64_t>(take, 0, count);
    if (take > 0) both.first = {{0, take}};
    if (take < count) both.second = {{take, count}};
    return both;
  };
  Stage stage;
  stage.layer_begin = begin;
  stage.layer_end = end;
  stage.shards.resize(2);
  std::tie(stage.shards[0].kv_heads, stage.shards[1].kv_heads) = parts(share.kv_heads, axes.kv_heads);
  std::tie(stage.shards[0].ffn_columns, stage.shards[1].ffn_columns) = parts(share.ffn_columns, axes.ffn_columns);
  std::tie(stage.shards[0].vocab_rows, stage.shards[1].vocab_rows) = parts(share.vocab_rows, axes.vocab);
  for (int64_t e = 0; e < axes.experts; ++e)
    stage.shards[e < share.experts ? 0 : 1].experts.push_back(static_cast<int32_t>(e));
  if (share.whole) stage.shards.resize(1);
  return stage;
}

// A lane in which one stage is what is asked for; the others are never made.
std::pair<Lane, size_t> lane_of(const Model& model, const ProbeShare& share) {
  const ModelAxes axes = axes_of(model);
  const uint32_t layers = model.config().layers;
  Lane lane;
  if (share.layers.count == 0 || (layers < 3 && !share.whole)) {
    // Embedding and head, with all layers between; or a model of so few layers that there is no middle one.
    lane.stages.push_back(stage_of(axes, share, 0, layers));
    return {lane, 0};
  }
  const uint32_t begin = std::min(share.layers.first, layers - 1),
                 end = begin + std::min(share.layers.count, layers - begin);
  for (const auto& [from, to] : {std::pair{0u, begin}, std::pair{begin, end}, std::pair{end, layers}}) {
    if (from < to) lane.stages.push_back(stage_of(axes, share, from, to));
  }
  return {lane, begin > 0 ? 1 : 0};
}

// KV blocks of these layers that take a part of the device's memory, whatever their format.
uint32_t most_blocks(const ShardGraph& shard, uint64_t memory_bytes) {
  uint64_t bytes = 1;
  for (const KvLayer& layer : shard.kv_layers)
    bytes += 2 * sizeof(float) * Probe::kBlockSize * layer.kv_heads * layer.head_dim;
  return static_cast<uint32_t>(std::clamp<uint64_t>(memory_bytes / kPoolPart / bytes, 1, UINT32_MAX));
}

}  // namespace

Result<ProbeOptions> probe_options(const Model& model, const Device& device, const DeviceDescription& description,
                                   BucketOptions buckets, int64_t kv_dtype, bool virtual_time) {
  const auto can = [&](uint64_t cap) { return (description.desc.caps & cap) != 0; };
  buckets.any_rows = can(MOTLEY_CAP_DYNAMIC_ROWS);
  ProbeOptions probing{
      {}, static_cast<int32_t>(kv_dtype), can(MOTLEY_CAP_PAGED_ATTENTION), description.desc.memory_free, virtual_time};
  ASSIGN_OR_RETURN(Buckets found, buckets_of(model, device, buckets));
  probing.buckets = std::move(found.rows);
  return probing;
}

Result<std::unique_ptr<Probe>> Probe::create(const Model& model, const Device& device, const ProbeShare& share,
                                             const ProbeOptions& options) {
  const auto [lane, stage] = lane_of(model, share);
  const bool apart = !options.attends && !lane.stages[stage].shards[0].kv_heads.empty();
  ASSIGN_OR_RETURN(ShardGraph shard, shard_graph(model, lane, stage, 0, apart ? ShardRole::kDense : ShardRole::kWhole,
                                                 0, share.whole ? LayerPrograms::kTogether : LayerPrograms::kParts));
  uint64_t source_bytes = 0;
  for (const ShardWeight& weight : shard.weights) {
    const GraphWeight& whole = model.graph().weights[weight.source];
    const auto kept = [](const std::vector<motley_range>& ranges, int64_t all) {
      if (ranges.empty()) return 1.0;
      int64_t count = 0;
      for (const motley_range& range : ranges) count += range.end - range.begin;
      return static_cast<double>(count) / static_cast<double>(all);
    };
    source_bytes +=
        static_cast<uint64_t>(static_cast<double>(model.weight(weight.source).bytes) * kept(weight.rows, whole.rows) *
                              kept(weight.cols, whole.cols) * kept(weight.experts, whole.experts));
  }
  PartOptions held;
  held.buckets = options.buckets;
  held.uncompiled = options.uncompiled;
  const uint32_t rows = (held.buckets.back() + kBlockSize - 1) / kBlockSize;  // a sequence may have so many blocks
  const uint32_t most = std::max(most_blocks(shard, options.memory_bytes), rows);
  held.kv = {std::clamp(share.kv_blocks, std::min(rows, most), most), kBlockSize, options.kv_dtype};
  Holdings holdings(model);
  ASSIGN_OR_RETURN(auto part, DevicePart::create(model, device, std::move(shard), held, &holdings));
  if (part->options().buckets != options.buckets)  // asked for anew, without those
    return error(MOTLEY_FAILED_PRECONDITION, "some row counts do not compile");
  DriverOptions running;
  running.name = "probe";
  running.logit_rows_max = std::min(held.buckets.back(), options.logit_rows_max);
  running.slots = 1;
  running.steps_ahead = 0;
  running.virtual_time = options.virtual_time;
  // Nobody is met: the tape is only read.
  ASSIGN_OR_RETURN(auto driver, Driver::create(std::move(part), {}, running, system_clock()));
  // Of zeros a processor takes less power, so that its clock is higher than at work, and all rows choose one expert.
  if (!options.virtual_time) RETURN_IF_ERROR(driver->fill_residual(options.wait_ns));
  std::unique_ptr<Probe> probe(new Probe(device, std::move(driver)));
  probe->source_bytes_ = source_bytes;
  probe->of_vocabulary_ = share.layers.count == 0;
  probe->waits_ = apart;
  probe->kv_blocks_ = held.kv.blocks;
  probe->logit_rows_max_ = running.logit_rows_max;
  probe->virtual_time_ = options.virtual_time;
  probe->wait_ns_ = options.wait_ns;
  if (options.virtual_time) probe->virtual_ns_ = options.virtual_ns > 0 ? options.virtual_ns : virtual_start_ns();
  return probe;
}

std::vector<Probe::Programs> Probe::find(motley_cut cut) const {
  std::vector<Programs> found;
  bool met = false;  // the partner, since the last program
  for (const TapeEntry& entry : driver_->tape()) {
    if (entry.op == TapeOp::kPartner) met = true;
    if (entry.op != TapeOp::kProgram) continue;
    const bool behind_partner = std::exchange(met, false);
    if (entry.program.cut != cut) continue;
    // Behind a layer's part that only adds the last sum is no part of its own; what a partner comes between is one.
    if (found.empty() || found.back().back()->layer_end != entry.program.layer_end) {
      found.push_back({&entry.program});
    } else if (behind_partner) {
      found.back().push_back(&entry.program);
    }
  }
  return found;
}

// The last rows of one.
void Probe::add_sequence(uint32_t rows, uint32_t context, bool generated) {
  for (uint32_t r = 0; r < rows; ++r)
    positions_.push_back(static_cast<int32_t>(context) - static_cast<int32_t>(rows - r));
  generated_.insert(generated_.end(), rows, generated ? 1 : 0);
  for (uint32_t b = 0; b * kBlockSize < context; ++b)  // of their own, as far as there are any
    blocks_.push_back(static_cast<int32_t>(blocks_.size() % kv_blocks_));
  contexts_.push_back(static_cast<int32_t>(context));
  row_begin_.push_back(row_begin_.back() + rows);
  block_begin_.push_back(static_cast<uint32_t>(blocks_.size()));
}

void Probe::fill_batch(const ProbeLoad& load) {
  const uint32_t rows = load.rows;
  tokens_.assign(rows, 0);
  slots_.assign(rows, MOTLEY_NONE);
  kv_slots_.assign(rows, MOTLEY_NONE);  // what is read lies there already: zeros
  positions_.clear(), generated_.clear(), blocks_.clear(), contexts_.clear();
  row_begin_.assign(1, 0);
  block_begin_.assign(1, 0);
  for (uint32_t r = 0; r < load.decoding; ++r) add_sequence(1, ProbeLoad::kDecodingContext, true);
  const uint32_t others = rows - load.decoding, each = load.one_sequence ? others : 1;
  for (uint32_t r = 0; r < others; r += each) add_sequence(each, load.context, !load.prompt);
  head_rows_.resize(std::min(rows, logit_rows_max_));
  std::iota(head_rows_.begin(), head_rows_.end(), 0);
  motley_sample_row greedy{};
  greedy.top_p = greedy.repetition_penalty = 1;
  greedy.top_logprobs = MOTLEY_NONE;
  greedy.out_slot = MOTLEY_NONE;
  samples_.assign(head_rows_.size(), greedy);
  batch_ = {};
  batch_.struct_size = sizeof batch_;
  batch_.rows = rows;
  batch_.token_ids = tokens_.data();
  batch_.token_slots = slots_.data();
  batch_.positions = positions_.data();
  batch_.kv_slots = kv_slots_.data();
  batch_.generated = generated_.data();
  batch_.seqs = static_cast<uint32_t>(contexts_.size());
  batch_.seq_row_begin = row_begin_.data();
  batch_.seq_context = contexts_.data();
  batch_.seq_block_begin = block_begin_.data();
  batch_.blocks = blocks_.data();
  batch_.head_row_count = static_cast<uint32_t>(head_rows_.size());
  batch_.head_rows = head_rows_.data();
  batch_.samples = samples_.data();
  batch_.slot_count = 1;
}

Status Probe::write_kv(uint32_t positions) {
  if (virtual_time_) return ok_status();
  const uint32_t blocks = std::min((positions + kBlockSize - 1) / kBlockSize, kv_blocks_);
  const Status written = driver_->part().clear_kv(driver_->queue(), blocks, wait_ns_);
  return written.code() == MOTLEY_UNIMPLEMENTED ? ok_status() : written;  // then it is read as it lies
}

Result<double> Probe::time_ns(motley_cut cut, const ProbeLoad& load, uint32_t runs) {
  const std::vector<Programs> programs = find(cut);
  if (programs.empty()) return error(MOTLEY_NOT_FOUND, "the probe has no such part");
  fill_batch(load);
  ASSIGN_OR_RETURN(const double ns, run_ns(programs, next_layer_, runs));
  next_layer_ += runs;
  return ns / runs;
}

Result<PartTimes> Probe::parts_ns(const ProbeLoad& load, uint32_t layers, const std::function<Status()>& meet) {
  const std::vector<Programs> attention = find(MOTLEY_CUT_ATTN_PART), ffn = find(MOTLEY_CUT_FFN_PART);
  fill_batch(load);
  PartTimes times;
  for (uint32_t layer = 0; layer < layers; ++layer, ++next_layer_) {
    for (const auto& [programs, ns] : {std::pair{&attention, &times.attention_ns}, std::pair{&ffn, &times.ffn_ns}}) {
      if (programs->empty()) continue;
      ASSIGN_OR_RETURN(const double once, run_ns(*programs, next_layer_, 1));
      *ns += once / layers;
      if (meet) RETURN_IF_ERROR(meet());
    }
  }
  return times;
}

Status Probe::enqueue(const std::vector<Programs>& programs, size_t first, uint32_t runs,
                      std::vector<EventHandle>* events) {
  for (uint32_t run = 0; run < runs; ++run) {
    for (const TapeProgram* program : programs[(first + run) % programs.size()]) {
      ASSIGN_OR_RETURN(EventHandle event, program->enqueue(batch_, 0));
      events->push_back(std::move(event));
      if (waits_) RETURN_IF_ERROR(device_.wait(events->back(), wait_ns_));
    }
  }
  return ok_status();
}

// For all, so that the batch may go; the last first, so that nobody is woken for each.
Status Probe::wait(Status status, const std::vector<EventHandle>& events) {
  for (auto event = events.rbegin(); event != events.rend(); ++event) {
    const bool hangs = status.code() == MOTLEY_DEADLINE_EXCEEDED;  // each as long would be hours
    const Status ended = device_.wait(*event, hangs ? 0 : wait_ns_);
    if (status.ok()) status = ended;
  }
  return status;
}

Result<double> Probe::run_ns(const std::vector<Programs>& programs, size_t first, uint32_t runs) {
  const VirtualTimeScope time(&virtual_ns_);
  const int64_t began_ns = virtual_time_ ? virtual_ns_ : system_clock().now_ns();
  std::vector<EventHandle> events;
  RETURN_IF_ERROR(wait(enqueue(programs, first, runs, &events), events));
  int64_t ended_ns = system_clock().now_ns();
  if (virtual_time_) {
    ASSIGN_OR_RETURN(const motley_event_times times, device_.times(events.back()));
    ended_ns = virtual_ns_ = times.end_ns;
  }
  return static_cast<double>(ended_ns - began_ns);
}

}  // namespace motley
