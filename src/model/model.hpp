// A model as it was brought: hyper-parameters, the graph, and where each weight's bytes lie in the mapped files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.hpp"
#include "model/graph.hpp"

namespace motley {

// Hyper-parameters every room above may read. Units are counts unless the name says so.
struct ModelConfig {
  std::string architecture;  // general.architecture
  std::string name;          // general.name, or the file's stem
  uint32_t layers = 0, hidden = 0, vocab_size = 0, context_length = 0;
  uint32_t heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  float norm_eps = 0;
  float rope_base = 10000;
  uint32_t rope_dims = 0;
  bool tied_head = false;
};

struct KvLayer {
  uint32_t kv_heads = 0, head_dim = 0, window = 0;
};

struct WeightSource {
  int32_t dtype = 0;  // motley_dtype
  int64_t experts = 1, rows = 1, cols = 1;
  uint64_t bytes = 0;  // that read() gives
};

// A weight's bytes. They lie in a mapped file, valid while the Model lives, or were made and live as long as this.
struct WeightBytes {
  explicit WeightBytes(std::span<const std::byte> in_file) : data(in_file) {}
  explicit WeightBytes(std::vector<std::byte> bytes) : made(std::move(bytes)), data(made) {}
  WeightBytes(WeightBytes&&) = default;
  WeightBytes& operator=(WeightBytes&&) = default;

  std::vector<std::byte> made;  // a vector's bytes keep their place when it is moved
  std::span<const std::byte> data;
};

struct NamedTemplate {
  std::string_view name, source;
};

// What a tokenizer file says, in the order and spelling of GGUF's tokenizer.ggml.* keys; src/text makes a tokenizer of
// it. Spans and views point into the mapping and live as long as the Model.
struct TokenizerData {
  std::string_view model, pre;           // e.g. "gpt2", "smollm"
  std::vector<std::string_view> tokens;  // by id
  std::vector<int32_t> types;            // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<float> scores;
  std::vector<std::string_view> merges;  // "left right", by rank
  std::optional<int32_t> bos, eos, eot, eom, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;
  std::string_view precompiled_charsmap;      // bytes: SentencePiece's normalisation, or empty
  std::string_view chat_template;             // Jinja source, or empty
  std::vector<NamedTemplate> chat_templates;  // others, by name, e.g. "tool_use"; in the file's order
  // Of a Hugging Face directory, whole files (chat_template.jinja is `chat_template`); the other fields are then empty.
  std::string_view tokenizer_json, tokenizer_config_json, chat_template_json, generation_config_json;
  std::vector<int32_t> end_tokens;  // that end an answer beside eos, eot and eom (generation_config.json)
};

struct LoadOptions {
  uint32_t max_model_len = 0;  // positions that will be served; 0 = the model's context. Some ropes depend on it
};

// Immutable after load; safe to read from any thread.
class Model {
 public:
  // Maps the GGUF file, or the files of the Hugging Face directory, and reads their metadata; of a split model any part
  // may be named, and all are mapped. INVALID_ARGUMENT (what, where in the file, remedy) for anything malformed,
  // UNIMPLEMENTED for an architecture or weight type that is not built, NOT_FOUND, PERMISSION_DENIED.
  static Result<std::unique_ptr<Model>> load(const std::filesystem::path& path, const LoadOptions& options = {});
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const Graph& graph() const = 0;
  virtual const std::vector<KvLayer>& kv_layers() const = 0;
  // By index into graph().weights.
  virtual const WeightSource& weight(size_t index) const = 0;
  // Made now where the file holds another format; may be called more than once.
  virtual Result<WeightBytes> read(size_t weight_index) const = 0;
  virtual const TokenizerData& tokenizer() const = 0;
  virtual uint64_t file_bytes() const = 0;
  // After read(): the pages behind a weight may be dropped from memory (they can be read again from the file).
  virtual void release(size_t weight_index) const = 0;
};

}  // namespace motley
