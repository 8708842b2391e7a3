// Reads the hyper-parameters that decoder-only transformers share ("<architecture>.block_count" and so on), checked.
#pragma once

#include "base/status.hpp"
#include "model/gguf.hpp"
#include "model/model.hpp"

namespace motley {

struct HyperParameters {
  ModelConfig config;
  float rope_position_scale = 1;  // 1/factor of linear rope scaling
};

// INVALID_ARGUMENT for keys that are missing, of a wrong type, out of range or contradictory; UNIMPLEMENTED for keys
// that ask for a computation that is not built. `file` must hold general.architecture.
Result<HyperParameters> read_hyper_parameters(const GgufFile& file);

}  // namespace motley
