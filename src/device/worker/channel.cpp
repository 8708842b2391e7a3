#include "device/worker/channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.hpp"

namespace motley::worker {
namespace {

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t call;
  uint64_t id;
  uint32_t body_bytes;
  uint32_t descriptors;
};
static_assert(sizeof(Header) == 24);

Status gone() { return error(MOTLEY_UNAVAILABLE, "the other side of the worker's socket is gone"); }

// Waits until the socket can be read or written.
Status await(int fd, short what, int64_t deadline_ns) {
  for (;;) {
    int timeout_ms = -1;
    if (deadline_ns != kForever) {
      const int64_t left_ns = deadline_ns - system_clock().now_ns();
      if (left_ns <= 0) return error(MOTLEY_DEADLINE_EXCEEDED, "no answer in time");
      timeout_ms = static_cast<int>(std::min<int64_t>(left_ns / 1'000'000 + 1, 1'000'000));
    }
    pollfd entry{fd, what, 0};
    if (poll(&entry, 1, timeout_ms) > 0) return ok_status();
  }
}

// Takes the descriptors out of a received control block, in order.
void take_descriptors(msghdr& head, std::vector<Descriptor>* out) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&head); part != nullptr; part = CMSG_NXTHDR(&head, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      out->emplace_back(fd);
    }
  }
}

}  // namespace

Channel::Channel(Descriptor socket) : socket_(std::move(socket)) {
  if (socket_) fcntl(socket_.get(), F_SETFL, fcntl(socket_.get(), F_GETFL) | O_NONBLOCK);
}

Result<std::pair<Descriptor, Descriptor>> Channel::pair(int socket_type) {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, socket_type | SOCK_CLOEXEC, 0, ends) != 0) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "socketpair: {}", std::strerror(errno));
  }
  return std::pair(Descriptor(ends[0]), Descriptor(ends[1]));
}

bool Channel::wait_readable(int64_t deadline_ns) const { return await(socket_.get(), POLLIN, deadline_ns).ok(); }
void Channel::shut() const { shutdown(socket_.get(), SHUT_RDWR); }

Status Channel::write_all(std::span<const std::byte> bytes, std::span<const int> descriptors,
                          int64_t deadline_ns) const {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kDescriptorsMax)] = {};
  while (!bytes.empty()) {
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    msghdr head{};
    head.msg_iov = &part, head.msg_iovlen = 1;
    if (!descriptors.empty()) {
      head.msg_control = control, head.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
      cmsghdr* rights = CMSG_FIRSTHDR(&head);
      rights->cmsg_level = SOL_SOCKET, rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
      std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
    }
    const ssize_t sent = sendmsg(socket_.get(), &head, MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
      descriptors = {};
    } else if (errno == EAGAIN) {
      RETURN_IF_ERROR(await(socket_.get(), POLLOUT, deadline_ns));
    } else if (errno != EINTR) {
      return gone();
    }
  }
  return ok_status();
}

Status Channel::read_all(std::span<std::byte> bytes, std::vector<Descriptor>* descriptors, int64_t deadline_ns) const {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kDescriptorsMax)];
  while (!bytes.empty()) {
    iovec part{bytes.data(), bytes.size()};
    msghdr head{};
    head.msg_iov = &part, head.msg_iovlen = 1;
    head.msg_control = control, head.msg_controllen = sizeof control;
    const ssize_t got = recvmsg(socket_.get(), &head, MSG_CMSG_CLOEXEC);
    if (got > 0) {
      take_descriptors(head, descriptors);
      if ((head.msg_flags & MSG_CTRUNC) != 0 || descriptors->size() > kDescriptorsMax) {
        return error(MOTLEY_DATA_LOSS, "a message of the worker's socket has more descriptors than {}",
                     kDescriptorsMax);
      }
      bytes = bytes.subspan(static_cast<size_t>(got));
    } else if (got == 0) {
      return gone();
    } else if (errno == EAGAIN) {
      RETURN_IF_ERROR(await(socket_.get(), POLLIN, deadline_ns));
    } else if (errno != EINTR) {
      return gone();
    }
  }
  return ok_status();
}

Status Channel::send(Call call, uint64_t id, std::span<const std::byte> body, std::span<const int> descriptors,
                     int64_t deadline_ns) const {
  if (body.size() > kBodyBytesMax || descriptors.size() > kDescriptorsMax) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "a message of {} bytes to a worker; at most {} are possible", body.size(),
                 kBodyBytesMax);
  }
  const Header header{kMagic,
                      kVersion,
                      static_cast<uint16_t>(call),
                      id,
                      static_cast<uint32_t>(body.size()),
                      static_cast<uint32_t>(descriptors.size())};
  // One write for a short message: the reader then wakes once.
  std::vector<std::byte> bytes(sizeof header + body.size());
  std::memcpy(bytes.data(), &header, sizeof header);
  if (!body.empty()) std::memcpy(bytes.data() + sizeof header, body.data(), body.size());
  return write_all(bytes, descriptors, deadline_ns);
}

Result<Message> Channel::receive(int64_t deadline_ns) const {
  Header header{};
  Message message;
  RETURN_IF_ERROR(read_all(std::as_writable_bytes(std::span(&header, 1)), &message.descriptors, deadline_ns));
  if (header.magic != kMagic || header.version != kVersion || header.call >= static_cast<uint16_t>(Call::kCount) ||
      header.body_bytes > kBodyBytesMax || header.descriptors > kDescriptorsMax) {
    return error(MOTLEY_DATA_LOSS, "the worker's socket brought no message of version {}", kVersion);
  }
  message.call = static_cast<Call>(header.call);
  message.id = header.id;
  message.body.resize(header.body_bytes);
  RETURN_IF_ERROR(read_all(message.body, &message.descriptors, deadline_ns));
  if (message.descriptors.size() != header.descriptors) {
    return error(MOTLEY_DATA_LOSS, "a message of the worker's socket announced {} descriptors and brought {}",
                 header.descriptors, message.descriptors.size());
  }
  return message;
}

}  // namespace motley::worker
