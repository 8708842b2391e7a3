#include "model/gguf.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/quote.hpp"
#include "model/dtype.hpp"

namespace motley {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place, little-endian");

constexpr uint64_t kKeyBytesMax = 65535;
constexpr uint64_t kTensorNameBytesMax = 63;
constexpr uint64_t kAlignmentDefault = 32;
constexpr uint64_t kAlignmentMin = 8;  // so that typed loads of any element are aligned
constexpr uint64_t kAlignmentMax = 1u << 20;
constexpr uint64_t kEntriesMax = 1u << 20;
constexpr uint64_t kTensorsMax = 1u << 20;
// The least a key (length, one byte, type, one byte) and a tensor description (length, one byte, rank, one dimension,
// type, offset) can take: bounds the counts by the bytes there are.
constexpr uint64_t kEntryBytesMin = 8 + 1 + 4 + 1;
constexpr uint64_t kTensorBytesMin = 8 + 1 + 4 + 8 + 4 + 8;

struct TypeInfo {
  std::string_view name;
  uint32_t bytes;  // 0: not of fixed size
};
constexpr std::array<TypeInfo, 13> kTypes = {{{"u8", 1},
                                              {"i8", 1},
                                              {"u16", 2},
                                              {"i16", 2},
                                              {"u32", 4},
                                              {"i32", 4},
                                              {"f32", 4},
                                              {"bool", 1},
                                              {"string", 0},
                                              {"array", 0},
                                              {"u64", 8},
                                              {"i64", 8},
                                              {"f64", 8}}};

const TypeInfo* find_type(int32_t id) {
  return id >= 0 && static_cast<size_t>(id) < kTypes.size() ? &kTypes[static_cast<size_t>(id)] : nullptr;
}

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename Items, typename Name>
std::vector<uint32_t> order_by(const Items& items, Name name) {
  std::vector<uint32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return name(items[a]) < name(items[b]); });
  return order;
}

template <typename Items, typename Name>
auto find_ordered(const Items& items, const std::vector<uint32_t>& order, Name name, std::string_view wanted)
    -> decltype(items.data()) {
  const auto at = std::lower_bound(order.begin(), order.end(), wanted,
                                   [&](uint32_t index, std::string_view text) { return name(items[index]) < text; });
  return at != order.end() && name(items[*at]) == wanted ? &items[*at] : nullptr;
}

std::string_view key_of(const GgufEntry& entry) { return entry.key; }
std::string_view name_of(const GgufTensor& tensor) { return tensor.name; }

}  // namespace

// Walks the bytes once, front to back. position_ never passes the end.
class GgufParser {
 public:
  explicit GgufParser(std::span<const std::byte> bytes) : bytes_(bytes) {}

  Result<GgufFile> run() {
    RETURN_IF_ERROR(read_header());
    RETURN_IF_ERROR(read_entries());
    RETURN_IF_ERROR(read_alignment());
    RETURN_IF_ERROR(read_tensors());
    RETURN_IF_ERROR(place_tensors());
    return std::move(file_);
  }

 private:
  uint64_t left() const { return bytes_.size() - position_; }

  Status cut_short(std::string_view what) const {
    return invalid_argument("byte {}: {} reaches beyond the end of the file ({} bytes); {}", position_, what,
                            bytes_.size(), kGetFileAgain);
  }

  template <typename T>
  Status read(T* out, std::string_view what) {
    if (left() < sizeof(T)) return cut_short(what);
    *out = load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return ok_status();
  }

  Status read_text(std::string_view* out, std::string_view what) {
    uint64_t length = 0;
    RETURN_IF_ERROR(read(&length, what));
    if (length > left()) return cut_short(what);
    *out = std::string_view(reinterpret_cast<const char*>(bytes_.data()) + position_, length);
    position_ += length;
    return ok_status();
  }

