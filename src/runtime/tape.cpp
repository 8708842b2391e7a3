#include "runtime/tape.hpp"

namespace motley {

Result<EventHandle> Tape::replay(const motley_batch& batch, size_t set) const {
  EventHandle last;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const TapeEntry& entry = entries_[i];
    motley_enqueue_args args{};
    args.struct_size = sizeof args;
    args.bindings = entry.bindings[set].data();
    args.binding_count = static_cast<uint32_t>(entry.bindings[set].size());
    args.kv = entry.kv;
    args.batch = &batch;
    ASSIGN_OR_RETURN(last, entry.device->enqueue(*entry.queue, *entry.programs, args, i + 1 == entries_.size()));
  }
  return last;
}

}  // namespace motley
