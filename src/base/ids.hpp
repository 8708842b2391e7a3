// Names for numbers that must not be mixed up.
#pragma once

#include <cstdint>

namespace motley {

using TokenId = int32_t;     // a vocabulary entry
using BlockId = int32_t;     // a block of one KV pool
using SlotId = int32_t;      // a cell that holds a sampled token until it is known to the host
using RequestId = uint64_t;  // unique in one engine
using Epoch = uint64_t;      // the version of the placement in force
using StepId = uint64_t;     // counts up within an engine

}  // namespace motley
