// WeightStore: the weights of a model's files under GGUF's names, whatever the files call them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.hpp"
#include "model/model.hpp"

namespace motley {

// Which weights there are: all that writing a graph needs to know of a model's files.
class WeightNames {
 public:
  virtual ~WeightNames() = default;
  virtual bool has(std::string_view name) const = 0;
};

struct StoredWeight {
  std::string_view name;                  // GGUF's, e.g. "blk.0.attn_q.weight"; lives as long as the store
  int32_t dtype = 0;                      // known to find_dtype; of the bytes that read() gives
  std::array<int64_t, 4> ne{1, 1, 1, 1};  // ne[0] fastest; >= 1 each
  uint64_t bytes = 0;                     // that read() gives: agrees with dtype and ne
};

// Immutable; safe to read from any thread. Owns the mapped files, if there are any.
class WeightStore : public WeightNames {
 public:
  virtual size_t size() const = 0;
  virtual StoredWeight at(size_t index) const = 0;
  // Index of a name, or size() if it is absent.
  virtual size_t find(std::string_view name) const = 0;
  // How messages name the weight: "tensor 'x' (byte 17)".
  virtual std::string place(size_t index) const = 0;
  // How the files would call a weight that is not there, and what to do where weights and parameters disagree.
  virtual std::string spelled(std::string_view name) const = 0;
  virtual std::string_view remedy() const = 0;
  // Its bytes: where they lie in the file, or made now. May be called more than once.
  virtual Result<WeightBytes> read(size_t index) const = 0;
  // The pages behind it may be dropped from memory; they can be read again from the file.
  virtual void release(size_t index) const = 0;
  // Of all files.
  virtual uint64_t file_bytes() const = 0;

  bool has(std::string_view name) const override { return find(name) != size(); }
};

}  // namespace motley
