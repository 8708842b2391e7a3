#include "model/hf/checkpoint.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>

#include "base/quote.hpp"
#include "model/hf/json.hpp"

namespace motley::hf {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr uint64_t kIndexBytesMax = 100'000'000;
constexpr size_t kFilesMax = 2048;
constexpr std::string_view kGetModelAgain = "get the model again";

// What a folder without safetensors holds instead decides the advice.
Status no_weights(const Directory& directory) {
  for (const std::string_view suffix : {".bin", ".pt", ".pth", ".ckpt"}) {
    const std::vector<std::string> names = directory.names_with(suffix);
    if (names.empty()) continue;
    return error(MOTLEY_UNIMPLEMENTED,
                 "{}: pickled weights are not read, since they can run code; convert the model to safetensors",
                 in_quotes(names.front()));
  }
  const std::vector<std::string> files = directory.names_with(".safetensors");
  if (!files.empty()) {
    return error(MOTLEY_NOT_FOUND, "{}: is neither '{}' nor named by '{}'; get the model in Hugging Face layout",
                 in_quotes(files.front()), kSingleFile, kIndexFile);
  }
  return error(MOTLEY_NOT_FOUND, "'{}': is missing, and so is '{}'; get the model in Hugging Face layout", kSingleFile,
               kIndexFile);
}

Result<WeightMap> read_index(const Directory& directory) {
  ASSIGN_OR_RETURN(const std::optional<MappedFile> index, directory.map(kIndexFile, kIndexBytesMax));
  if (!index) return no_weights(directory);
  auto weight_map = parse_index(text_of(*index));
  if (!weight_map.ok()) return weight_map.error().annotate(in_quotes(kIndexFile));
  return weight_map;
}

}  // namespace

Result<WeightMap> parse_index(std::string_view text) {
  ASSIGN_OR_RETURN(const JsonValue root, parse_json(text));
  const JsonValue* map = root.find("weight_map");
  if (map == nullptr || map->object() == nullptr || map->object()->empty()) {
    return invalid_argument("key 'weight_map': is missing, empty or no object; {}", kGetModelAgain);
  }
  WeightMap weight_map;
  weight_map.reserve(map->object()->size());
  std::set<std::string_view> files;
  for (const auto& [tensor, file] : *map->object()) {
    if (file.text() == nullptr || !is_plain_file_name(*file.text()) || !file.text()->ends_with(".safetensors")) {
      return invalid_argument("key 'weight_map', tensor {}: is not in a file of the model's folder but in {}; {}",
                              in_quotes(tensor), file.text() == nullptr ? file.kind_name() : in_quotes(*file.text()),
                              kGetModelAgain);
    }
    files.insert(*file.text());
    weight_map.emplace_back(tensor, *file.text());
  }
  if (files.size() > kFilesMax) {
    return invalid_argument("key 'weight_map': names {} files, more than {}; {}", files.size(), kFilesMax,
                            kGetModelAgain);
  }
  return weight_map;
}

Result<Checkpoint> Checkpoint::open(const Directory& directory) {
  Checkpoint checkpoint;
  ASSIGN_OR_RETURN(const std::optional<MappedFile> single,
                   directory.map(kSingleFile, std::numeric_limits<uint64_t>::max()));
  if (single) {
    RETURN_IF_ERROR(checkpoint.add_file(directory, std::string(kSingleFile)));
    RETURN_IF_ERROR(checkpoint.order_tensors());
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const WeightMap weight_map, read_index(directory));
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map) names.insert(file);
  for (const std::string& name : names) RETURN_IF_ERROR(checkpoint.add_file(directory, name));
  RETURN_IF_ERROR(checkpoint.check_index(weight_map));
  RETURN_IF_ERROR(checkpoint.order_tensors());
  return checkpoint;
}

Status Checkpoint::add_file(const Directory& directory, const std::string& name) {
  ASSIGN_OR_RETURN(auto bytes, directory.map(name, std::numeric_limits<uint64_t>::max()));
  if (!bytes) {
    return error(MOTLEY_NOT_FOUND, "{}: is named by '{}' but missing; {}", in_quotes(name), kIndexFile, kGetModelAgain);
  }
  auto parsed = SafetensorsFile::parse(bytes->bytes());
  if (!parsed.ok()) return parsed.error().annotate(in_quotes(name));
  file_bytes_ += bytes->bytes().size();
  files_.push_back(std::make_unique<File>(File{name, *std::move(bytes), *std::move(parsed)}));
  return ok_status();
}

// Index and files must tell the same: every entry in its file, every tensor of a file in the index.
Status Checkpoint::check_index(const WeightMap& weight_map) const {
  size_t stored = 0;
  for (const auto& file : files_) {
    for (const SafetensorsTensor& tensor : file->directory.tensors()) {
      const auto at = std::lower_bound(weight_map.begin(), weight_map.end(), tensor.name,
                                       [](const auto& entry, const std::string& name) { return entry.first < name; });
      if (at == weight_map.end() || at->first != tensor.name || at->second != file->name) {
        return invalid_argument("{}: holds tensor {}, which '{}' does not place there; {}", in_quotes(file->name),
                                in_quotes(tensor.name), kIndexFile, kGetModelAgain);
      }
      ++stored;
    }
  }
  if (stored == weight_map.size()) return ok_status();
  for (const auto& [name, file] : weight_map) {
    const auto holder = std::find_if(files_.begin(), files_.end(), [&](const auto& f) { return f->name == file; });
    if (holder != files_.end() && (*holder)->directory.find(name) != nullptr) continue;
    return invalid_argument("'{}': places tensor {} in {}, which does not hold it; {}", kIndexFile, in_quotes(name),
                            in_quotes(file), kGetModelAgain);
  }
  return ok_status();
}

Status Checkpoint::order_tensors() {
  for (const auto& file : files_) {
    for (const SafetensorsTensor& tensor : file->directory.tensors()) tensors_.push_back(&tensor);
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  for (size_t i = 1; i < tensors_.size(); ++i) {
    if (tensors_[i]->name == tensors_[i - 1]->name) {
      return invalid_argument("tensor {}: stands in two files; {}", in_quotes(tensors_[i]->name), kGetModelAgain);
    }
  }
  return ok_status();
}

const SafetensorsTensor* Checkpoint::find(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const SafetensorsTensor* tensor, std::string_view wanted) { return tensor->name < wanted; });
  return at != tensors_.end() && (*at)->name == name ? *at : nullptr;
}

std::string_view Checkpoint::file_of(const SafetensorsTensor& tensor) const {
  const auto at = std::find_if(files_.begin(), files_.end(),
                               [&](const auto& file) { return file->directory.find(tensor.name) == &tensor; });
  CHECK(at != files_.end(), "{}", tensor.name);
  return (*at)->name;
}

}  // namespace motley::hf
