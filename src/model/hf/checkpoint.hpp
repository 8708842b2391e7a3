// Checkpoint: all tensors of a model's folder, from model.safetensors or from the files that its index names.
//
// Files stay mapped while the Checkpoint lives; tensors point into them. Immutable; safe from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.hpp"
#include "model/hf/directory.hpp"
#include "model/hf/safetensors.hpp"
#include "model/mapped_file.hpp"

namespace motley::hf {

class Checkpoint {
 public:
  // INVALID_ARGUMENT where files or index are malformed or contradict each other, NOT_FOUND without safetensors.
  static Result<Checkpoint> open(const Directory& directory);

  const SafetensorsTensor* find(std::string_view name) const;
  // All tensors, ascending by name.
  const std::vector<const SafetensorsTensor*>& tensors() const { return tensors_; }
  // The name of the file that holds one of tensors().
  std::string_view file_of(const SafetensorsTensor& tensor) const;
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  struct File {
    std::string name;
    MappedFile bytes;
    SafetensorsFile directory;
  };
  Status add_file(const Directory& directory, const std::string& name);
  Status check_index(const std::vector<std::pair<std::string, std::string>>& weight_map) const;
  Status order_tensors();

  std::vector<std::unique_ptr<File>> files_;  // by name, so that tensors stay where they are
  std::vector<const SafetensorsTensor*> tensors_;
  uint64_t file_bytes_ = 0;
};

// The weight_map of model.safetensors.index.json: (tensor, file) ascending by tensor, every file a plain name.
using WeightMap = std::vector<std::pair<std::string, std::string>>;
Result<WeightMap> parse_index(std::string_view text);

}  // namespace motley::hf
