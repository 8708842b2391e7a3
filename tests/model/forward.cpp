#include "model/forward.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/config.hpp"

namespace motley::testing {
namespace {
constexpr uint64_t kWaitNs = 600ull * 1'000'000'000;
}

Result<std::unique_ptr<Forward>> Forward::create(const Model& model, const ForwardOptions& options) {
  std::unique_ptr<Forward> forward(new Forward(model));
  RETURN_IF_ERROR(forward->prepare(options));
  return forward;
}

Status Forward::prepare(const ForwardOptions& options) {
  positions_max_ = options.positions_max;
  registry_ = DeviceRegistry::scan(plugin_directory());
  ASSIGN_OR_RETURN(entry_, registry_.find(options.device));
  DeviceOptions open;
  open.threads = options.threads;
  open.variant = options.variant;
  ASSIGN_OR_RETURN(device_, Device::open(*entry_->plugin, entry_->description.desc.index, open));
  Holdings holdings(model_);
  for (size_t i = 0; i < model_.graph().weights.size(); ++i) {
    ASSIGN_OR_RETURN(weights_.emplace_back(), holdings.weight(*device_, {i, {}, {}, {}}));
  }
  const KvRequest request(model_.kv_layers(), options.kv_dtype, kBlockSize,
                          (positions_max_ + kBlockSize - 1) / kBlockSize);
  ASSIGN_OR_RETURN(kv_, device_->create_kv(request.desc));
  ASSIGN_OR_RETURN(queue_, device_->create_queue());
  const uint64_t rows = positions_max_;
  ASSIGN_OR_RETURN(slots_, device_->allocate(sizeof(int32_t), MOTLEY_USE_ACTIVATION));
  ASSIGN_OR_RETURN(residual_, device_->allocate(rows * model_.config().hidden * sizeof(float), MOTLEY_USE_ACTIVATION));
  ASSIGN_OR_RETURN(logits_, device_->allocate(rows * model_.config().vocab_size * sizeof(float), MOTLEY_USE_STAGING));
  for (const motley_cut cut : {MOTLEY_CUT_EMBED, MOTLEY_CUT_STAGE, MOTLEY_CUT_HEAD}) RETURN_IF_ERROR(add_piece(cut));
  return ok_status();
}

Status Forward::add_piece(motley_cut cut) {
  const Graph& graph = model_.graph();
  auto piece = std::make_unique<Piece>();
  piece->segment = Segment::cut(graph, cut, 0, static_cast<int32_t>(model_.config().layers));
  std::vector<motley_weight*> weights;
  for (const int32_t id : piece->segment.graph_weights())
    weights.push_back(weights_[static_cast<size_t>(id)]->weight.get());
  ASSIGN_OR_RETURN(piece->programs, device_->compile(piece->segment.view(), weights, std::array{positions_max_}));
  TapeProgram program;
  program.device = &*device_;
  program.queue = &queue_;
  program.programs = &piece->programs;
  program.kv = piece->segment.uses_kv() ? kv_.get() : nullptr;
  std::vector<int32_t> ids = piece->segment.inputs();
  for (const int32_t id : piece->segment.outputs()) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  std::vector<motley_binding> bindings;
  for (const int32_t id : ids) {
    const int32_t value = piece->segment.graph_values()[static_cast<size_t>(id)];
    motley_buffer* buffer = value == graph.token_slots ? slots_.get()
                            : value == graph.residual  ? residual_.get()
                                                       : logits_.get();
    bindings.push_back({id, buffer, 0});
  }
  program.bindings.push_back(std::move(bindings));
  tape_.push_back(std::move(program));
  pieces_.push_back(std::move(piece));
  return ok_status();
}

Status Forward::run(std::span<const int32_t> ids, uint32_t begin, uint32_t rows, float* out) {
  std::vector<int32_t> slots(rows, MOTLEY_NONE), positions(rows), head(rows);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
  std::iota(head.begin(), head.end(), 0);
  const std::vector<uint8_t> generated(rows, 0);
  const uint32_t blocks_used = (begin + rows + kBlockSize - 1) / kBlockSize;
  std::vector<int32_t> blocks(blocks_used);
  std::iota(blocks.begin(), blocks.end(),
            0);  // block i holds positions 16 i ...: the slot of a position is the position
  const std::array<uint32_t, 2> row_begin = {0, rows}, block_begin = {0, blocks_used};
  const auto context = static_cast<int32_t>(begin + rows);
  const std::vector<motley_sample_row> samples(rows);
  motley_batch batch{};
  batch.struct_size = sizeof batch;
  batch.rows = rows;
  batch.token_ids = ids.data() + begin;
  batch.token_slots = slots.data();
  batch.positions = positions.data();
  batch.kv_slots = positions.data();
  batch.generated = generated.data();
  batch.seqs = 1;
  batch.seq_row_begin = row_begin.data();
  batch.seq_context = &context;
  batch.seq_block_begin = block_begin.data();
  batch.blocks = blocks.data();
  batch.head_row_count = rows;
  batch.head_rows = head.data();
  batch.samples = samples.data();
  batch.slot_count = 1;
  EventHandle last;
  Status status;
  for (const TapeProgram& program : tape_) {
    auto event = program.enqueue(batch, 0);
    if (!event.ok()) {
      status = event.error();
      break;
    }
    last = *std::move(event);
  }
  if (last) RETURN_IF_ERROR(device_->wait(last, kWaitNs));  // even a failed run may have begun
  RETURN_IF_ERROR(status);
  ASSIGN_OR_RETURN(const void* memory, device_->map(logits_));
  std::memcpy(out, memory, sizeof(float) * rows * model_.config().vocab_size);
  return ok_status();
}

Result<std::vector<float>> Forward::logits(std::span<const int32_t> ids, uint32_t chunk) {
  if (ids.empty() || ids.size() > positions_max_)
    return invalid_argument("{} ids; 1 to {} fit", ids.size(), positions_max_);
  const auto count = static_cast<uint32_t>(ids.size());
  if (chunk == 0) chunk = count;
  std::vector<float> out(size_t{count} * model_.config().vocab_size);
  for (uint32_t begin = 0; begin < count; begin += chunk) {
    const uint32_t rows = std::min(chunk, count - begin);
    RETURN_IF_ERROR(run(ids, begin, rows, out.data() + size_t{begin} * model_.config().vocab_size));
  }
  return out;
}

}  // namespace motley::testing
