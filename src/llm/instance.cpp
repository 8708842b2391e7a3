#include "llm/instance.hpp"

#include <array>
#include <fstream>
#include <iterator>

#include "base/config.hpp"
#include "base/log.hpp"
#include "planner/plan.hpp"

namespace motley {
namespace {

constexpr uint32_t kRowsMaxDefault = 2048;  // of one step, where no budget is given
constexpr size_t kTemplateBytesMax = 1u << 20;
constexpr uint32_t kSequencesMax = 4096;  // two token slots each
constexpr uint32_t kBlockSizeMax = 1024;

Status check_options(const InstanceOptions& options) {
  const EngineOptions& engine = options.engine;
  if (options.block_size == 0 || options.block_size > kBlockSizeMax) {
    return invalid_argument("--block-size must be 1 to {}, not {}", kBlockSizeMax, options.block_size);
  }
  if (engine.max_num_seqs == 0 || engine.max_num_seqs > kSequencesMax) {
    return invalid_argument("--max-num-seqs must be 1 to {}, not {}", kSequencesMax, engine.max_num_seqs);
  }
  if (engine.max_num_batched_tokens != 0 && engine.max_num_batched_tokens < engine.max_num_seqs) {
    return invalid_argument("--max-num-batched-tokens ({}) must be at least --max-num-seqs ({})",
                            engine.max_num_batched_tokens, engine.max_num_seqs);
  }
  return ok_status();
}

Result<std::string> read_text_file(const std::string& path, size_t bytes_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return error(MOTLEY_NOT_FOUND, "{}: cannot be read", path);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (text.size() > bytes_max) return invalid_argument("{}: larger than {} bytes", path, bytes_max);
  return text;
}

std::string special_text(const Tokenizer& tokenizer, std::optional<TokenId> id) {
  return id ? std::string(tokenizer.piece(*id)) : std::string();
}

}  // namespace

Result<int32_t> parse_kv_dtype(std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, int32_t>, 8> kNames = {{{"auto", MOTLEY_F16},
                                                                                  {"float32", MOTLEY_F32},
                                                                                  {"float16", MOTLEY_F16},
                                                                                  {"bfloat16", MOTLEY_BF16},
                                                                                  {"int8", MOTLEY_I8},
                                                                                  {"f32", MOTLEY_F32},
                                                                                  {"f16", MOTLEY_F16},
                                                                                  {"bf16", MOTLEY_BF16}}};
  for (const auto& [known, dtype] : kNames) {
    if (known == name) return dtype;
  }
  return invalid_argument("--kv-cache-dtype {} is unknown; there are auto, float32, float16, bfloat16, int8", name);
}

Result<TextModel> TextModel::load(const std::filesystem::path& path) {
  TextModel text;
  ASSIGN_OR_RETURN(text.model, Model::load(path));
  const TokenizerData& data = text.model->tokenizer();
  VocabularyData vocabulary;
  vocabulary.model = data.model;
  vocabulary.pre = data.pre;
  vocabulary.tokens = data.tokens;
  vocabulary.types = data.types;
  vocabulary.scores = data.scores;
  vocabulary.merges = data.merges;
  vocabulary.bos = data.bos;
  vocabulary.eos = data.eos;
  vocabulary.eot = data.eot;
  vocabulary.eom = data.eom;
  vocabulary.unknown = data.unknown;
  vocabulary.padding = data.padding;
  vocabulary.add_bos = data.add_bos;
  vocabulary.add_eos = data.add_eos;
  vocabulary.add_space_prefix = data.add_space_prefix;
  auto tokenizer = Tokenizer::create(vocabulary);
  if (!tokenizer.ok()) return tokenizer.error().annotate(path.string());
  text.tokenizer = *std::move(tokenizer);
  return text;
}

Instance::Instance(TextModel text, DeviceRegistry registry) : text_(std::move(text)), registry_(std::move(registry)) {}
Instance::~Instance() = default;

Result<std::unique_ptr<Instance>> Instance::open(const InstanceOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  ASSIGN_OR_RETURN(TextModel text, TextModel::load(options.model));
  std::unique_ptr<Instance> instance(new Instance(std::move(text), DeviceRegistry::scan(plugin_directory())));
  RETURN_IF_ERROR(instance->load_template(options.chat_template_file));
  RETURN_IF_ERROR(instance->open_device(options));
  RETURN_IF_ERROR(instance->place(options));
  RETURN_IF_ERROR(instance->start(options));
  return instance;
}

Status Instance::load_template(const std::string& file) {
  std::string source(model().tokenizer().chat_template);
  if (!file.empty()) {
    ASSIGN_OR_RETURN(source, read_text_file(file, kTemplateBytesMax));
  }
  auto made = ChatTemplate::create(source, special_text(tokenizer(), tokenizer().bos()),
                                   special_text(tokenizer(), tokenizer().eos()));
  if (made.ok()) {
    chat_template_ = *std::move(made);
    return ok_status();
  }
  if (!file.empty()) return made.error().annotate(file);
  template_error_ = made.error();
  if (!source.empty()) log_warning("chat is not available: {}", template_error_.message());
  return ok_status();
}

Status Instance::open_device(const InstanceOptions& options) {
  ASSIGN_OR_RETURN(const auto entries, registry_.parse_list(options.devices));
  if (entries.size() != 1) {
    return error(MOTLEY_UNIMPLEMENTED, "--devices {}: one model over several devices is not built yet; name one",
                 options.devices);
  }
  entry_ = entries[0];
  DeviceOptions device_options;
  device_options.threads = options.threads;
  device_options.deterministic = options.deterministic;
  ASSIGN_OR_RETURN(device_, Device::open(*entry_->plugin, entry_->description.desc.index, device_options));
  return ok_status();
}

Status Instance::place(const InstanceOptions& options) {
  PlanOptions plan;
  ASSIGN_OR_RETURN(plan.kv_dtype, parse_kv_dtype(options.kv_cache_dtype));
  plan.block_size = options.block_size;
  plan.kv_bytes = options.kv_cache_memory_bytes;
  plan.max_model_len = options.engine.max_model_len;
  if (plan.max_model_len > model().config().context_length) {
    return invalid_argument("--max-model-len {} is beyond the model's context of {}", plan.max_model_len,
                            model().config().context_length);
  }
  const KvRequest request(model(), plan.kv_dtype, plan.block_size, 1);
  ASSIGN_OR_RETURN(const motley_kv_layout layout, device_->kv_layout(request.desc));
  const motley_device_desc& desc = entry_->description.desc;
  PlanDevice device{entry_->description.name, desc.memory_total, desc.memory_free, layout.bytes_per_block};
  ASSIGN_OR_RETURN(placement_, plan_single_device(model(), device, plan));
  return ok_status();
}

Status Instance::start(const InstanceOptions& options) {
  RuntimeOptions runtime;
  runtime.rows_max = options.engine.max_num_batched_tokens == 0 ? std::max(kRowsMaxDefault, options.engine.max_num_seqs)
                                                                : options.engine.max_num_batched_tokens;
  runtime.logit_rows_max = options.engine.max_num_seqs;
  runtime.positions_max = model().config().context_length;
  ASSIGN_OR_RETURN(runtime_, RuntimeExecutor::create(model(), placement_, *device_, runtime));
  ASSIGN_OR_RETURN(engine_, Engine::create(*runtime_, options.engine));
  return ok_status();
}

motley_device_stats Instance::device_stats() const {
  const auto stats = device_->stats();
  return stats.ok() ? *stats : motley_device_stats{};
}

}  // namespace motley
