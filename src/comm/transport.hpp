// Transport: what a group's algorithms stand on. One rank's end of a sequence of rounds, and of messages between pairs.
//
// In a round every rank publishes a slot of bytes and waits until all have; then it may read what the others published,
// until it publishes again. Slots rotate among kSlots, so that the slot of round r + 1 may be filled while round r is
// waited for. Driven by one thread; fail() and status() by any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "comm/communicator.hpp"

namespace motley {

inline constexpr uint64_t kChunkBytes = 128u << 10;   // of all ranks' data that one round of a large operation moves
inline constexpr uint64_t kOneShotBytes = 32u << 10;  // up to here every rank sums everything itself, in one round
inline constexpr uint64_t kPieceAlignment = 64;
inline constexpr uint32_t kSlots = 3;
// A chunk as pieces to be reduced, a chunk as reduced pieces; each piece is rounded up to whole elements and alignment.
inline constexpr uint64_t kSlotBytes = 2 * (kChunkBytes + kCommRanksMax * 2 * kPieceAlignment);

// What a rank calls; the same on all ranks but for the last two.
struct CallSignature {
  CommOp op = CommOp::kAllReduce;
  uint32_t root = 0;
  uint64_t count = 0;        // elements of `data`
  uint64_t counts_hash = 0;  // of the counts of the _v operations
  int64_t virtual_ns = 0;
  uint64_t contributes = 1;
};

// INVALID_ARGUMENT naming the first rank that calls something other than rank 0 does; OK if none.
Status compare_signatures(std::span<const CallSignature> signatures);

struct SlotRange {
  uint64_t begin = 0, size = 0;  // bytes of a slot
};

// Which bytes of rank `from`'s slot rank `to` reads: in[to] if `from` contributes, and out[from].
struct RoundLayout {
  std::vector<SlotRange> in, out;  // one per rank
  uint64_t used = 0;               // bytes of the slot, from its start, that hold all of them
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual uint32_t rank() const = 0;
  virtual uint32_t size() const = 0;
  virtual Route route() const = 0;

  // Around every call of the rank. begin() answers the group's failure, if there is one.
  virtual Status begin(int64_t deadline_ns) = 0;
  virtual void end() = 0;

  // Where the next round to be posted publishes: kSlotBytes. Null after a failure.
  virtual std::byte* slot() = 0;
  virtual Status post(const CallSignature& signature, const RoundLayout& layout) = 0;
  // Until all have posted. Fails if their signatures differ. Fills `signatures`, one per rank.
  virtual Status wait(std::span<CallSignature> signatures) = 0;
  // What rank `from` published in the round waited for last; valid until the next post.
  virtual const std::byte* published(uint32_t from) const = 0;

  virtual Status send(uint32_t to, std::span<const std::byte> data, int64_t virtual_ns) = 0;
  virtual Status recv(uint32_t from, std::span<std::byte> data, int64_t* sent_virtual_ns) = 0;

  // Breaks the group unless it is broken; answers what broke it first.
  virtual Status fail(const Status& why) = 0;
};

Status check_group_options(const GroupOptions& options);

// The algorithms, over `transport`, of which it becomes the owner.
std::unique_ptr<Communicator> make_communicator(std::unique_ptr<Transport> transport, const GroupOptions& options);

}  // namespace motley
