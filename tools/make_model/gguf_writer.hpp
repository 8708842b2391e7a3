// GgufWriter: keys and tensors collected, then written as one GGUF v3 file. Format: docs/formats/gguf.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"
#include "model/gguf.hpp"

namespace motley::make_model {

class GgufWriter {
 public:
  // Fills a tensor's data; called once, in write().
  using Fill = std::function<void(std::span<std::byte>)>;

  void add_u32(std::string_view key, uint32_t value);
  void add_f32(std::string_view key, float value);
  void add_bool(std::string_view key, bool value);
  void add_string(std::string_view key, std::string_view value);
  void add_strings(std::string_view key, std::span<const std::string> values);
  void add_i32s(std::string_view key, std::span<const int32_t> values);
  // A key of another file, as it stands there.
  void add_copy(const GgufEntry& entry);
  // dims fastest first; dims[0] is a whole number of the type's blocks.
  void add_tensor(std::string name, int32_t dtype, std::vector<int64_t> dims, Fill fill);

  // Writes beside `path` and renames, so that no half file ever has that name.
  Status write(const std::filesystem::path& path) const;

 private:
  struct Tensor {
    std::string name;
    int32_t dtype = 0;
    std::vector<int64_t> dims;
    uint64_t bytes = 0;
    Fill fill;
  };

  void begin_key(std::string_view key, GgufType type);
  std::string header() const;

  std::string keys_;  // the key section's bytes
  uint64_t key_count_ = 0;
  std::vector<Tensor> tensors_;
};

}  // namespace motley::make_model
