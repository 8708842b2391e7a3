// The way from a Hugging Face directory to a Model, for Model::load. docs/formats/huggingface.md.
#pragma once

#include <filesystem>
#include <memory>

#include "base/status.hpp"
#include "model/model.hpp"

namespace motley::hf {

// As Model::load, of a directory. Texts begin with the file's name.
Result<std::unique_ptr<Model>> load_directory(const std::filesystem::path& path, const LoadOptions& options);

}  // namespace motley::hf
