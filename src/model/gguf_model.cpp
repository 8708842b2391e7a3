#include "model/gguf_model.hpp"

#include <algorithm>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "model/architecture.hpp"
#include "model/gguf.hpp"
#include "model/gguf_hyper_parameters.hpp"
#include "model/hf/load.hpp"
#include "model/mapped_file.hpp"
#include "model/model_assembly.hpp"
#include "model/tokenizer_data.hpp"
#include "model/weight_store.hpp"

namespace motley {
namespace {

// The tensors of a GGUF file, in place.
class GgufStore : public WeightStore {
 public:
  // `mapped` holds `file`'s bytes, or is empty where the caller owns them.
  GgufStore(GgufFile file, uint64_t file_bytes, std::optional<MappedFile> mapped)
      : file_(std::move(file)), file_bytes_(file_bytes), mapped_(std::move(mapped)) {}

  const GgufFile& file() const { return file_; }

  size_t size() const override { return file_.tensors().size(); }
  StoredWeight at(size_t index) const override {
    const GgufTensor& tensor = file_.tensors().at(index);
    return {.name = tensor.name, .dtype = tensor.dtype, .ne = tensor.ne, .bytes = tensor.data.size()};
  }
  size_t find(std::string_view name) const override {
    const GgufTensor* tensor = file_.find_tensor(name);
    return tensor == nullptr ? size() : static_cast<size_t>(tensor - file_.tensors().data());
  }
  std::string place(size_t index) const override {
    const GgufTensor& tensor = file_.tensors().at(index);
    return fmt::format("tensor {} (byte {})", gguf_quote(tensor.name), tensor.offset);
  }
  Result<WeightBytes> read(size_t index) const override { return WeightBytes(file_.tensors().at(index).data); }
  void release(size_t index) const override {
    if (mapped_) drop_pages(file_.tensors().at(index).data);
  }
  uint64_t file_bytes() const override { return file_bytes_; }

 private:
  GgufFile file_;
  uint64_t file_bytes_;
  std::optional<MappedFile> mapped_;
};

// Parts of models, adapters and projectors are GGUF files too; each is refused by what it is.
Status check_is_whole_model(const GgufFile& file) {
  ASSIGN_OR_RETURN(const auto parts, file.read_count("split.count"));
  if (parts.value_or(0) > 1) {
    ASSIGN_OR_RETURN(const auto number, file.read_count("split.no"));
    return error(MOTLEY_UNIMPLEMENTED,
                 "key 'split.count' (byte {}): part {} of a model split into {} files, which is not built; merge the "
                 "parts into one file",
                 file.find("split.count")->offset, number.value_or(0) + 1, *parts);
  }
  ASSIGN_OR_RETURN(const auto type, file.read_string("general.type"));
  if (type && *type != "model") {
    return error(MOTLEY_UNIMPLEMENTED,
                 "key 'general.type' (byte {}): {} is not a whole model; give the model's own file",
                 file.find("general.type")->offset, gguf_quote(*type));
  }
  return ok_status();
}

Result<const Architecture*> choose_architecture(const GgufFile& file) {
  constexpr std::string_view kKey = "general.architecture";
  ASSIGN_OR_RETURN(const auto name, file.read_string(kKey));
  if (!name) return invalid_argument("key '{}': is missing; {}", kKey, kConvertAgain);
  const Architecture* architecture = find_architecture(*name);
  if (architecture != nullptr) return architecture;
  return error(MOTLEY_UNIMPLEMENTED, "key '{}' (byte {}): architecture {} is not built; use a model of {}", kKey,
               file.find(kKey)->offset, gguf_quote(*name), architecture_names());
}

// `bytes` outlive the model, or lie in `mapped`.
Result<std::unique_ptr<Model>> load_gguf(std::span<const std::byte> bytes, std::string stem, const LoadOptions& options,
                                         std::optional<MappedFile> mapped) {
  ASSIGN_OR_RETURN(GgufFile parsed, GgufFile::parse(bytes));
  auto store = std::make_unique<GgufStore>(std::move(parsed), bytes.size(), std::move(mapped));
  const GgufFile& file = store->file();
  RETURN_IF_ERROR(check_is_whole_model(file));
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
  return load_gguf(bytes, std::move(stem), options, std::nullopt);
}

Result<std::unique_ptr<Model>> Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  const std::string shown = path.string();
  if (std::error_code failure; std::filesystem::is_directory(path, failure)) {
    auto model = hf::load_directory(path, options);
    return model.ok() ? std::move(model) : model.error().annotate(shown);
  }
  auto file = MappedFile::open(path);
  if (!file.ok()) return file.error().annotate(shown);
  const std::span<const std::byte> bytes = file->bytes();
  auto model = load_gguf(bytes, path.stem().string(), options, *std::move(file));
  if (!model.ok()) return model.error().annotate(shown);
  return model;
}

}  // namespace motley
