#include "runtime/tape.hpp"

namespace motley {

Tape::Run Tape::replay(const motley_batch& batch, size_t set) const {
  Run run;
  for (const TapeEntry& entry : entries_) {
    motley_enqueue_args args{};
    args.struct_size = sizeof args;
    args.bindings = entry.bindings[set].data();
    args.binding_count = static_cast<uint32_t>(entry.bindings[set].size());
    args.kv = entry.kv;
    args.batch = &batch;
    auto event = entry.device->enqueue(*entry.queue, *entry.programs, args);
    if (!event.ok()) {
      run.status = event.error();
      break;
    }
    run.last = *std::move(event);
  }
  return run;
}

}  // namespace motley
