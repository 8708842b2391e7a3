// From what a reader found in a model's files to a Model: writes the graph, binds every weight of it, or refuses. The
// same for every kind of file.
#pragma once

#include <memory>

#include "base/status.hpp"
#include "model/architecture.hpp"
#include "model/hyper_parameters.hpp"
#include "model/model.hpp"
#include "model/weight_store.hpp"

namespace motley {

struct ModelParts {
  HyperParameters parameters;
  TokenizerData tokenizer;  // its views live as long as `weights`
  std::unique_ptr<const WeightStore> weights;
};

// INVALID_ARGUMENT for weights that are missing or of a shape that the parameters do not ask for; UNIMPLEMENTED for
// types that are not built and for weights of a layer that the graph does not use, since leaving them out would give
// another model. A vector may have several rows in the store: they are joined.
Result<std::unique_ptr<Model>> assemble_model(const Architecture& architecture, ModelParts parts);

}  // namespace motley
