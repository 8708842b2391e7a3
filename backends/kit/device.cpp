#include "kit/device.hpp"

#include <chrono>

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

void motley_device::run(const Program& program, const RunArgs& args) {
  std::lock_guard lock(running_);
  const motley_batch& batch = *args.batch;
  const uint64_t need = program.workspace_bytes(batch.rows, batch.head_row_count, batch.slot_count);
  if (need > workspace_.bytes()) {
    workspace_share_ = Share();
    workspace_ = Allocation();  // the old one goes before the new one comes
    Share share(budget, page_up(need), "workspace");
    workspace_ = Allocation(memory, need);
    workspace_.busy();
    workspace_share_ = std::move(share);
  }
  const auto start = std::chrono::steady_clock::now();
  args.stream->begin(batch, args.row_sequence);
  try {
    program.run(team, args, workspace_.data());
  } catch (...) {
    args.stream->finish();
    throw;
  }
  args.stream->finish();  // the arena is the next program's
  const auto spent = std::chrono::steady_clock::now() - start;
  busy_ns += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
  programs += 1;
  rows += batch.rows;
}
