// Tape: the compiled sequence that runs one step, made once for a placement and replayed for every step.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.hpp"
#include "device/handles.hpp"
#include "motley/backend.h"

namespace motley {

// One enqueue of a program. Borrowed handles; the runtime owns them longer than the tape.
struct TapeEntry {
  const Device* device = nullptr;
  const QueueHandle* queue = nullptr;
  const ProgramsHandle* programs = nullptr;
  motley_kv* kv = nullptr;
  // One list per result set: steps in flight write their results to different buffers.
  std::vector<std::vector<motley_binding>> bindings;
};

class Tape {
 public:
  void add(TapeEntry entry) { entries_.push_back(std::move(entry)); }
  // Enqueues every entry for the batch, writing results to result set `set`. The event is the last entry's: it fires
  // after all. The batch must live until then. Does not block.
  Result<EventHandle> replay(const motley_batch& batch, size_t set) const;

 private:
  std::vector<TapeEntry> entries_;
};

}  // namespace motley