  Status read_header() {
    constexpr std::string_view kMagic = "GGUF";
    if (bytes_.size() < kMagic.size() || std::memcmp(bytes_.data(), kMagic.data(), kMagic.size()) != 0) {
      return invalid_argument("byte 0: not a GGUF file (it does not begin with \"GGUF\"); give a model in GGUF format");
    }
    position_ = kMagic.size();
    RETURN_IF_ERROR(read(&file_.version_, "the version"));
    if (file_.version_ != 0 && (file_.version_ & 0xFFFFu) == 0) {
      return error(MOTLEY_UNIMPLEMENTED, "byte 4: the file is big-endian; convert it to little-endian");
    }
    if (file_.version_ != 2 && file_.version_ != 3) {
      return error(MOTLEY_UNIMPLEMENTED, "byte 4: GGUF version {} is not read (2 and 3 are); {}", file_.version_,
                   kConvertAgain);
    }
    int64_t tensors = 0;
    int64_t entries = 0;
    RETURN_IF_ERROR(read(&tensors, "the tensor count"));
    RETURN_IF_ERROR(read(&entries, "the key count"));
    RETURN_IF_ERROR(check_count(tensors, kTensorsMax, kTensorBytesMin, "tensors", 8));
    RETURN_IF_ERROR(check_count(entries, kEntriesMax, kEntryBytesMin, "keys", 16));
    tensor_count_ = static_cast<uint64_t>(tensors);
    entry_count_ = static_cast<uint64_t>(entries);
    return ok_status();
  }

  Status check_count(int64_t count, uint64_t most, uint64_t bytes_each, std::string_view what, uint64_t at) const {
    if (count < 0 || static_cast<uint64_t>(count) > std::min(most, left() / bytes_each)) {
      return invalid_argument("byte {}: {} {} cannot be in a file of {} bytes; {}", at, count, what, bytes_.size(),
                              kGetFileAgain);
    }
    return ok_status();
  }

  Status read_entries() {
    file_.entries_.reserve(entry_count_);
    for (uint64_t i = 0; i < entry_count_; ++i) {
      GgufEntry entry;
      const uint64_t start = position_;
      RETURN_IF_ERROR(read_text(&entry.key, "a key"));
      if (entry.key.empty() || entry.key.size() > kKeyBytesMax || entry.key.find('\0') != std::string_view::npos) {
        return invalid_argument("byte {}: key number {} is empty, longer than {} bytes or contains a zero byte; {}",
                                start, i, kKeyBytesMax, kGetFileAgain);
      }
      RETURN_IF_ERROR(read_value(&entry).annotate(fmt::format("key {}", in_quotes(entry.key))));
      file_.entries_.push_back(entry);
    }
    file_.entry_order_ = order_by(file_.entries_, key_of);
    for (size_t i = 1; i < file_.entry_order_.size(); ++i) {
      const GgufEntry& entry = file_.entries_[file_.entry_order_[i]];
      if (entry.key == file_.entries_[file_.entry_order_[i - 1]].key) {
        return gguf_key_error(entry, fmt::format("stands twice in the file; {}", kConvertAgain));
      }
    }
    return ok_status();
  }

  Status read_type(GgufType* out) {
    int32_t id = 0;
    const uint64_t start = position_;
    RETURN_IF_ERROR(read(&id, "a value type"));
    if (find_type(id) == nullptr) {
      return invalid_argument("byte {}: value type {} does not exist; {}", start, id, kGetFileAgain);
    }
    *out = static_cast<GgufType>(id);
    return ok_status();
  }

  Status read_value(GgufEntry* entry) {
    RETURN_IF_ERROR(read_type(&entry->type));
    entry->element = entry->type;
    entry->offset = position_;
    if (entry->type == GgufType::kString) {
      std::string_view text;
      RETURN_IF_ERROR(read_text(&text, "a string"));
      entry->payload = std::as_bytes(std::span(text));
      return ok_status();
    }
    if (entry->type == GgufType::kArray) {
      RETURN_IF_ERROR(read_type(&entry->element));
      RETURN_IF_ERROR(read(&entry->count, "an array length"));
      if (entry->element == GgufType::kArray) {
        return invalid_argument("byte {}: arrays of arrays are not read; {}", entry->offset, kConvertAgain);
      }
    }
    return entry->element == GgufType::kString ? skip_strings(entry) : take_scalars(entry);
  }

