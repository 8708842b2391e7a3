// Communicator: one rank's end of a group of ranks that add, exchange and pass on arrays.
//
// Each rank is driven by a thread of its own, which calls and blocks: one call at a time per rank; abort() may come
// from any thread. Ranks of a group make the same collective calls in the same order, with the same sizes and roots;
// send and recv pair up per (from, to) in order, and may stand between collectives as long as every rank's order fits.
//
// Nothing throws, and every call ends by its deadline. What is answered:
//   INVALID_ARGUMENT   ranks called different things (operation, size, counts, root), or an argument is out of range
//   DEADLINE_EXCEEDED  a rank did not come in time
//   UNAVAILABLE        a rank was destroyed, or its connection was lost
//   the abort's status after abort()
// Any failure breaks the group for good: every pending and later call of every rank answers the first failure's status,
// and the contents of `data` are unspecified. A broken group is destroyed and made anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/route.hpp"
#include "base/status.hpp"

namespace motley {

// What goes with every call.
struct CommCall {
  int64_t deadline_ns = INT64_MAX;  // of system_clock(); INT64_MAX = none
  // This rank's virtual time, in and out; null = 0 in, and not asked for. A collective sets it to the latest of all
  // ranks plus virtual_cost_ns(); recv to the later of its own and (the sender's when it called send + the cost); send
  // leaves it alone.
  int64_t* virtual_ns = nullptr;
};

enum class CommOp : uint32_t { kAllReduce, kAllGatherV, kReduceScatterV, kBroadcast, kSend };

inline constexpr uint32_t kCommRanksMax = 64;

struct GroupOptions {
  uint32_t size = 1;               // ranks, 1 .. kCommRanksMax
  uint64_t message_bytes_max = 0;  // of one send; collectives may be of any size
  double link_latency_ns = 0;      // virtual time only
  double link_ns_per_byte = 0;     // virtual time only
  // Each rank's thread has cores to itself while it waits, and spins on them for a moment before it sleeps. Else it
  // does so only where the process has more cores than the group has ranks.
  bool own_cores = false;
};

// Virtual time of one operation on `bytes` (all ranks' data together, as in `data`) among options.size ranks:
// (latency + bytes * ns_per_byte), of which an all-reduce takes two (reduce-scatter, then all-gather), rounded up. 0 in
// a group of one.
int64_t virtual_cost_ns(const GroupOptions& options, CommOp op, uint64_t bytes);

class Communicator {
 public:
  virtual ~Communicator() = default;  // a rank that leaves breaks the group for the others
  virtual uint32_t rank() const = 0;
  virtual uint32_t size() const = 0;
  virtual Route route() const = 0;

  // data becomes the sum over the contributing ranks, added in rank order in f32, so the same bits on every rank and by
  // every implementation. A rank that does not contribute only receives; with no contributor the sum is 0.
  virtual Status all_reduce(std::span<float> data, bool contributes, const CommCall& call) = 0;

  // data = the parts of all ranks back to back, counts[r] bytes each; this rank's part is in place before, all after.
  virtual Status all_gather_v(std::span<std::byte> data, std::span<const uint64_t> counts, const CommCall& call) = 0;

  // data as above, counts[r] elements each, complete on every rank before; after, this rank's part holds its sum over
  // all ranks (in rank order, f32) and the other parts are as they were.
  virtual Status reduce_scatter_v(std::span<float> data, std::span<const uint64_t> counts, const CommCall& call) = 0;

  // data of rank `root` to all.
  virtual Status broadcast(std::span<std::byte> data, uint32_t root, const CommCall& call) = 0;

  // A message of at most message_bytes_max bytes to another rank. Returns once data may be reused, not once it is
  // received: two messages per (from, to) are taken without waiting for the receiver; a third waits for room.
  virtual Status send(uint32_t to, std::span<const std::byte> data, const CommCall& call) = 0;
  // The next message of rank `from`, of exactly data.size() bytes.
  virtual Status recv(uint32_t from, std::span<std::byte> data, const CommCall& call) = 0;

  // Breaks the group with `why` (not OK; messages beyond 200 bytes are cut). The first to break it wins.
  virtual void abort(const Status& why) = 0;
};

// Ranks 0 .. size - 1 of a new group, in order.
using CommGroup = std::vector<std::unique_ptr<Communicator>>;

// Over one shared mapping: nothing in it is an address, so ranks may sit in other processes that inherit it.
Result<CommGroup> make_shared_memory_group(const GroupOptions& options);

// Over Gloo, TCP on the loopback interface: the path for ranks that share no memory, under the same contract.
Result<CommGroup> make_gloo_group(const GroupOptions& options);

// Over that route.
Result<CommGroup> make_group(Route route, const GroupOptions& options);

// Those over which two ranks meet on this machine, in the order of kRoutes: each is tried, and one that fails is
// logged. Takes some 10 ms; 10 s where connections to the loopback interface are swallowed.
std::vector<Route> available_routes();

}  // namespace motley
