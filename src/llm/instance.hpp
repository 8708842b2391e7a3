// Instance: a model being served, from file to engine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.hpp"
#include "device/registry.hpp"
#include "engine/engine.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"
#include "runtime/runtime_executor.hpp"
#include "text/chat_template.hpp"
#include "text/chat_template_sources.hpp"
#include "text/tokenizer.hpp"

namespace motley {

struct InstanceOptions {
  std::filesystem::path model;
  std::string devices = "CPU:0";
  std::string kv_cache_dtype = "auto";  // auto (= float16), float32, float16, bfloat16, int8; f32, f16, bf16
  uint64_t kv_cache_memory_bytes = 0;   // 0 = min(2 GB, a quarter of the free memory)
  uint32_t block_size = 16;
  uint32_t threads = 0;  // 0 = the device's default
  bool deterministic = false;
  std::string chat_template_file;  // "" = the model's own
  EngineOptions engine;            // max_model_len 0 = the model's context, lowered to what the pool holds
};

// A model with its text tools: all that `tokenize` needs.
struct TextModel {
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  static Result<TextModel> load(const std::filesystem::path& path, const LoadOptions& options = {});
};

// A model's tokenizer; errors as Tokenizer's two create().
Result<std::unique_ptr<Tokenizer>> make_tokenizer(const TokenizerData& data);
// Tokenizer::check() of the vocabulary of a model without a tokenizer.json.
Status check_vocabulary_of(const TokenizerData& data);

// The templates that come with a model. Of the places where one may stand, the first that has one counts: a key or file
// of its own, that file's older form, the tokenizer's configuration. INVALID_ARGUMENT for a damaged file.
Result<ChatTemplateSources> template_sources(const TokenizerData& data);

// Owns everything a model needs to run. Its parts are as thread-safe as each says.
class Instance {
 public:
  // Any failure is one line that names the file, option or device and the remedy.
  static Result<std::unique_ptr<Instance>> open(const InstanceOptions& options);
  ~Instance();

  const Model& model() const { return *text_.model; }
  const Tokenizer& tokenizer() const { return *text_.tokenizer; }
  // Null when the model has no template; template_error() then says what to do.
  const ChatTemplate* chat_template() const { return chat_template_.get(); }
  const Status& template_error() const { return template_error_; }
  // Another template for this model, of a Jinja template's text. INVALID_ARGUMENT as ChatTemplate::create().
  Result<std::unique_ptr<ChatTemplate>> make_template(const ChatTemplateSources& sources) const;
  Engine& engine() { return *engine_; }
  const Placement& placement() const { return placement_; }
  const DeviceDescription& device() const { return entry_->description; }
  motley_device_stats device_stats() const;

 private:
  Instance(TextModel text, DeviceRegistry registry);
  Status load_template(const std::string& file);
  Status open_device(const InstanceOptions& options);
  Status place(const InstanceOptions& options);
  Status start(const InstanceOptions& options);
  RuntimeOptions runtime_options(const InstanceOptions& options) const;

  TextModel text_;
  DeviceRegistry registry_;
  std::unique_ptr<ChatTemplate> chat_template_;
  Status template_error_;
  const DeviceRegistry::Entry* entry_ = nullptr;
  std::optional<Device> device_;
  Placement placement_;
  std::unique_ptr<RuntimeExecutor> runtime_;
  std::unique_ptr<Engine> engine_;
};

// "float16" and the like to motley_dtype; INVALID_ARGUMENT lists the names.
Result<int32_t> parse_kv_dtype(std::string_view name);

}  // namespace motley
