// What is enqueued: checked at the call, with the simulated time it takes and what it does when its turn comes.
// All throw Error for arguments that do not fit; the arguments must outlive the work, as backend.h says.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sim/queue.hpp"

namespace motley::sim {

Queue::Work copy_work(Queue& queue, Buffer& dst, const Buffer& src, std::vector<motley_region> regions);
// Until the event fires, the destination holds all ones (NaN, and no id).
Queue::Work to_host_work(Queue& queue, void* dst, const Buffer& src, uint64_t offset, uint64_t bytes);
Queue::Work from_host_work(Queue& queue, Buffer& dst, uint64_t offset, const void* src, uint64_t bytes);

struct KvBlocks {
  const int32_t* blocks;
  uint32_t count, layer_begin, layer_end;
};
Queue::Work kv_export_work(Queue& queue, Kv& kv, const KvBlocks& which, void* dst, uint64_t bytes);
Queue::Work kv_import_work(Queue& queue, Kv& kv, const KvBlocks& which, const void* src, uint64_t bytes);

// What the cpu plugin alone can judge (ids in slots, the pool's shape) fails the event instead of the call.
Queue::Work program_work(Queue& queue, Programs& programs, const motley_enqueue_args& args);

// Pushes the work; *event (if wanted) is a new handle.
void submit(Queue& queue, Queue::Work work, motley_event** event);

}  // namespace motley::sim
