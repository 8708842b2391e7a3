#include "llm/instance.hpp"

#include <algorithm>
#include <array>

#include "base/config.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "planner/plan.hpp"
#include "runtime/kv_request.hpp"

namespace motley {
namespace {

constexpr uint32_t kRowsMaxDefault = 2048;  // of one step, where no budget is given
constexpr size_t kTemplateBytesMax = 1u << 20;
constexpr uint32_t kSequencesMax = 4096;  // two token slots each
constexpr uint32_t kBlockSizeMax = 1024;
constexpr uint32_t kBatchedTokensMax = 1u << 17;

Status check_options(const InstanceOptions& options) {
  const EngineOptions& engine = options.engine;
  if (options.block_size == 0 || options.block_size > kBlockSizeMax) {
    return invalid_argument("--block-size must be 1 to {}, not {}", kBlockSizeMax, options.block_size);
  }
  if (engine.max_num_seqs == 0 || engine.max_num_seqs > kSequencesMax) {
    return invalid_argument("--max-num-seqs must be 1 to {}, not {}", kSequencesMax, engine.max_num_seqs);
  }
  if (engine.max_num_batched_tokens > kBatchedTokensMax) {
    return invalid_argument("--max-num-batched-tokens must be at most {}, not {}", kBatchedTokensMax,
                            engine.max_num_batched_tokens);
  }
  if (engine.max_num_batched_tokens != 0 && engine.max_num_batched_tokens < engine.max_num_seqs) {
    return invalid_argument("--max-num-batched-tokens ({}) must be at least --max-num-seqs ({})",
                            engine.max_num_batched_tokens, engine.max_num_seqs);
  }
  return ok_status();
}

// What this runtime asks of a device, and what --deterministic asks on top.
Status check_capabilities(const DeviceDescription& device, bool deterministic) {
  struct Need {
    uint64_t cap;
    bool always;
    std::string_view what;
  };
  static constexpr std::array<Need, 5> kNeeds = {
      {{MOTLEY_CAP_PAGED_ATTENTION, true, "keeps no KV"},
       {MOTLEY_CAP_HOST_MEMORY, true, "has memory of its own, which is not built yet"},
       {MOTLEY_CAP_DYNAMIC_ROWS, true, "runs fixed row counts only, which is not built yet"},
       {MOTLEY_CAP_ROW_INVARIANT, false, "does not promise bit-identical rows; leave --deterministic out"},
       {MOTLEY_CAP_ONE_CLASS, false, "computes prompts and answers differently; leave --deterministic out"}}};
  for (const Need& need : kNeeds) {
    if ((need.always || deterministic) && (device.desc.caps & need.cap) == 0) {
      return error(MOTLEY_UNIMPLEMENTED, "device {} {}", device.name, need.what);
    }
  }
  return ok_status();
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

Instance::Instance(TextModel text, DeviceRegistry registry) : text_(std::move(text)), registry_(std::move(registry)) {}
Instance::~Instance() = default;

Result<std::unique_ptr<Instance>> Instance::open(const InstanceOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  ASSIGN_OR_RETURN(TextModel text, TextModel::load(options.model, {options.engine.max_model_len}));
  std::unique_ptr<Instance> instance(new Instance(std::move(text), DeviceRegistry::scan(plugin_directory())));
  RETURN_IF_ERROR(instance->load_template(options.chat_template_file));
  RETURN_IF_ERROR(instance->open_device(options));
  RETURN_IF_ERROR(instance->place(options));
  RETURN_IF_ERROR(instance->start(options));
  return instance;
}

Status Instance::load_template(const std::string& file) {
  ChatTemplateSources sources;
  if (!file.empty()) {
    ASSIGN_OR_RETURN(const std::string source, read_file(file, kTemplateBytesMax));
    sources = ChatTemplateSources(source);
  } else if (auto own = template_sources(model().tokenizer()); own.ok()) {
    sources = *std::move(own);
  } else {
    template_error_ = own.error();
    log_warning("chat is not available: {}", template_error_.message());
    return ok_status();
  }
  auto made = make_chat_template(sources, tokenizer());
  if (made.ok()) {
    chat_template_ = *std::move(made);
    return ok_status();
  }
  if (!file.empty()) return made.error().annotate(file);
  template_error_ = sources.empty() ? made.error() : made.error().annotate("the model's chat template");
  if (!sources.empty()) log_warning("chat is not available: {}", template_error_.message());
  return ok_status();
}

Status Instance::open_device(const InstanceOptions& options) {
  ASSIGN_OR_RETURN(const auto entries, registry_.parse_list(options.devices));
  if (entries.size() != 1) {
    return error(MOTLEY_UNIMPLEMENTED, "--devices {}: one model over several devices is not built yet; name one",
                 options.devices);
  }
  entry_ = entries[0];
  RETURN_IF_ERROR(check_capabilities(entry_->description, options.deterministic));
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
  const KvRequest request(model().kv_layers(), plan.kv_dtype, plan.block_size, 1);
  ASSIGN_OR_RETURN(const motley_kv_layout layout, device_->kv_layout(request.desc));
  ASSIGN_OR_RETURN(const uint64_t step, step_bytes(model(), *device_, runtime_options(options)));
  const motley_device_desc& desc = entry_->description.desc;
  PlanDevice device{entry_->description.name, desc.memory_total, desc.memory_free, step, layout.bytes_per_block};
  ASSIGN_OR_RETURN(placement_, plan_single_device(model(), device, plan));
  return ok_status();
}

RuntimeOptions Instance::runtime_options(const InstanceOptions& options) const {
  const EngineOptions& engine = options.engine;
  const uint32_t context = model().config().context_length;
  RuntimeOptions runtime;
  runtime.rows_max = engine.max_num_batched_tokens;
  if (runtime.rows_max == 0) {
    runtime.rows_max = std::max(kRowsMaxDefault, engine.max_num_seqs);
    // Unchunked, the longest prompt is one step.
    if (!engine.enable_chunked_prefill) {
      runtime.rows_max = std::max(runtime.rows_max, engine.max_model_len == 0 ? context : engine.max_model_len);
    }
  }
  runtime.logit_rows_max = engine.max_num_seqs;
  runtime.positions_max = context;
  return runtime;
}

Status Instance::start(const InstanceOptions& options) {
  ASSIGN_OR_RETURN(runtime_, RuntimeExecutor::create(model(), placement_,
                                                     std::array{NamedDevice{entry_->description.name, &*device_}},
                                                     runtime_options(options)));
  ASSIGN_OR_RETURN(engine_, Engine::create(*runtime_, options.engine));
  return ok_status();
}

motley_device_stats Instance::device_stats() const {
  const auto stats = device_->stats();
  return stats.ok() ? *stats : motley_device_stats{};
}

}  // namespace motley
