// The transport over one shared mapping. Everything in it is an offset or a number, every wait a futex that is not
// private, so that ranks may sit in other processes.
//
//   GroupState | RankState[size] | RingState[size * size] | slots: size * kSlots * kSlotBytes | rings: size * (size -
//   1)
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <new>
#include <utility>

#include "base/clock.hpp"
#include "comm/transport.hpp"

namespace motley {
namespace {

constexpr uint64_t kMappingBytesMax = uint64_t{1} << 38;  // address space; pages are taken when touched
constexpr uint64_t kRingChunkBytes = 256u << 10;          // of a message: the receiver copies out behind the sender
// As long as it takes to be woken, or longer. On cores of one's own so long that being woken is little beside the wait:
// unlike shares make one side wait for the other in every layer.
constexpr std::chrono::nanoseconds kSpin{50'000}, kSpinOnOwnCores{1'000'000};
constexpr int kPausesPerLook = 32;     // between two looks at the clock
constexpr size_t kMessageBytes = 256;  // of a failure
constexpr int kYields = 10'000;        // while another rank writes those few bytes

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);
using Word = std::atomic<uint32_t>;

struct alignas(128) GroupState {
  std::atomic<uint64_t> arrived;    // posts of all ranks and rounds
  std::atomic<uint64_t> completed;  // rounds that all have posted
  Word bell;                        // moves when a round is complete or the group is broken
  Word sleepers;                    // on the bell
  Word broken;                      // 0, 1 while the failure is written, 2
  uint32_t code;
  char message[kMessageBytes];
};
struct alignas(128) RankState {
  Word bell;  // moves when a ring that the rank waits for has, or the group is broken
  Word sleeping;
  CallSignature signatures[kSlots];
};
struct alignas(128) RingState {  // one writer, one reader; bytes so far
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
};
struct MessageHeader {
  uint64_t size;
  int64_t virtual_ns;
};

// False once the clock has passed the deadline.
bool futex_wait(Word& word, uint32_t value, int64_t deadline_ns) {
  timespec until{};
  until.tv_sec = static_cast<time_t>(deadline_ns / 1'000'000'000);
  until.tv_nsec = static_cast<long>(deadline_ns % 1'000'000'000);
  const long rc = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, value, deadline_ns == INT64_MAX ? nullptr : &until,
                          nullptr, FUTEX_BITSET_MATCH_ANY);
  return rc == 0 || errno != ETIMEDOUT;
}

void ring_bell(Word& bell) {
  bell.fetch_add(1);
  syscall(SYS_futex, &bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// The mapping and where things lie in it. Lives as long as its last rank.
class Mapping {
 public:
  static Result<std::shared_ptr<Mapping>> create(const GroupOptions& options) {
    auto mapping = std::shared_ptr<Mapping>(new Mapping(options));
    if (mapping->bytes_ > kMappingBytesMax)
      return error(MOTLEY_RESOURCE_EXHAUSTED, "{} ranks with messages of {} bytes need {} bytes of shared memory",
                   options.size, options.message_bytes_max, mapping->bytes_);
    const int fd = memfd_create("motley-group", MFD_CLOEXEC);
    if (fd < 0) return error(MOTLEY_RESOURCE_EXHAUSTED, "memfd_create: {}", std::strerror(errno));
    void* base = MAP_FAILED;
    if (ftruncate(fd, static_cast<off_t>(mapping->bytes_)) == 0)
      base = mmap(nullptr, mapping->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    const int failed = errno;
    close(fd);
    if (base == MAP_FAILED)
      return error(MOTLEY_RESOURCE_EXHAUSTED, "{} bytes of shared memory: {}", mapping->bytes_, std::strerror(failed));
    mapping->base_ = static_cast<std::byte*>(base);
    mapping->construct();
    return mapping;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (base_ != nullptr) munmap(base_, bytes_);
  }

  uint32_t size() const { return size_; }
  uint64_t ring_bytes() const { return ring_bytes_; }
  GroupState& group() const { return *at<GroupState>(0); }
  RankState& rank(uint32_t r) const { return *at<RankState>(ranks_ + r * sizeof(RankState)); }
  RingState& ring(uint32_t from, uint32_t to) const {
    return *at<RingState>(ring_states_ + (uint64_t{from} * size_ + to) * sizeof(RingState));
  }
  std::byte* slot(uint32_t r, uint64_t round) const {
    return base_ + slots_ + (uint64_t{r} * kSlots + round % kSlots) * kSlotBytes;
  }
  std::byte* ring_data(uint32_t from, uint32_t to) const {
    return base_ + rings_ + (uint64_t{from} * (size_ - 1) + (to > from ? to - 1 : to)) * ring_bytes_;
  }

 private:
  explicit Mapping(const GroupOptions& options) : size_(options.size) {
    const auto page = [](uint64_t bytes) { return (bytes + 4095) / 4096 * 4096; };
    ring_bytes_ = page(2 * (options.message_bytes_max + sizeof(MessageHeader)));
    ranks_ = sizeof(GroupState);
    ring_states_ = ranks_ + size_ * sizeof(RankState);
    slots_ = page(ring_states_ + uint64_t{size_} * size_ * sizeof(RingState));
    rings_ = slots_ + page(uint64_t{size_} * kSlots * kSlotBytes);
    bytes_ = rings_ + uint64_t{size_} * (size_ - 1) * ring_bytes_;
  }
  void construct() {
    new (&group()) GroupState{};
    for (uint32_t r = 0; r < size_; ++r) new (&rank(r)) RankState{};
    for (uint32_t from = 0; from < size_; ++from)
      for (uint32_t to = 0; to < size_; ++to) new (&ring(from, to)) RingState{};
  }
  template <typename T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

  const uint32_t size_;
  uint64_t ring_bytes_ = 0, ranks_ = 0, ring_states_ = 0, slots_ = 0, rings_ = 0, bytes_ = 0;
  std::byte* base_ = nullptr;
};

// Spinning pays only where the others have cores of their own to come on.
std::chrono::nanoseconds spin_of(const GroupOptions& options) {
  if (options.own_cores) return kSpinOnOwnCores;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {};
  return CPU_COUNT(&allowed) > static_cast<int>(options.size) ? kSpin : std::chrono::nanoseconds{};
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class SharedMemoryTransport final : public Transport {
 public:
  SharedMemoryTransport(std::shared_ptr<Mapping> mapping, uint32_t rank, const GroupOptions& options)
      : mapping_(std::move(mapping)), rank_(rank), spin_(spin_of(options)) {}

  uint32_t rank() const override { return rank_; }
  uint32_t size() const override { return mapping_->size(); }
  Route route() const override { return Route::kSharedMemory; }

  Status begin(int64_t deadline_ns) override {
    deadline_ns_ = deadline_ns;
    return status();
  }
  void end() override {}

  std::byte* slot() override { return mapping_->slot(rank_, posted_); }

  Status post(const CallSignature& signature, const RoundLayout&) override {
    GroupState& group = mapping_->group();
    mapping_->rank(rank_).signatures[posted_ % kSlots] = signature;
    ++posted_;
    // A rank posts a round only after the one before is complete: the last to come sees exactly this count.
    if (group.arrived.fetch_add(1) + 1 == posted_ * size()) {
      group.completed.store(posted_);
      if (group.sleepers.load() != 0) ring_bell(group.bell);
    }
    return {};
  }

  Status wait(std::span<CallSignature> signatures) override {
    GroupState& group = mapping_->group();
    RETURN_IF_ERROR(wait_until(group.bell, group.sleepers, [&] { return group.completed.load() >= posted_; }));
    const uint64_t round = posted_ - 1;
    for (uint32_t r = 0; r < size(); ++r) signatures[r] = mapping_->rank(r).signatures[round % kSlots];
    const Status same = compare_signatures(signatures);
    return same.ok() ? same : fail(same);
  }

  const std::byte* published(uint32_t from) const override { return mapping_->slot(from, posted_ - 1); }

  Status send(uint32_t to, std::span<const std::byte> data, int64_t virtual_ns) override {
    const MessageHeader header{data.size(), virtual_ns};
    RETURN_IF_ERROR(write(to, std::as_bytes(std::span(&header, 1))));
    return write(to, data);
  }

  Status recv(uint32_t from, std::span<std::byte> data, int64_t* sent_virtual_ns) override {
    MessageHeader header{};
    RETURN_IF_ERROR(read(from, std::as_writable_bytes(std::span(&header, 1))));
    if (header.size != data.size())
      return fail(invalid_argument("rank {} sent {} bytes, rank {} wants {}", from, header.size, rank_, data.size()));
    *sent_virtual_ns = header.virtual_ns;
    return read(from, data);
  }

  Status fail(const Status& why) override {
    GroupState& group = mapping_->group();
    uint32_t whole = 0;
    if (group.broken.compare_exchange_strong(whole, 1)) {
      group.code = static_cast<uint32_t>(why.code());
      const size_t length = std::min(why.message().size(), kMessageBytes - 1);
      std::memcpy(group.message, why.message().data(), length);
      group.message[length] = 0;
      group.broken.store(2);
      ring_bell(group.bell);
      for (uint32_t r = 0; r < size(); ++r) ring_bell(mapping_->rank(r).bell);
    }
    return status();
  }

 private:
  // OK, or what broke the group.
  Status status() const {
    const GroupState& group = mapping_->group();
    if (group.broken.load() == 0) return {};
    for (int yield = 0; yield < kYields && group.broken.load() == 1; ++yield) sched_yield();
    if (group.broken.load() == 1) return error(MOTLEY_UNAVAILABLE, "the group is broken; who broke it did not say why");
    return Status(static_cast<Code>(group.code), group.message);
  }

  // Sleeps on `bell` until done(). Whoever makes done() true looks at `sleepers` afterwards; all are sequentially
  // consistent, so either it sees this one or this one sees done().
  template <typename Done>
  Status wait_until(Word& bell, Word& sleepers, Done done) {
    if (spin_.count() > 0) {
      const auto end = std::chrono::steady_clock::now() + spin_;
      do {
        for (int i = 0; i < kPausesPerLook; ++i) {
          if (done()) return {};
          pause_briefly();
        }
      } while (std::chrono::steady_clock::now() < end);
    }
    while (!done()) {
      const uint32_t value = bell.load();
      sleepers.fetch_add(1);
      bool in_time = true;
      if (!done() && mapping_->group().broken.load() == 0) in_time = futex_wait(bell, value, deadline_ns_);
      sleepers.fetch_sub(1);
      if (done()) break;
      RETURN_IF_ERROR(status());
      if (!in_time || system_clock().now_ns() >= deadline_ns_)
        return fail(error(MOTLEY_DEADLINE_EXCEEDED, "rank {} of {} waited for the others in vain", rank_, size()));
    }
    return {};
  }

  Status write(uint32_t to, std::span<const std::byte> data) {
    RingState& ring = mapping_->ring(rank_, to);
    RankState& own = mapping_->rank(rank_);
    RankState& peer = mapping_->rank(to);
    while (!data.empty()) {
      const uint64_t written = ring.written.load();
      const auto room = [&] { return mapping_->ring_bytes() - (written - ring.read.load()); };
      RETURN_IF_ERROR(wait_until(own.bell, own.sleeping, [&] { return room() > 0; }));
      const uint64_t at = written % mapping_->ring_bytes();
      const uint64_t count = std::min({room(), data.size(), kRingChunkBytes, mapping_->ring_bytes() - at});
      std::memcpy(mapping_->ring_data(rank_, to) + at, data.data(), count);
      ring.written.store(written + count);
      if (peer.sleeping.load() != 0) ring_bell(peer.bell);
      data = data.subspan(count);
    }
    return {};
  }

  Status read(uint32_t from, std::span<std::byte> data) {
    RingState& ring = mapping_->ring(from, rank_);
    RankState& own = mapping_->rank(rank_);
    RankState& peer = mapping_->rank(from);
    while (!data.empty()) {
      const uint64_t done = ring.read.load();
      const auto there = [&] { return ring.written.load() - done; };
      RETURN_IF_ERROR(wait_until(own.bell, own.sleeping, [&] { return there() > 0; }));
      const uint64_t at = done % mapping_->ring_bytes();
      const uint64_t count = std::min({there(), data.size(), kRingChunkBytes, mapping_->ring_bytes() - at});
      std::memcpy(data.data(), mapping_->ring_data(from, rank_) + at, count);
      ring.read.store(done + count);
      if (peer.sleeping.load() != 0) ring_bell(peer.bell);
      data = data.subspan(count);
    }
    return {};
  }

  const std::shared_ptr<Mapping> mapping_;  // shared by the ranks of this process
  const uint32_t rank_;
  const std::chrono::nanoseconds spin_;  // before it sleeps
  uint64_t posted_ = 0;                  // rounds
  int64_t deadline_ns_ = INT64_MAX;
};

}  // namespace

Result<CommGroup> make_shared_memory_group(const GroupOptions& options) {
  RETURN_IF_ERROR(check_group_options(options));
  ASSIGN_OR_RETURN(const std::shared_ptr<Mapping> mapping, Mapping::create(options));
  CommGroup group;
  for (uint32_t r = 0; r < options.size; ++r)
    group.push_back(make_communicator(std::make_unique<SharedMemoryTransport>(mapping, r, options), options));
  return group;
}

}  // namespace motley
