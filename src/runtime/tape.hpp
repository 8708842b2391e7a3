// Tape: the compiled sequence that runs one step on one device, made once for a placement and replayed for every step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "device/handles.hpp"
#include "motley/backend.h"

namespace motley {

class HostBuffer;

// One enqueue of a program. Borrowed handles; their owner keeps them longer than the tape.
struct TapeProgram {
  const Device* device = nullptr;
  const QueueHandle* queue = nullptr;
  const ProgramsHandle* programs = nullptr;
  motley_kv* kv = nullptr;
  motley_cut cut = MOTLEY_CUT_STAGE;  // what it computes
  int32_t layer_begin = 0, layer_end = 0;
  std::span<const uint32_t> buckets;  // that it is compiled for; a step runs in the smallest that holds its rows
  // One list per result set: steps in flight write their results to different buffers.
  std::vector<std::vector<motley_binding>> bindings;

  // Does not block. The batch is borrowed until the event has fired.
  Result<EventHandle> enqueue(const motley_batch& batch, size_t set) const;
};

// What stands between programs, done by the device's driver once all before it has run.
enum class TapeOp {
  kProgram,
  kReceive,  // the residual stream, from the stage before
  kReduce,   // a value is summed over the stage's shards
  kPartner,  // values go to the shard's other part, and others come from it
  kSend,     // the residual stream, to the stage behind
  kLogits,   // this shard's logits go to the shard that samples, which puts all together
  kTokens    // the sampled ids go from the shard that samples to those that embed
};

// Rows that cross: `bytes` each.
struct TapeRows {
  HostBuffer* buffer = nullptr;
  uint64_t bytes = 0;
};

struct TapeEntry {
  TapeOp op = TapeOp::kProgram;
  TapeProgram program;                 // of kProgram
  HostBuffer* buffer = nullptr;        // of kReduce: holds the value
  bool contributes = true;             // of kReduce
  std::vector<TapeRows> gives, takes;  // of kPartner
};

using Tape = std::vector<TapeEntry>;

}  // namespace motley