  Status skip_strings(GgufEntry* entry) {
    const uint64_t start = position_;
    // Each string takes eight bytes at least, so a hostile count ends at the end of the file.
    for (uint64_t i = 0; i < entry->count; ++i) {
      std::string_view text;
      RETURN_IF_ERROR(read_text(&text, "a string of an array"));
    }
    entry->payload = bytes_.subspan(start, position_ - start);
    return ok_status();
  }

  Status take_scalars(GgufEntry* entry) {
    const uint64_t each = find_type(static_cast<int32_t>(entry->element))->bytes;
    if (entry->count > left() / each) return cut_short(entry->type == GgufType::kArray ? "an array" : "a value");
    entry->payload = bytes_.subspan(position_, entry->count * each);
    position_ += entry->payload.size();
    if (entry->element != GgufType::kBool) return ok_status();
    for (size_t i = 0; i < entry->payload.size(); ++i) {
      if (std::to_integer<int>(entry->payload[i]) > 1) {
        return invalid_argument("byte {}: a bool is {}, neither 0 nor 1; {}", position_ - entry->payload.size() + i,
                                std::to_integer<int>(entry->payload[i]), kGetFileAgain);
      }
    }
    return ok_status();
  }

  Status read_alignment() {
    constexpr std::string_view kKey = "general.alignment";
    const GgufEntry* entry = file_.find(kKey);
    if (entry == nullptr) return ok_status();
    if (entry->type != GgufType::kU32) {
      return gguf_key_error(*entry, fmt::format("is {}, not u32; {}", gguf_type_name(entry->type), kConvertAgain));
    }
    alignment_ = load<uint32_t>(entry->payload.data());
    if (!std::has_single_bit(alignment_) || alignment_ < kAlignmentMin || alignment_ > kAlignmentMax) {
      return gguf_key_error(*entry, fmt::format("is {}, not a power of two from {} to {}; {}", alignment_,
                                                kAlignmentMin, kAlignmentMax, kConvertAgain));
    }
    return ok_status();
  }

  Status read_tensors() {
    // The keys have taken their bytes by now, so the count is checked against what is left once more.
    RETURN_IF_ERROR(check_count(static_cast<int64_t>(tensor_count_), kTensorsMax, kTensorBytesMin, "tensors", 8));
    file_.tensors_.reserve(tensor_count_);
    offsets_.reserve(tensor_count_);
    sizes_.reserve(tensor_count_);
    for (uint64_t i = 0; i < tensor_count_; ++i) {
      GgufTensor tensor;
      tensor.offset = position_;
      RETURN_IF_ERROR(read_text(&tensor.name, "a tensor name"));
      if (tensor.name.empty() || tensor.name.size() > kTensorNameBytesMax ||
          tensor.name.find('\0') != std::string_view::npos) {
        return invalid_argument(
            "byte {}: the name of tensor {} is empty, longer than {} bytes or contains a zero byte; {}", tensor.offset,
            i, kTensorNameBytesMax, kGetFileAgain);
      }
      RETURN_IF_ERROR(read_description(&tensor).annotate(fmt::format("tensor {}", in_quotes(tensor.name))));
      file_.tensors_.push_back(tensor);
    }
    file_.tensor_order_ = order_by(file_.tensors_, name_of);
    for (size_t i = 1; i < file_.tensor_order_.size(); ++i) {
      const GgufTensor& tensor = file_.tensors_[file_.tensor_order_[i]];
      if (tensor.name == file_.tensors_[file_.tensor_order_[i - 1]].name) {
        return invalid_argument("tensor {} (byte {}): stands twice in the file; {}", in_quotes(tensor.name),
                                tensor.offset, kConvertAgain);
      }
    }
    return ok_status();
  }

