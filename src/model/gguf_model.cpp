#include "model/gguf_model.hpp"

#include <string_view>
#include <system_error>
#include <utility>

#include "base/quote.hpp"
#include "model/architecture.hpp"
#include "model/gguf_hyper_parameters.hpp"
#include "model/gguf_store.hpp"
#include "model/hf/load.hpp"
#include "model/model_assembly.hpp"
#include "model/tokenizer_data.hpp"

namespace motley {
namespace {

// Adapters and projectors are GGUF files too; each is refused by what it is.
Status check_is_model(const GgufFile& file) {
  ASSIGN_OR_RETURN(const auto type, file.read_string("general.type"));
  if (!type || *type == "model") return ok_status();
  return error(MOTLEY_UNIMPLEMENTED, "key 'general.type' (byte {}): {} is not a whole model; give the model's own file",
               file.find("general.type")->offset, in_quotes(*type));
}

Result<const Architecture*> choose_architecture(const GgufFile& file) {
  constexpr std::string_view kKey = "general.architecture";
  ASSIGN_OR_RETURN(const auto name, file.read_string(kKey));
  if (!name) return invalid_argument("key '{}': is missing; {}", kKey, kConvertAgain);
  const Architecture* architecture = find_architecture(*name);
  if (architecture != nullptr) return architecture;
  return error(MOTLEY_UNIMPLEMENTED, "key '{}' (byte {}): architecture {} is not built; use a model of {}", kKey,
               file.find(kKey)->offset, in_quotes(*name), architecture_names());
}

Result<std::unique_ptr<Model>> load_gguf(std::unique_ptr<const GgufStore> store, std::string stem,
                                         const LoadOptions& options) {
  const GgufFile& file = store->file();
  RETURN_IF_ERROR(check_is_model(file));
  ASSIGN_OR_RETURN(const Architecture* const architecture, choose_architecture(file));
  ModelParts parts;
  ASSIGN_OR_RETURN(parts.parameters, read_hyper_parameters(file, *store, *architecture, options));
  if (parts.parameters.config.name.empty()) parts.parameters.config.name = std::move(stem);
  ASSIGN_OR_RETURN(parts.tokenizer, read_tokenizer_data(file));
  parts.weights = std::move(store);
  return assemble_model(*architecture, std::move(parts));
}

}  // namespace

Result<std::unique_ptr<Model>> load_model_from_bytes(std::span<const std::byte> bytes, std::string stem,
                                                     const LoadOptions& options) {
  ASSIGN_OR_RETURN(auto store, GgufStore::parse(bytes));
  return load_gguf(std::move(store), std::move(stem), options);
}

Result<std::unique_ptr<Model>> Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  if (std::error_code failure; std::filesystem::is_directory(path, failure)) {
    auto model = hf::load_directory(path, options);
    return model.ok() ? std::move(model) : model.error().annotate(path.string());
  }
  ASSIGN_OR_RETURN(auto store, GgufStore::open(path));
  auto model = load_gguf(std::move(store), path.stem().string(), options);
  if (!model.ok()) return model.error().annotate(path.string());
  return model;
}

}  // namespace motley
