#include "runtime/tape.hpp"

namespace motley {

Result<EventHandle> TapeProgram::enqueue(const motley_batch& batch, size_t set) const {
  motley_enqueue_args args{};
  args.struct_size = sizeof args;
  args.bindings = bindings[set].data();
  args.binding_count = static_cast<uint32_t>(bindings[set].size());
  args.kv = kv;
  args.batch = &batch;
  return device->enqueue(*queue, *programs, args);
}

}  // namespace motley
