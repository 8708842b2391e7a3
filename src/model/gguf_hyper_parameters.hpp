// Reads the hyper-parameters of a GGUF file ("<architecture>.block_count" and so on), checked.
#pragma once

#include "base/status.hpp"
#include "model/architecture.hpp"
#include "model/gguf.hpp"
#include "model/hyper_parameters.hpp"
#include "model/weight_store.hpp"

namespace motley {

// What the file's keys say, and where they are silent what `architecture` implies. INVALID_ARGUMENT for keys that are
// missing, of a wrong type, out of range or in contradiction to one another or to the weights; UNIMPLEMENTED for keys
// that ask for a computation that is not built.
Result<HyperParameters> read_hyper_parameters(const GgufFile& file, const WeightStore& weights,
                                              const Architecture& architecture, const LoadOptions& options);

}  // namespace motley
