#include "kit/program.hpp"

#include <limits>

namespace motley::kit {

namespace {

constexpr uint64_t kAlign = 64;
uint64_t align_up(uint64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Which resources an op touches: value ids, then the KV layers behind them.
template <class Read, class Write>
void each_access(const PlanOp& op, size_t values, Read&& read, Write&& write) {
  for (size_t i = 0; i < op.in.size(); ++i) {
    if (op.in[i] == MOTLEY_NONE) continue;
    read(static_cast<size_t>(op.in[i]));
    if (op.writes_in >> i & 1) write(static_cast<size_t>(op.in[i]));
  }
  for (const int32_t id : op.out)
    if (id != MOTLEY_NONE) write(static_cast<size_t>(id));
  if (op.kv_read >= 0) read(values + static_cast<size_t>(op.kv_read));
  if (op.kv_write >= 0) write(values + static_cast<size_t>(op.kv_write));
}

uint64_t next_serial() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

void OpCall::barrier() const { run->team().barrier(); }
void OpCall::fail(motley_code code, const char* text) const { run->fail(code, text); }

Range OpCall::take(int64_t count, int64_t grain) const {
  int64_t begin = taken->load(std::memory_order_relaxed), end;
  do {
    // Half of an equal share of what is left: the last parts are small, and the first cost few calls.
    const int64_t share = threads == 1 ? count - begin : (count - begin) / (2 * int64_t{threads});
    end = std::min(count, begin + std::max(grain, share / grain * grain));
  } while (begin < count && !taken->compare_exchange_weak(begin, end, std::memory_order_relaxed));
  return begin < count ? Range{begin, end} : Range{count, count};
}

int32_t Plan::add_value(int32_t dtype, int64_t rows, int64_t width, int64_t row_bytes) {
  values.push_back({dtype, rows, width, row_bytes, false, width});
  return static_cast<int32_t>(values.size()) - 1;
}

Program::Program(CheckedSegment segment) : serial_(next_serial()), segment_(std::move(segment)) {
  std::vector<int32_t> level_of_op;
  find_levels(&level_of_op);
  place_values(level_of_op);
  flatten();
}

void Program::find_levels(std::vector<int32_t>* level_of_op) {
  const Plan& plan = segment_.plan;
  const size_t values = plan.values.size();
  std::vector<int32_t> read_at(values + kLayersMax, -1), written_at(values + kLayersMax, -1);
  int32_t level = 0;
  for (const PlanOp& op : plan.ops) {
    bool clash = false;
    each_access(
        op, values, [&](size_t id) { clash |= written_at[id] == level; },
        [&](size_t id) { clash |= written_at[id] == level || read_at[id] == level; });
    level += clash;
    each_access(
        op, values, [&](size_t id) { read_at[id] = level; }, [&](size_t id) { written_at[id] = level; });
    steps_.push_back({clash, 0, 0, 0});
    level_of_op->push_back(level);
  }
}

// A cell is reused only after a barrier has passed since its last use, so sharing memory adds no barrier.
void Program::place_values(const std::vector<int32_t>& level_of_op) {
  const Plan& plan = segment_.plan;
  std::vector<int32_t> last_use(plan.values.size(), -1);
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const auto use = [&](size_t id) {
      if (id < last_use.size()) last_use[id] = level_of_op[i];
    };
    each_access(plan.ops[i], plan.values.size(), use, use);
  }
  cell_of_value_.assign(plan.values.size(), -1);
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    for (const int32_t id : plan.ops[i].out) {
      if (id == MOTLEY_NONE || plan.values[static_cast<size_t>(id)].bound ||
          cell_of_value_[static_cast<size_t>(id)] >= 0)
        continue;
      const PlanValue& value = plan.values[static_cast<size_t>(id)];
      int32_t best = -1;
      int64_t best_waste = std::numeric_limits<int64_t>::max();
      for (size_t c = 0; c < cells_.size(); ++c) {
        if (cells_[c].rows != value.rows || cells_[c].free_after >= level_of_op[i]) continue;
        const int64_t waste = std::abs(cells_[c].row_bytes - value.row_bytes);
        if (waste < best_waste) best = static_cast<int32_t>(c), best_waste = waste;
      }
      if (best < 0) {
        best = static_cast<int32_t>(cells_.size());
        cells_.push_back({value.rows, 0, 0});
      }
      Cell& cell = cells_[static_cast<size_t>(best)];
      cell.row_bytes = std::max(cell.row_bytes, value.row_bytes);
      cell.free_after = last_use[static_cast<size_t>(id)];
      cell_of_value_[static_cast<size_t>(id)] = best;
    }
  }
}

void Program::flatten() {
  const Plan& plan = segment_.plan;
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const PlanOp& op = plan.ops[i];
    steps_[i].first_in = static_cast<uint32_t>(refs_.size());
    refs_.insert(refs_.end(), op.in.begin(), op.in.end());
    steps_[i].first_out = static_cast<uint32_t>(refs_.size());
    refs_.insert(refs_.end(), op.out.begin(), op.out.end());
    steps_[i].first_weight = static_cast<uint32_t>(weights_.size());
    for (const int32_t id : op.weight)
      weights_.push_back(id == MOTLEY_NONE ? nullptr : plan.weights[static_cast<size_t>(id)]);
    scratch_bytes_ = std::max(scratch_bytes_, align_up(static_cast<uint64_t>(op.scratch_bytes)));
  }
}

