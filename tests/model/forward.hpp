// Forward: a model's plain forward pass on one device, with every logit. For tests and tools: the same segments,
// weights and kernels as the runtime, without scheduler and sampling.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/registry.hpp"
#include "model/model.hpp"
#include "runtime/driver.hpp"
#include "runtime/kv_request.hpp"
#include "runtime/segment.hpp"
#include "runtime/tape.hpp"

namespace motley::testing {

struct ForwardOptions {
  std::string device = "CPU:0";
  std::string variant;  // kernels to force; "" = the best
  uint32_t threads = 0;
  int32_t kv_dtype = MOTLEY_F16;
  uint32_t positions_max = 1024;
};

class Forward {
 public:
  static Result<std::unique_ptr<Forward>> create(const Model& model, const ForwardOptions& options);
  // Logits [ids.size(), vocab] of one sequence from position 0, computed in chunks of `chunk` rows (0 = all at once).
  Result<std::vector<float>> logits(std::span<const int32_t> ids, uint32_t chunk = 0);
  std::string kernels() const { return entry_->description.desc.variant; }

 private:
  struct Piece {
    Segment segment;
    ProgramsHandle programs;
  };
  explicit Forward(const Model& model) : model_(model) {}
  Status prepare(const ForwardOptions& options);
  Status add_piece(motley_cut cut);
  Status run(std::span<const int32_t> ids, uint32_t begin, uint32_t rows, float* out);

  static constexpr uint32_t kBlockSize = 16;
  const Model& model_;
  DeviceRegistry registry_;
  const DeviceRegistry::Entry* entry_ = nullptr;
  std::optional<Device> device_;
  std::vector<std::shared_ptr<const PackedWeight>> weights_;
  KvHandle kv_;
  BufferHandle slots_, residual_, logits_;
  std::vector<std::unique_ptr<Piece>> pieces_;
  QueueHandle queue_;
  std::vector<TapeProgram> tape_;
  uint32_t positions_max_ = 0;
};

}  // namespace motley::testing
