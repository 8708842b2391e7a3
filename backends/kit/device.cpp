#include "kit/device.hpp"

namespace motley::kit {

uint32_t Kernels::threads(const OpenOptions& options) const {
  if (options.threads) return options.threads;
  return options.threads_default ? options.threads_default : static_cast<uint32_t>(options.cores.size());
}

uint64_t ops_of(const KernelTable& table) {
  uint64_t mask = 0;
  for (size_t i = 0; i < table.size(); ++i)
    if (table[i].run) mask |= uint64_t{1} << i;
  return mask;
}

}  // namespace motley::kit

using namespace motley::kit;

motley_device::motley_device(std::unique_ptr<Kernels> kernels_in, const OpenOptions& options)
    : kernels(std::move(kernels_in)),
      table(kernels->table()),
      budget(options.memory_cap),
      memory(kernels->memory()),
      team(memory.in_host() ? kernels->threads(options) : 1, options.cores, options.cores_given) {}

void motley_device::make_room(uint64_t bytes) {
  if (bytes <= workspace_.bytes()) return;
  workspace_share_ = Share();
  workspace_ = Allocation();  // the old one goes before the new one comes
  Share share(budget, page_up(bytes), "workspace");
  workspace_ = Allocation(memory, bytes);
  workspace_.busy();
  workspace_share_ = std::move(share);
}

void motley_device::run(const Program& program, const RunArgs& args) {
  std::lock_guard lock(running_);
  const motley_batch& batch = *args.batch;
  make_room(program.workspace_bytes(batch.rows, batch.head_row_count, batch.slot_count));
  Stream& stream = *args.stream;
  if (last_stream_ && last_stream_ != &stream) stream.follow(*last_stream_);  // the arena is its program's till then
  last_stream_ = &stream;
  const std::vector<uint64_t> key = memory.in_host() ? std::vector<uint64_t>() : program.key(args, workspace_.data());
  const int64_t start_ns = monotonic_ns();
  if (stream.begin(batch, args.checked.row_sequence, program.plan(), key)) {
    try {
      do program.run(team, args, workspace_.data());
      while (!stream.end());
    } catch (...) {
      stream.finish();
      throw;
    }
  }
  if (!memory.runs_ahead()) {  // the arena is the next program's
    stream.finish();
    busy_ns += static_cast<uint64_t>(monotonic_ns() - start_ns);
  }
}

void motley_device::ran(uint64_t row_count, double flop_count, const Outcome& outcome) {
  if (memory.runs_ahead()) busy_ns += static_cast<uint64_t>(outcome.end_ns - outcome.start_ns);
  programs += 1;
  rows += row_count;
  flops += flop_count;
}

void motley_device::forget(const Stream* stream) {
  std::lock_guard lock(running_);
  if (last_stream_ == stream) last_stream_ = nullptr;
}

void motley_device::check_alive() const {
  if (!lost) return;
  std::lock_guard lock(lost_mutex_);
  fail(MOTLEY_UNAVAILABLE, "the device is lost: %s", lost_text_.c_str());
}

void motley_device::lose(const char* text) {
  std::lock_guard lock(lost_mutex_);
  if (!lost) lost_text_ = text;
  lost = true;
}