int64_t Program::rows_of(const PlanValue& value, const motley_batch& batch) {
  switch (value.rows) {
    case MOTLEY_DIM_ROWS: return batch.rows;
    case MOTLEY_DIM_HEAD_ROWS: return batch.head_row_count;
    case MOTLEY_DIM_SLOTS: return batch.slot_count;
    default: return value.rows;
  }
}

uint64_t Program::cell_bytes(const Cell& cell, int64_t rows, int64_t head_rows, int64_t slots) const {
  const int64_t count = cell.rows == MOTLEY_DIM_ROWS        ? rows
                        : cell.rows == MOTLEY_DIM_HEAD_ROWS ? head_rows
                        : cell.rows == MOTLEY_DIM_SLOTS     ? slots
                                                            : cell.rows;
  uint64_t bytes;
  if (__builtin_mul_overflow(static_cast<uint64_t>(count), static_cast<uint64_t>(cell.row_bytes), &bytes) ||
      bytes > kMappingMax)
    fail(MOTLEY_RESOURCE_EXHAUSTED, "the program's arena is too large; use smaller buckets");
  return align_up(bytes);
}

uint64_t Program::workspace_bytes(int64_t rows, int64_t head_rows, int64_t slots) const {
  uint64_t bytes = scratch_bytes_ * plan().threads;
  for (const Cell& cell : cells_) bytes += cell_bytes(cell, rows, head_rows, slots);
  if (bytes > kMappingMax) fail(MOTLEY_RESOURCE_EXHAUSTED, "the program's arena is too large; use smaller buckets");
  return bytes;
}

size_t Program::barriers() const {
  return static_cast<size_t>(
      std::count_if(steps_.begin(), steps_.end(), [](const Step& s) { return s.barrier_before; }));
}

std::vector<uint64_t> Program::key(const RunArgs& args, const std::byte* workspace) const {
  const motley_batch& b = *args.batch;
  std::vector<uint64_t> key = {serial_,
                               args.kv ? args.kv->serial : 0,
                               reinterpret_cast<uint64_t>(workspace),
                               b.rows,
                               b.head_row_count,
                               b.slot_count,
                               b.token_slots != nullptr,
                               b.samples != nullptr};
  for (const std::byte* at : args.bound) key.push_back(reinterpret_cast<uint64_t>(at));
  return key;
}

void Program::run(Team& team, const RunArgs& args, std::byte* workspace) const {
  const Plan& plan = segment_.plan;
  const motley_batch& batch = *args.batch;
  std::byte* const scratch = workspace;
  workspace += scratch_bytes_ * plan.threads;
  std::vector<std::byte*> cell_at;
  for (const Cell& cell : cells_) {
    cell_at.push_back(workspace);
    workspace += cell_bytes(cell, batch.rows, batch.head_row_count, batch.slot_count);
  }
  std::vector<Tensor> tensors;
  tensors.reserve(refs_.size());
  for (const int32_t id : refs_) {
    Tensor& tensor = tensors.emplace_back();
    if (id == MOTLEY_NONE) continue;
    const PlanValue& value = plan.values[static_cast<size_t>(id)];
    const int32_t cell = cell_of_value_[static_cast<size_t>(id)];
    tensor.data = value.bound ? args.bound[static_cast<size_t>(id)] : cell_at[static_cast<size_t>(cell)];
    tensor.rows = rows_of(value, batch);
    tensor.width = value.width, tensor.row_bytes = value.row_bytes, tensor.last = value.last,
    tensor.dtype = value.dtype;
  }
  struct Context {
    const Program& program;
    const RunArgs& args;
    const std::vector<Tensor>& tensors;
    std::byte* scratch;
    RunState state;
  } context{*this, args, tensors, scratch, RunState(team, steps_.size())};
  team.run(
      [](void* opaque, uint32_t thread) {
        Context& c = *static_cast<Context*>(opaque);
        const Program& p = c.program;
        for (size_t i = 0; i < p.steps_.size(); ++i) {
          const Step& step = p.steps_[i];
          if (step.barrier_before) c.state.team().barrier();
          OpCall call;
          call.op = &p.plan().ops[i];
          call.in = std::span(c.tensors).subspan(step.first_in, call.op->in.size());
          call.out = std::span(c.tensors).subspan(step.first_out, call.op->out.size());
          call.weight = std::span(p.weights_).subspan(step.first_weight, call.op->weight.size());
          call.batch = c.args.batch;
          call.row_sequence = c.args.checked.row_sequence.data();
          call.holes = c.args.checked.holes;
          call.kv = c.args.kv;
          call.scratch = c.scratch + p.scratch_bytes_ * thread;
          call.thread = thread, call.threads = p.plan().threads;
          call.run = &c.state;
          call.stream = c.args.stream;
          call.taken = c.state.taken(i);
          call.op->kernel(call);
        }
      },
      &context);
  if (context.state.code() != MOTLEY_OK) throw Error(context.state.code(), context.state.text());
}

}  // namespace motley::kit