  Status read_description(GgufTensor* tensor) {
    uint32_t rank = 0;
    RETURN_IF_ERROR(read(&rank, "the rank"));
    if (rank < 1 || rank > kGgufRankMax) {
      return invalid_argument("byte {}: {} dimensions, not 1 to {}; {}", position_ - 4, rank, kGgufRankMax,
                              kGetFileAgain);
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      RETURN_IF_ERROR(read(&tensor->ne[i], "a dimension"));
      if (tensor->ne[i] < 1 || __builtin_mul_overflow(elements, static_cast<uint64_t>(tensor->ne[i]), &elements)) {
        return invalid_argument("byte {}: dimension {} is {}: zero, negative or too large; {}", position_ - 8, i,
                                tensor->ne[i], kGetFileAgain);
      }
    }
    RETURN_IF_ERROR(read(&tensor->dtype, "the type"));
    const DtypeInfo* info = find_dtype(tensor->dtype);
    if (info == nullptr || !info->in_gguf) {
      return error(MOTLEY_UNIMPLEMENTED, "byte {}: tensor type {} is not known; use a model with weights in {}",
                   position_ - 4, tensor->dtype, weight_dtype_names());
    }
    if (tensor->ne[0] % info->block_elements != 0) {
      return invalid_argument("byte {}: rows of {} elements are not whole {} blocks of {}; {}", tensor->offset,
                              tensor->ne[0], info->name, info->block_elements, kConvertAgain);
    }
    uint64_t size = 0;
    if (__builtin_mul_overflow(elements / info->block_elements, uint64_t{info->block_bytes}, &size)) {
      return invalid_argument("byte {}: its {} elements are more than any file can hold; {}", tensor->offset, elements,
                              kGetFileAgain);
    }
    uint64_t offset = 0;
    RETURN_IF_ERROR(read(&offset, "the data offset"));
    if (offset % alignment_ != 0) {
      return invalid_argument("byte {}: its data offset {} is not a multiple of the alignment {}; {}", position_ - 8,
                              offset, alignment_, kConvertAgain);
    }
    offsets_.push_back(offset);
    sizes_.push_back(size);
    return ok_status();
  }

  Status place_tensors() {
    if (tensor_count_ == 0) return ok_status();
    const uint64_t data_start = (position_ + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t data_size = data_start <= bytes_.size() ? bytes_.size() - data_start : 0;
    for (size_t i = 0; i < file_.tensors_.size(); ++i) {
      GgufTensor& tensor = file_.tensors_[i];
      if (offsets_[i] > data_size || sizes_[i] > data_size - offsets_[i]) {
        return invalid_argument(
            "tensor {} (byte {}): its {} bytes at data offset {} reach beyond the end of the file ({} bytes); {}",
            in_quotes(tensor.name), tensor.offset, sizes_[i], offsets_[i], bytes_.size(), kGetFileAgain);
      }
      tensor.data = bytes_.subspan(data_start + offsets_[i], sizes_[i]);
    }
    return check_overlaps();
  }

  Status check_overlaps() const {
    const std::vector<uint32_t> order = order_by(file_.tensors_, [](const GgufTensor& t) { return t.data.data(); });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = file_.tensors_[order[i - 1]];
      const GgufTensor& after = file_.tensors_[order[i]];
      if (after.data.data() < before.data.data() + before.data.size()) {
        return invalid_argument("tensor {} (byte {}): its data overlaps that of tensor {}; {}", in_quotes(after.name),
                                after.offset, in_quotes(before.name), kGetFileAgain);
      }
    }
    return ok_status();
  }

  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
  uint64_t tensor_count_ = 0, entry_count_ = 0;
  uint64_t alignment_ = kAlignmentDefault;
  std::vector<uint64_t> offsets_, sizes_;  // of the tensors' data, until they are placed
  GgufFile file_;
};

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes) { return GgufParser(bytes).run(); }

const GgufEntry* GgufFile::find(std::string_view key) const {
  return find_ordered(entries_, entry_order_, key_of, key);
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  return find_ordered(tensors_, tensor_order_, name_of, name);
}

std::string_view gguf_type_name(GgufType type) { return kTypes[static_cast<size_t>(type)].name; }

Status gguf_key_error(const GgufEntry& entry, std::string_view what) {
  return invalid_argument("key {} (byte {}): {}", in_quotes(entry.key), entry.offset, what);
}

}  // namespace motley
