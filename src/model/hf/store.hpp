// The weights of a Hugging Face checkpoint under GGUF's names, each mapped or made on demand.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "model/hf/checkpoint.hpp"
#include "model/hf/config.hpp"
#include "model/hf/matrices.hpp"
#include "model/hf/names.hpp"
#include "model/mapped_file.hpp"
#include "model/weight_store.hpp"

namespace motley::hf {

// A weight and where it comes from: one source, or one for each expert of a stack.
struct MadeWeight {
  std::string name;  // GGUF's
  int32_t dtype = 0;
  std::array<int64_t, 4> ne{1, 1, 1, 1};
  std::string place;  // file and tensor, for messages
  std::vector<MatrixSource> sources;

  uint64_t bytes() const;
  // The source's own bytes where they are what is asked for, else empty.
  std::span<const std::byte> mapped() const;
};

// The weights that `model` has in `checkpoint`, ascending by name. Refuses tensors whose meaning is not known: they
// may change what the model computes. Texts name file and tensor.
Result<std::vector<MadeWeight>> list_weights(const Checkpoint& checkpoint, const ModelDescription& model);

// Immutable; safe to read from any thread.
class Store : public WeightStore {
 public:
  // What has to live as long as the model beside its weights: files that the tokenizer's views point into.
  struct Keep {
    std::vector<MappedFile> files;
    std::vector<std::unique_ptr<const std::string>> texts;
  };
  // `divisors`: the rope's, or empty.
  Store(Checkpoint checkpoint, std::vector<MadeWeight> weights, std::vector<float> divisors, Keep keep);

  size_t size() const override { return weights_.size(); }
  StoredWeight at(size_t index) const override;
  size_t find(std::string_view name) const override;
  std::string place(size_t index) const override { return weights_[index].place; }
  std::string spelled(std::string_view name) const override { return tensor_name(name); }
  std::string_view remedy() const override {
    return "config.json and the weights are not of one model, or files are missing: get the folder again";
  }
  Result<WeightBytes> read(size_t index) const override;
  void release(size_t index) const override;
  uint64_t file_bytes() const override { return checkpoint_.file_bytes(); }

 private:
  Checkpoint checkpoint_;
  std::vector<float> divisors_;
  std::vector<MadeWeight> weights_;  // ascending by name
  Keep keep_;
};

}  // namespace motley::hf
