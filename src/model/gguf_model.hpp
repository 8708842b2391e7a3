// The way from a GGUF file's bytes to a Model, for Model::load and for tests and fuzzers without a file.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/status.hpp"
#include "model/model.hpp"

namespace motley {

// As Model::load, of bytes that outlive the model. `stem` is the model's name if the file gives none.
Result<std::unique_ptr<Model>> load_model_from_bytes(std::span<const std::byte> bytes, std::string stem,
                                                     const LoadOptions& options = {});

}  // namespace motley
