#include "model/hf/load.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/quote.hpp"
#include "model/hf/checkpoint.hpp"
#include "model/hf/config.hpp"
#include "model/hf/directory.hpp"
#include "model/hf/store.hpp"
#include "model/model_assembly.hpp"

namespace motley::hf {
namespace {

constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kGeneration = "generation_config.json";
constexpr std::string_view kTokenizer = "tokenizer.json";
constexpr std::string_view kTokenizerConfig = "tokenizer_config.json";
constexpr std::string_view kTemplate = "chat_template.jinja";
constexpr std::string_view kTemplateJson = "chat_template.json";
constexpr uint64_t kConfigBytesMax = 16u << 20;
constexpr uint64_t kTokenizerBytesMax = 256u << 20;

Result<ModelDescription> read_description(const Directory& directory, const LoadOptions& options) {
  ASSIGN_OR_RETURN(const auto config, directory.map(kConfig, kConfigBytesMax));
  if (!config) {
    const std::vector<std::string> others = directory.names_with(".gguf");
    if (!others.empty()) {
      return error(MOTLEY_NOT_FOUND, "'{}': is missing; name a GGUF file in the folder, such as {}", kConfig,
                   in_quotes(others.front()));
    }
    return error(MOTLEY_NOT_FOUND, "'{}': is missing; name a GGUF file or a folder in Hugging Face layout", kConfig);
  }
  auto model = parse_config(text_of(*config), options);
  if (!model.ok()) return model.error().annotate(in_quotes(kConfig));
  ASSIGN_OR_RETURN(const auto generation, directory.map(kGeneration, kConfigBytesMax));
  if (!generation) return model;
  const auto in_file = [](const Status& status) { return status.annotate(in_quotes(kGeneration)); };
  const auto values = parse_json(text_of(*generation));
  if (!values.ok()) return in_file(values.error());
  auto ids = read_end_tokens(*values, model->parameters.config.vocab_size);
  if (!ids.ok()) return in_file(ids.error());
  if (!ids->empty()) model->end_tokens = *std::move(ids);
  return model;
}

// Maps the files of the tokenizer, the templates and the advised sampling as they are; src/text and src/llm read them.
Result<TokenizerData> read_tokenizer(const Directory& directory, Store::Keep* keep) {
  TokenizerData tokenizer;
  const auto map = [&](std::string_view name, std::string_view* text) -> Status {
    ASSIGN_OR_RETURN(auto file, directory.map(name, kTokenizerBytesMax));
    if (!file) return ok_status();
    *text = text_of(*file);
    keep->files.push_back(*std::move(file));
    return ok_status();
  };
  RETURN_IF_ERROR(map(kTokenizer, &tokenizer.tokenizer_json));
  RETURN_IF_ERROR(map(kTokenizerConfig, &tokenizer.tokenizer_config_json));
  RETURN_IF_ERROR(map(kTemplate, &tokenizer.chat_template));
  RETURN_IF_ERROR(map(kTemplateJson, &tokenizer.chat_template_json));
  RETURN_IF_ERROR(map(kGeneration, &tokenizer.generation_config_json));
  return tokenizer;
}

// The embedding tells the vocabulary's size, and without a word in config.json the checkpoint whether the head is tied.
Status settle(const Store& weights, ModelDescription* model) {
  ModelConfig& config = model->parameters.config;
  const size_t embedding = weights.find("token_embd.weight");
  if (embedding == weights.size()) {
    return invalid_argument("tensor 'model.embed_tokens.weight': is missing; get the model again");
  }
  const int64_t rows = weights.at(embedding).ne[1];
  if (rows != config.vocab_size) {
    return invalid_argument("'{}': key 'vocab_size': is {}, but {} has {} rows; get the model again", kConfig,
                            config.vocab_size, weights.place(embedding), rows);
  }
  config.tied_head = model->tied_head.value_or(!weights.has("output.weight"));
  if (config.tied_head || weights.has("output.weight")) return ok_status();
  return invalid_argument("tensor 'lm_head.weight': is missing, but '{}' says that it is not tied; get the model again",
                          kConfig);
}

// The folder's name; in a download cache (models--ORG--NAME/snapshots/REVISION) the model's.
std::string model_name(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_filename() ? path : path.parent_path();
  if (folder.parent_path().filename() != "snapshots") return folder.filename().string();
  const std::string cached = folder.parent_path().parent_path().filename().string();
  const size_t separator = cached.rfind("--");
  return separator == std::string::npos ? cached : cached.substr(separator + 2);
}

}  // namespace

Result<std::unique_ptr<Model>> load_directory(const std::filesystem::path& path, const LoadOptions& options) {
  ASSIGN_OR_RETURN(const Directory directory, Directory::open(path));
  ASSIGN_OR_RETURN(ModelDescription model, read_description(directory, options));
  Store::Keep keep;
  ASSIGN_OR_RETURN(TokenizerData tokenizer, read_tokenizer(directory, &keep));
  ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
  ASSIGN_OR_RETURN(auto weights, list_weights(checkpoint, model));
  auto store = std::make_unique<Store>(std::move(checkpoint), std::move(weights), std::move(model.rope_divisors),
                                       std::move(keep));
  RETURN_IF_ERROR(settle(*store, &model));
  model.parameters.config.name = model_name(path);
  tokenizer.end_tokens = std::move(model.end_tokens);
  return assemble_model(
      *model.architecture,
      {.parameters = std::move(model.parameters), .tokenizer = std::move(tokenizer), .weights = std::move(store)});
}

}  // namespace motley::hf
