// Channel: control messages over a Unix stream socket, with descriptors beside them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "device/worker/descriptor.hpp"
#include "device/worker/wire.hpp"

namespace motley::worker {

struct Message {
  Call call = Call::kReply;
  uint64_t id = 0;
  std::vector<std::byte> body;
  std::vector<Descriptor> descriptors;
};

inline constexpr int64_t kForever = INT64_MAX;

// Not thread-safe. Deadlines are of CLOCK_MONOTONIC. Errors: UNAVAILABLE when the other side is gone,
// DEADLINE_EXCEEDED, DATA_LOSS for what is no message of this version; after any of them the channel is of no use.
class Channel {
 public:
  Channel() = default;
  explicit Channel(Descriptor socket);
  // Two connected ends, close-on-exec.
  static Result<std::pair<Descriptor, Descriptor>> pair(int socket_type);

  Status send(Call call, uint64_t id, std::span<const std::byte> body, std::span<const int> descriptors,
              int64_t deadline_ns) const;
  Result<Message> receive(int64_t deadline_ns) const;
  // Whether something is there to receive, or the peer is gone; waits for it until the deadline.
  bool wait_readable(int64_t deadline_ns) const;
  int fd() const { return socket_.get(); }
  // A receive() under way, here or at the other side, ends as if the peer were gone.
  void shut() const;

 private:
  Status write_all(std::span<const std::byte> bytes, std::span<const int> descriptors, int64_t deadline_ns) const;
  Status read_all(std::span<std::byte> bytes, std::vector<Descriptor>* descriptors, int64_t deadline_ns) const;
  Descriptor socket_;
};

}  // namespace motley::worker
