// The bytes between host and worker: calls, limits, and a writer and reader of flat values (docs/contracts/worker.md).
// Both sides run the same program, so numbers and plain structs cross in the machine's own form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace motley::worker {

inline constexpr uint32_t kMagic = 0x574C544D;  // "MTLW"
inline constexpr uint16_t kVersion = 2;

// Control calls, each answered by one kReply of the same id.
enum class Call : uint16_t {
  kReply = 0,
  kHello,
  kOpen,
  kClose,
  kStats,
  kQueueCreate,
  kQueueDestroy,
  kAlloc,
  kFree,
  kPack,
  kWeightFree,
  kKvCreate,
  kKvDestroy,
  kKvLayout,
  kQuery,
  kCompile,
  kProgramsFree,
  kExportPrograms,
  kStage,    // a staging region for one step call
  kUnstage,  // of a step call that was never made
  kCount
};

// Records of the ring.
enum class Step : uint16_t {
  kPad = 0,  // nothing: fills the ring's end
  kEnqueue,
  kCopy,
  kCopyToHost,
  kCopyFromHost,
  kFence,
  kKvExport,
  kKvImport,
  kCount
};

// Entries of the table that a plugin may leave null; bit positions of the mask in the answer to kHello.
enum class Entry : uint32_t {
  kStats,
  kCopy,
  kCopyToHost,
  kCopyFromHost,
  kKvCreate,
  kKvDestroy,
  kKvLayout,
  kKvExport,
  kKvImport,
  kExportPrograms,
  kEventTimes,
  kFence
};

inline constexpr uint32_t kBodyBytesMax = 256u << 20;  // of a control message
inline constexpr uint32_t kDescriptorsMax = 8;         // of a control message
inline constexpr uint32_t kTextBytesMax = 64u << 10;
inline constexpr uint32_t kDevicesMax = 256;
inline constexpr uint32_t kItemsMax = 1u << 20;       // values, ops, weights, ranges, regions, rows
inline constexpr uint32_t kLayersMax = 4096;          // of a KV pool
inline constexpr uint32_t kBucketsMax = 1024;         // of a compile
inline constexpr uint32_t kBatchItemsMax = 1u << 24;  // of one array of a batch

class Writer {
 public:
  template <class T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    append(&value, sizeof value);
  }
  // Whether it is there, its length, and, if it is there, its elements.
  template <class T>
  void put_array(const T* items, uint32_t count) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    put<uint8_t>(items != nullptr);
    put(count);
    if (items != nullptr) append(items, uint64_t{count} * sizeof(T));
  }
  void put_text(std::string_view text) { put_array(text.data(), static_cast<uint32_t>(text.size())); }
  void put_text(const char* text) { put_array(text, text == nullptr ? 0 : static_cast<uint32_t>(std::strlen(text))); }
  void put_bytes(std::span<const std::byte> bytes) { append(bytes.data(), bytes.size()); }
  void clear() { bytes_.clear(); }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  void append(const void* from, uint64_t bytes) {
    const auto* begin = static_cast<const std::byte*>(from);
    bytes_.insert(bytes_.end(), begin, begin + bytes);
  }
  std::vector<std::byte> bytes_;
};

// An array as the ABI passes it: a pointer that may be null, and a count.
template <class T>
struct Array {
  bool present = false;
  uint32_t count = 0;
  std::vector<T> items;
  // Not null for an empty array that is there.
  const T* data() const {
    static const T none{};
    return !present ? nullptr : items.empty() ? &none : items.data();
  }
};

// Reads what a Writer wrote. Nothing is trusted: after the first value that is not there every answer is empty and
// ok() is false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <class T>
  T get() {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_pointer_v<T>);
    T value{};
    if (take(sizeof value)) std::memcpy(&value, taken_, sizeof value);
    return value;
  }
  template <class T>
  Array<T> get_array(uint32_t count_max) {
    Array<T> array;
    const auto present = get<uint8_t>();
    const auto count = get<uint32_t>();
    if (present > 1 || count > count_max) ok_ = false;
    if (!ok_) return array;
    array.present = present == 1;
    array.count = count;
    if (array.present && count > 0 && take(uint64_t{count} * sizeof(T))) {
      array.items.resize(count);
      std::memcpy(array.items.data(), taken_, uint64_t{count} * sizeof(T));
    }
    return array;
  }
  std::optional<std::string> get_text() {
    const Array<char> text = get_array<char>(kTextBytesMax);
    if (!text.present || !ok_) return std::nullopt;
    return std::string(text.items.begin(), text.items.end());
  }
  bool ok() const { return ok_; }
  size_t left() const { return left_.size(); }
  // Everything was there, and nothing is left over.
  bool done() const { return ok_ && left_.empty(); }

 private:
  bool take(uint64_t bytes) {
    if (!ok_ || bytes > left_.size()) return ok_ = false;
    taken_ = left_.data();
    left_ = left_.subspan(bytes);
    return true;
  }
  std::span<const std::byte> left_;
  const std::byte* taken_ = nullptr;
  bool ok_ = true;
};

}  // namespace motley::worker
