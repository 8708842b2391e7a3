#include "model/gguf_store.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/quote.hpp"

namespace motley {
namespace {

constexpr uint64_t kPartsMax = 1024;
constexpr std::string_view kMergeParts = "get all parts of one download again, under their own names";

// "-00002-of-00003": how the name of a part ends, before its extension.
std::string part_suffix(uint64_t number, uint64_t count) { return fmt::format("-{:05}-of-{:05}", number, count); }

// What a part says of itself.
struct Split {
  uint64_t number = 0, count = 1, tensors = 0;  // number from 0; tensors of all parts together
};

Result<Split> read_split(const GgufFile& file) {
  Split split;
  struct Key {
    std::string_view key;
    uint64_t Split::*value;
  };
  constexpr std::array kKeys = {Key{"split.count", &Split::count}, Key{"split.no", &Split::number},
                                Key{"split.tensors.count", &Split::tensors}};
  for (const Key& key : kKeys) {
    ASSIGN_OR_RETURN(const auto value, file.read_count(key.key));
    if (value) {
      split.*key.value = *value;
    } else if (split.count > 1) {
      return invalid_argument("key {}: is missing, though the file is a part of a split model; {}", in_quotes(key.key),
                              kMergeParts);
    }
  }
  if (split.count > kPartsMax || (split.count > 1 && split.number >= split.count)) {
    return gguf_key_error(*file.find("split.count"),
                          fmt::format("part {} of {} cannot be (most: {} parts); {}", split.number + 1, split.count,
                                      kPartsMax, kMergeParts));
  }
  return split;
}

}  // namespace

Result<GgufStore::Part> GgufStore::open_part(const std::filesystem::path& path) {
  const std::string shown = path.string();
  auto mapped = MappedFile::open(path);
  if (!mapped.ok()) return mapped.error().annotate(shown);
  auto file = GgufFile::parse(mapped->bytes());
  if (!file.ok()) return file.error().annotate(shown);
  const uint64_t bytes = mapped->bytes().size();
  return Part{*std::move(file), bytes, *std::move(mapped)};
}

Result<std::unique_ptr<const GgufStore>> GgufStore::open(const std::filesystem::path& path) {
  auto store = std::make_unique<GgufStore>();
  ASSIGN_OR_RETURN(Part part, open_part(path));
  store->parts_.push_back(std::move(part));
  if (const Status others = store->open_others(path); !others.ok()) return others;
  if (const Status indexed = store->index_weights(); !indexed.ok()) return indexed.annotate(path.string());
  return std::unique_ptr<const GgufStore>(std::move(store));
}

Result<std::unique_ptr<const GgufStore>> GgufStore::parse(std::span<const std::byte> bytes) {
  auto store = std::make_unique<GgufStore>();
  ASSIGN_OR_RETURN(GgufFile file, GgufFile::parse(bytes));
  store->parts_.push_back({std::move(file), bytes.size(), std::nullopt});
  ASSIGN_OR_RETURN(const auto count, store->file().read_count("split.count"));
  if (count.value_or(1) > 1) {
    return error(
        MOTLEY_UNIMPLEMENTED,
        "key 'split.count' (byte {}): is a part of a model of {} files; give the path of one of them, with the "
        "others beside it",
        store->file().find("split.count")->offset, *count);
  }
  RETURN_IF_ERROR(store->index_weights());
  return std::unique_ptr<const GgufStore>(std::move(store));
}

// parts_ holds the part that was named; afterwards all of them, in order.
Status GgufStore::open_others(const std::filesystem::path& path) {
  const auto own = read_split(file());
  if (!own.ok()) return own.error().annotate(path.string());
  if (own->count <= 1) return ok_status();
  const std::string stem = path.stem().string();
  const std::string suffix = part_suffix(own->number + 1, own->count);
  if (!stem.ends_with(suffix)) {
    return gguf_key_error(*file().find("split.no"),
                          fmt::format("the file is part {} of {}, but its name does not end in '{}'; {}",
                                      own->number + 1, own->count, suffix, kMergeParts))
        .annotate(path.string());
  }
  std::vector<Part> parts;
  uint64_t tensors = 0;
  for (uint64_t i = 0; i < own->count; ++i) {
    std::filesystem::path other = path;
    other.replace_filename(stem.substr(0, stem.size() - suffix.size()) + part_suffix(i + 1, own->count));
    other += path.extension();
    if (std::error_code failed; !std::filesystem::exists(other, failed)) {  // beside the file that a link stands for
      const auto behind = std::filesystem::canonical(path, failed).replace_filename(other.filename());
      if (!failed && std::filesystem::exists(behind, failed)) other = behind;
    }
    if (i == own->number) {
      parts.push_back(std::move(parts_.front()));
    } else {
      ASSIGN_OR_RETURN(Part part, open_part(other));
      parts.push_back(std::move(part));
    }
    const auto split = read_split(parts.back().file);
    if (!split.ok()) return split.error().annotate(other.string());
    if (split->number != i || split->count != own->count || split->tensors != own->tensors) {
      return invalid_argument(
          "{}: says it is part {} of {} of a model of {} tensors, but part {} of {} of a model of {} is wanted; {}",
          other.string(), split->number + 1, split->count, split->tensors, i + 1, own->count, own->tensors,
          kMergeParts);
    }
    tensors += parts.back().file.tensors().size();
  }
  parts_ = std::move(parts);
  if (tensors == own->tensors) return ok_status();
  return invalid_argument("{}: the {} parts hold {} tensors, but 'split.tensors.count' is {}; {}", path.string(),
                          own->count, tensors, own->tensors, kMergeParts);
}

Status GgufStore::index_weights() {
  for (uint32_t part = 0; part < parts_.size(); ++part) {
    for (const GgufTensor& tensor : parts_[part].file.tensors()) weights_.push_back({part, &tensor});
  }
  std::sort(weights_.begin(), weights_.end(),
            [](const Weight& a, const Weight& b) { return a.tensor->name < b.tensor->name; });
  for (size_t i = 1; i < weights_.size(); ++i) {
    if (weights_[i].tensor->name != weights_[i - 1].tensor->name) continue;
    return invalid_argument("{}: stands in part {} too; {}", place(i), weights_[i - 1].part + 1, kMergeParts);
  }
  return ok_status();
}

StoredWeight GgufStore::at(size_t index) const {
  const GgufTensor& tensor = *weights_.at(index).tensor;
  return {.name = tensor.name, .dtype = tensor.dtype, .ne = tensor.ne, .bytes = tensor.data.size()};
}

size_t GgufStore::find(std::string_view name) const {
  const auto at = std::lower_bound(weights_.begin(), weights_.end(), name,
                                   [](const Weight& weight, std::string_view n) { return weight.tensor->name < n; });
  return at != weights_.end() && at->tensor->name == name ? static_cast<size_t>(at - weights_.begin()) : size();
}

std::string GgufStore::place(size_t index) const {
  const Weight& weight = weights_.at(index);
  const std::string part = parts_.size() > 1 ? fmt::format(" of part {}", weight.part + 1) : "";
  return fmt::format("tensor {} (byte {}{})", in_quotes(weight.tensor->name), weight.tensor->offset, part);
}

Result<WeightBytes> GgufStore::read(size_t index) const { return WeightBytes(weights_.at(index).tensor->data); }

void GgufStore::release(size_t index) const {
  const Weight& weight = weights_.at(index);
  if (parts_[weight.part].mapped) drop_pages(weight.tensor->data);
}

uint64_t GgufStore::file_bytes() const {
  uint64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.bytes;
  return bytes;
}

}  // namespace motley
