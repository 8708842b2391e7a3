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
  // What came of a replay. Even a failed one may have started work that reads the batch: until `last` (the event of the
  // last entry that was accepted; null if none was) has fired, the batch must live.
  struct Run {
    EventHandle last;
    Status status;
  };
  // Enqueues every entry for the batch, in order, writing results to result set `set`. Does not block.
  Run replay(const motley_batch& batch, size_t set) const;

 private:
  std::vector<TapeEntry> entries_;
};

}  // namespace motley
