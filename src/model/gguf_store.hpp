// GgufStore: the tensors of a GGUF model, in one file or split into parts, in place.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "model/gguf.hpp"
#include "model/mapped_file.hpp"
#include "model/weight_store.hpp"

namespace motley {

class GgufStore : public WeightStore {
 public:
  // The file, and where it is a part of a split model ("name-00002-of-00003.gguf") all its other parts, found beside
  // it. INVALID_ARGUMENT for parts that contradict their names, their counts or one another; texts name the file.
  static Result<std::unique_ptr<const GgufStore>> open(const std::filesystem::path& path);
  // One whole file; the bytes outlive the store.
  static Result<std::unique_ptr<const GgufStore>> parse(std::span<const std::byte> bytes);

  // The one with the model's keys: the first part.
  const GgufFile& file() const { return parts_.front().file; }

  size_t size() const override { return weights_.size(); }
  StoredWeight at(size_t index) const override;
  size_t find(std::string_view name) const override;
  std::string place(size_t index) const override;
  std::string spelled(std::string_view name) const override { return std::string(name); }
  std::string_view remedy() const override { return kConvertAgain; }
  Result<WeightBytes> read(size_t index) const override;
  void release(size_t index) const override;
  uint64_t file_bytes() const override;

 private:
  struct Part {
    GgufFile file;
    uint64_t bytes = 0;
    std::optional<MappedFile> mapped;  // empty where the caller owns the bytes
  };
  struct Weight {
    uint32_t part = 0;
    const GgufTensor* tensor = nullptr;
  };
  static Result<Part> open_part(const std::filesystem::path& path);
  Status open_others(const std::filesystem::path& path);
  Status index_weights();

  std::vector<Part> parts_;
  std::vector<Weight> weights_;  // ascending by name
};

}  // namespace motley
