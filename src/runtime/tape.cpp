#include "runtime/tape.hpp"

#include <algorithm>

namespace motley {

Result<EventHandle> TapeProgram::enqueue(const motley_batch& batch, size_t set) const {
  motley_enqueue_args args{};
  args.struct_size = sizeof args;
  args.bindings = bindings[set].data();
  args.binding_count = static_cast<uint32_t>(bindings[set].size());
  args.kv = kv;
  const auto bucket = std::lower_bound(buckets.begin(), buckets.end(), batch.rows);
  args.bucket = static_cast<uint32_t>(bucket - buckets.begin());
  args.batch = &batch;
  return device->enqueue(*queue, *programs, args);
}

}  // namespace motley
