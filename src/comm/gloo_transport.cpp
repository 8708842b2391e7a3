// The transport over Gloo: TCP between contexts of this process, on the loopback interface.
//
// Gloo's own collectives are not used: its ring adds in another order on each rank, and it has no check that ranks call
// the same. Here a round is one frame to every other rank (signature, and a small slot with it), compared before any
// payload moves, so that Gloo is never asked to receive more than was made room for (it ends the program then). Gloo
// does not know deadlines apart from lost connections, and closes everything on either; so it is given no deadline, and
// a watchdog breaks the group when a rank's deadline passes.
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/hash_store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "base/clock.hpp"
#include "comm/transport.hpp"

namespace motley {
namespace {

using gloo::transport::UnboundBuffer;

constexpr auto kGlooForever = std::chrono::hours(24 * 365);
constexpr auto kConnectTimeout = std::chrono::seconds(10);
constexpr uint32_t kMessagesAhead = 2;  // of one pair, sent before the first is received
enum Tag : uint64_t { kFrameTag = 0, kPayloadTag = 1, kHeaderTag = 2, kMessageTag = 3 };

struct alignas(kPieceAlignment) FrameHeader {
  CallSignature signature;
  uint64_t inline_bytes = 0;  // of the slot, behind the header
};
constexpr uint64_t kFrameBytes = sizeof(FrameHeader) + kOneShotBytes;

struct MessageHeader {
  uint64_t size = 0;
  int64_t virtual_ns = 0;
};

// Keeps the calling thread, and those that it starts, from the signal of a connection whose other end has gone: Gloo
// writes without asking to be spared it, and it would end the program.
class BrokenPipeIgnored {
 public:
  BrokenPipeIgnored() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  BrokenPipeIgnored(const BrokenPipeIgnored&) = delete;
  BrokenPipeIgnored& operator=(const BrokenPipeIgnored&) = delete;
  ~BrokenPipeIgnored() {
    constexpr timespec kNow{};
    while (!was_pending_ && sigtimedwait(&pipe_, nullptr, &kNow) == SIGPIPE) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t pipe_, before_;
  bool was_pending_ = false;
};

// What the ranks of a group share: the failure that broke it, the buffers to wake then, and the calls' deadlines.
class GlooGroup {
 public:
  explicit GlooGroup(uint32_t size) : deadlines_ns_(size, INT64_MAX), watchdog_([this] { watch(); }) {}
  ~GlooGroup() {
    {
      std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    watchdog_.join();
  }

  Status begin(uint32_t rank, int64_t deadline_ns) {
    std::lock_guard lock(mutex_);
    deadlines_ns_[rank] = deadline_ns;
    if (deadline_ns < wakes_at_ns_) changed_.notify_all();
    return status_;
  }
  void end(uint32_t rank) {
    std::lock_guard lock(mutex_);
    deadlines_ns_[rank] = INT64_MAX;
  }
  Status status() const {
    std::lock_guard lock(mutex_);
    return status_;
  }
  Status fail(const Status& why) {
    std::lock_guard lock(mutex_);
    return fail_locked(why);
  }
  void enter(UnboundBuffer* buffer) {
    std::lock_guard lock(mutex_);
    buffers_.push_back(buffer);
    if (!status_.ok()) wake(buffer);
  }
  void leave(UnboundBuffer* buffer) {
    std::lock_guard lock(mutex_);
    std::erase(buffers_, buffer);
  }

 private:
  static void wake(UnboundBuffer* buffer) {
    buffer->abortWaitRecv();
    buffer->abortWaitSend();
  }
  Status fail_locked(const Status& why) {
    if (status_.ok()) {
      status_ = why;
      for (UnboundBuffer* buffer : buffers_) wake(buffer);
    }
    return status_;
  }
  void watch() {
    std::unique_lock lock(mutex_);
    while (!stopped_) {
      const auto earliest = std::min_element(deadlines_ns_.begin(), deadlines_ns_.end());
      const int64_t now_ns = system_clock().now_ns();
      if (now_ns >= *earliest) {
        static_cast<void>(fail_locked(error(MOTLEY_DEADLINE_EXCEEDED, "rank {} of {} waited for the others in vain",
                                            earliest - deadlines_ns_.begin(), deadlines_ns_.size())));
        *earliest = INT64_MAX;
        continue;
      }
      wakes_at_ns_ = *earliest;
      const int64_t sleep_ns = std::min<int64_t>(wakes_at_ns_ - now_ns, std::chrono::nanoseconds(kGlooForever).count());
      changed_.wait_for(lock, std::chrono::nanoseconds(sleep_ns));
      wakes_at_ns_ = 0;
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Status status_;
  std::vector<UnboundBuffer*> buffers_;
  std::vector<int64_t> deadlines_ns_;
  int64_t wakes_at_ns_ = 0;
  bool stopped_ = false;
  std::thread watchdog_;  // last: it uses the others
};

// Memory that Gloo sends from or receives into, with the sends under way.
class GlooBuffer {
 public:
  GlooBuffer(std::shared_ptr<GlooGroup> group, gloo::Context& context, uint64_t bytes)
      : group_(std::move(group)), words_(bytes / sizeof(Word) + 1) {
    buffer_ = context.createUnboundBuffer(words_.data(), bytes);
    group_->enter(buffer_.get());
  }
  GlooBuffer(const GlooBuffer&) = delete;
  GlooBuffer& operator=(const GlooBuffer&) = delete;
  ~GlooBuffer() { group_->leave(buffer_.get()); }

  std::byte* data() { return words_[0].bytes.data(); }
  void send(uint32_t to, Tag tag, uint64_t begin, uint64_t bytes) {
    buffer_->send(static_cast<int>(to), tag, begin, bytes);
    ++sending_;
  }
  void recv(uint32_t from, Tag tag, uint64_t begin, uint64_t bytes) {
    buffer_->recv(static_cast<int>(from), tag, begin, bytes);
  }
  // False if the group was broken while waiting.
  bool wait_sent() {
    for (; sending_ > 0; --sending_)
      if (!buffer_->waitSend(kGlooForever)) return false;
    return true;
  }
  bool wait_received() { return buffer_->waitRecv(kGlooForever); }

 private:
  struct alignas(kPieceAlignment) Word {
    std::array<std::byte, kPieceAlignment> bytes;
  };
  const std::shared_ptr<GlooGroup> group_;
  std::vector<Word> words_;
  std::unique_ptr<UnboundBuffer> buffer_;
  uint32_t sending_ = 0;
};

class GlooTransport final : public Transport {
 public:
  GlooTransport(std::shared_ptr<GlooGroup> group, std::unique_ptr<gloo::rendezvous::Context> context,
                uint64_t message_bytes_max)
      : group_(std::move(group)),
        context_(std::move(context)),
        message_bytes_max_(message_bytes_max),
        peers_(static_cast<size_t>(context_->size)) {
    for (uint32_t s = 0; s < kSlots; ++s) {
      slots_[s] = make(kSlotBytes);
      frames_[s] = make(kFrameBytes);
    }
    for (uint32_t r = 0; r < size(); ++r)
      if (r != rank()) peers_[r].frame = make(kFrameBytes);
  }

  // Before the buffers go: Gloo's thread may be at work on them until the connections are closed.
  ~GlooTransport() override {
    static_cast<void>(guarded([&] {
      if (size() > 1) context_->closeConnections();
      return true;
    }));
  }

  uint32_t rank() const override { return static_cast<uint32_t>(context_->rank); }
  uint32_t size() const override { return static_cast<uint32_t>(context_->size); }
  Route route() const override { return Route::kGloo; }
  Status begin(int64_t deadline_ns) override { return group_->begin(rank(), deadline_ns); }
  void end() override { group_->end(rank()); }
  Status fail(const Status& why) override { return group_->fail(why); }

  std::byte* slot() override {
    GlooBuffer& slot = *slots_[posted_ % kSlots];
    return guarded([&] { return slot.wait_sent(); }).ok() ? slot.data() : nullptr;
  }

  Status post(const CallSignature& signature, const RoundLayout& layout) override {
    GlooBuffer& frame = *frames_[posted_ % kSlots];
    const std::byte* slot = slots_[posted_ % kSlots]->data();
    ++posted_;
    signature_ = signature;
    layout_ = layout;
    return guarded([&] {
      if (!frame.wait_sent()) return false;
      const FrameHeader header{signature, in_frame() ? layout.used : 0};
      std::memcpy(frame.data(), &header, sizeof header);
      std::memcpy(frame.data() + sizeof header, slot, header.inline_bytes);
      for (uint32_t r = 0; r < size(); ++r) {
        if (r == rank()) continue;
        peers_[r].frame->recv(r, kFrameTag, 0, kFrameBytes);
        frame.send(r, kFrameTag, 0, sizeof header + header.inline_bytes);
      }
      return true;
    });
  }

  Status wait(std::span<CallSignature> signatures) override {
    signatures[rank()] = signature_;
    for (uint32_t r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      RETURN_IF_ERROR(guarded([&] { return peers_[r].frame->wait_received(); }));
      FrameHeader header;
      std::memcpy(&header, peers_[r].frame->data(), sizeof header);
      signatures[r] = header.signature;
    }
    if (const Status same = compare_signatures(signatures); !same.ok()) return fail(same);
    return in_frame() ? ok_status() : guarded([&] { return exchange(signatures); });
  }

  const std::byte* published(uint32_t from) const override {
    if (from == rank()) return slots_[(posted_ - 1) % kSlots]->data();
    const Peer& peer = peers_[from];
    return in_frame() ? peer.frame->data() + sizeof(FrameHeader) : peer.slot->data();
  }

  Status send(uint32_t to, std::span<const std::byte> data, int64_t virtual_ns) override {
    Peer& peer = peers_[to];
    std::unique_ptr<GlooBuffer>& message = peer.sent[peer.messages++ % kMessagesAhead];
    return guarded([&] {
      if (!message) message = make(sizeof(MessageHeader) + message_bytes_max_);
      if (!message->wait_sent()) return false;
      const MessageHeader header{data.size(), virtual_ns};
      std::memcpy(message->data(), &header, sizeof header);
      message->send(to, kHeaderTag, 0, sizeof header);
      if (data.empty()) return true;
      std::memcpy(message->data() + sizeof header, data.data(), data.size());
      message->send(to, kMessageTag, sizeof header, data.size());
      return true;
    });
  }

  Status recv(uint32_t from, std::span<std::byte> data, int64_t* sent_virtual_ns) override {
    std::unique_ptr<GlooBuffer>& message = peers_[from].received;
    MessageHeader header;
    RETURN_IF_ERROR(guarded([&] {
      if (!message) message = make(sizeof(MessageHeader) + message_bytes_max_);
      message->recv(from, kHeaderTag, 0, sizeof header);
      if (!message->wait_received()) return false;
      std::memcpy(&header, message->data(), sizeof header);
      return true;
    }));
    if (header.size != data.size())
      return fail(invalid_argument("rank {} sent {} bytes, rank {} wants {}", from, header.size, rank(), data.size()));
    *sent_virtual_ns = header.virtual_ns;
    if (data.empty()) return {};
    return guarded([&] {
      message->recv(from, kMessageTag, 0, data.size());
      if (!message->wait_received()) return false;
      std::memcpy(data.data(), message->data(), data.size());
      return true;
    });
  }

 private:
  struct Peer {
    std::unique_ptr<GlooBuffer> frame;  // received
    std::unique_ptr<GlooBuffer> slot;   // received: what this rank reads of the peer's slot, at the same place
    std::array<std::unique_ptr<GlooBuffer>, kMessagesAhead> sent;
    std::unique_ptr<GlooBuffer> received;
    uint64_t messages = 0;
  };

  std::unique_ptr<GlooBuffer> make(uint64_t bytes) { return std::make_unique<GlooBuffer>(group_, *context_, bytes); }
  bool in_frame() const { return layout_.used <= kOneShotBytes; }

  // Runs what calls Gloo: false or an exception mean that the group is broken, and an exception breaks it.
  template <typename Body>
  Status guarded(Body body) {
    const BrokenPipeIgnored ignored;
    try {
      if (body()) return {};
    } catch (const std::exception& lost) {
      return fail(error(MOTLEY_UNAVAILABLE, "rank {} lost a connection: {}", rank(), lost.what()));
    }
    return fail(error(MOTLEY_INTERNAL, "rank {} was woken without a reason", rank()));
  }

  // The payload of a round whose slots do not fit into the frames: every rank has the same layout by now.
  bool exchange(std::span<const CallSignature> signatures) {
    GlooBuffer& own = *slots_[(posted_ - 1) % kSlots];
    const auto in_of = [&](uint32_t from, uint32_t to) {
      return signatures[from].contributes ? layout_.in[to] : SlotRange{};
    };
    for (uint32_t r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      if (!peers_[r].slot) peers_[r].slot = make(kSlotBytes);
      for (const SlotRange& part : {in_of(r, rank()), layout_.out[r]})
        if (part.size > 0) peers_[r].slot->recv(r, kPayloadTag, part.begin, part.size);
      for (const SlotRange& part : {in_of(rank(), r), layout_.out[rank()]})
        if (part.size > 0) own.send(r, kPayloadTag, part.begin, part.size);
    }
    for (uint32_t r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      for (const SlotRange& part : {in_of(r, rank()), layout_.out[r]})
        if (part.size > 0 && !peers_[r].slot->wait_received()) return false;
    }
    return true;
  }

  const std::shared_ptr<GlooGroup> group_;  // shared by the ranks of a group
  const std::unique_ptr<gloo::rendezvous::Context> context_;
  const uint64_t message_bytes_max_;
  std::vector<Peer> peers_;
  std::array<std::unique_ptr<GlooBuffer>, kSlots> slots_, frames_;
  CallSignature signature_;  // of the round posted last
  RoundLayout layout_;
  uint64_t posted_ = 0;
};

// Every rank's context must come at once: they connect to one another.
std::vector<std::unique_ptr<gloo::rendezvous::Context>> connect_all(uint32_t size) {
  const BrokenPipeIgnored ignored;  // for Gloo's own thread as long as it lives
  gloo::transport::tcp::attr loopback("127.0.0.1");
  loopback.ai_family = AF_INET;
  std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(loopback);
  gloo::rendezvous::HashStore store;
  std::vector<std::unique_ptr<gloo::rendezvous::Context>> contexts(size);
  std::vector<std::exception_ptr> failures(size);
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      try {
        contexts[r] = std::make_unique<gloo::rendezvous::Context>(static_cast<int>(r), static_cast<int>(size));
        contexts[r]->setTimeout(kConnectTimeout);
        std::shared_ptr<gloo::transport::Device> own = device;
        contexts[r]->connectFullMesh(store, own);
      } catch (...) {
        failures[r] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
  return contexts;
}

}  // namespace

Result<CommGroup> make_gloo_group(const GroupOptions& options) {
  RETURN_IF_ERROR(check_group_options(options));
  try {
    CommGroup group;
    auto shared = std::make_shared<GlooGroup>(options.size);
    for (auto& context : connect_all(options.size))
      group.push_back(make_communicator(
          std::make_unique<GlooTransport>(shared, std::move(context), options.message_bytes_max), options));
    return group;
  } catch (const std::exception& failure) {
    return error(MOTLEY_UNAVAILABLE, "Gloo could not connect {} ranks over 127.0.0.1: {}", options.size,
                 failure.what());
  }
}

}  // namespace motley
