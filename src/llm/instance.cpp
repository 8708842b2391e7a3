#include "llm/instance.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "device/device_map.hpp"
#include "planner/move_cost.hpp"
#include "planner/plan.hpp"
#include "runtime/kv_request.hpp"
#include "runtime/measured_layers.hpp"

namespace motley {
namespace {

constexpr uint32_t kRowsMaxDefault = 2048;  // of one step, where no budget is given
constexpr size_t kTemplateBytesMax = 1u << 20;
constexpr uint32_t kSequencesMax = 4096;  // two token slots each
constexpr uint32_t kBlockSizeMax = 1024;
constexpr uint32_t kBatchedTokensMax = 1u << 17;
constexpr double kLossTold = 0.005;         // less shows as 0 %
constexpr double kCompileSoonSeconds = 10;  // what takes longer is not waited for, if others can serve

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

// Where larger steps do not compile, none is asked for. Moves hold up as long as their price says.
EngineOptions engine_options(EngineOptions engine, const ExecutorDescription& executor) {
  engine.kv_pause_ns = kKvPauseNs;
  uint32_t rows = 0;
  for (const LaneDescription& lane : executor.lanes) rows = std::max(rows, lane.rows_max);
  if (engine.max_num_batched_tokens > rows)
    log_warning("steps have {} rows at most, not {}", rows, engine.max_num_batched_tokens);
  engine.max_num_batched_tokens = std::min(engine.max_num_batched_tokens, rows);
  return engine;
}

}  // namespace

Result<int32_t> parse_kv_dtype(std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, int32_t>, 10> kNames = {{{"auto", MOTLEY_F16},
                                                                                   {"float32", MOTLEY_F32},
                                                                                   {"float16", MOTLEY_F16},
                                                                                   {"bfloat16", MOTLEY_BF16},
                                                                                   {"fp8", MOTLEY_F8_E4M3},
                                                                                   {"fp8_e4m3", MOTLEY_F8_E4M3},
                                                                                   {"int8", MOTLEY_I8},
                                                                                   {"f32", MOTLEY_F32},
                                                                                   {"f16", MOTLEY_F16},
                                                                                   {"bf16", MOTLEY_BF16}}};
  for (const auto& [known, dtype] : kNames) {
    if (known == name) return dtype;
  }
  return invalid_argument("--kv-cache-dtype {} is unknown; there are auto, float32, float16, bfloat16, fp8, int8",
                          name);
}

RuntimeOptions runtime_options(const InstanceOptions& options, const ModelConfig& model) {
  const EngineOptions& engine = options.engine;
  RuntimeOptions runtime;
  runtime.rows_max = engine.max_num_batched_tokens;
  if (runtime.rows_max == 0) {
    runtime.rows_max = std::max(kRowsMaxDefault, engine.max_num_seqs);
    // Unchunked, the longest prompt is one step.
    if (!engine.enable_chunked_prefill) {
      runtime.rows_max =
          std::max(runtime.rows_max, engine.max_model_len == 0 ? model.context_length : engine.max_model_len);
    }
  }
  runtime.logit_rows_max = engine.max_num_seqs;
  runtime.compile_seconds_max = options.planning.compile_limit_s;
  runtime.load = {std::min(options.planning.concurrency, engine.max_num_seqs), options.planning.prompt_len,
                  options.planning.output_len};
  runtime.positions_max = model.context_length;
  runtime.trace = options.trace;
  runtime.host_memory = options.host_memory;
  runtime.programs = std::make_shared<const ProgramCache>(cache_directory() / "programs");
  return runtime;
}

Instance::Instance(TextModel text, DeviceRegistry registry) : text_(std::move(text)), registry_(std::move(registry)) {}
Instance::~Instance() = default;

Result<std::unique_ptr<Instance>> Instance::open(const InstanceOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  ASSIGN_OR_RETURN(TextModel text, TextModel::load(options.model, {options.engine.max_model_len}));
  DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  RETURN_IF_ERROR(map_devices(options.device_map, &registry));
  std::unique_ptr<Instance> instance(new Instance(std::move(text), std::move(registry)));
  RETURN_IF_ERROR(instance->load_template(options.chat_template_file));
  RETURN_IF_ERROR(instance->open_devices(options));
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

Status Instance::open_devices(const InstanceOptions& options) {
  ASSIGN_OR_RETURN(auto listed, parse_device_list(registry_, options.devices));
  DeviceSetOptions open;
  open.threads = options.threads;
  open.deterministic = options.deterministic;
  open.memory_caps = options.device_memory;
  open.isolation = options.isolation;
  open.compile_seconds_max = options.planning.compile_limit_s;
  ASSIGN_OR_RETURN(open.quality, parse_quality(options.quality));
  ASSIGN_OR_RETURN(devices_, DeviceSet::open(std::move(listed), open));
  return ok_status();
}

Status Instance::place(const InstanceOptions& options) {
  settings_ = options.planning;
  runtime_options_ = runtime_options(options, model().config());
  ASSIGN_OR_RETURN(kv_.dtype, parse_kv_dtype(options.kv_cache_dtype));
  kv_.block_size = options.block_size;
  kv_.bytes = options.kv_cache_memory_bytes;
  kv_.max_model_len = options.engine.max_model_len;
  if (kv_.max_model_len > model().config().context_length) {
    return invalid_argument("--max-model-len {} is beyond the model's context of {}", kv_.max_model_len,
                            model().config().context_length);
  }
  if (!settings_.plan_file.empty()) return place_together();
  if (devices_.size() == 1) {
    ASSIGN_OR_RETURN(placement_, alone_on(devices_, 0));
    return ok_status();
  }
  const bool known =
      !settings_.measure_again && known_input(model(), devices_, measure_options(kv_, runtime_options_)).has_value();
  const bool serve_first = options.serve_first && !settings_.forced();
  return serve_first && !known ? place_first() : place_together(serve_first);
}

// One device: nothing to choose, nothing to measure. `leaves_room`: for the device to be measured beside it.
Result<Placement> Instance::alone_on(const DeviceSet& devices, size_t index, bool leaves_room) const {
  const DeviceDescription& description = devices.listed(index).description;
  for (const uint32_t size : {settings_.tensor_parallel_size, settings_.pipeline_parallel_size}) {
    if (size > 1)
      return invalid_argument("{} devices are asked for, and --devices lists one: {}", size, description.name);
  }
  if ((description.desc.caps & MOTLEY_CAP_PAGED_ATTENTION) == 0)
    return error(MOTLEY_UNIMPLEMENTED,
                 "{} cannot attend, and a model needs that; list a device with it that can, such as --devices {},CPU:0",
                 description.name, description.name);
  const PlanOptions plan{kv_.block_size, kv_.dtype, kv_.bytes, kv_.max_model_len};
  const KvRequest request(model().kv_layers(), plan.kv_dtype, plan.block_size, 1);
  ASSIGN_OR_RETURN(const motley_kv_layout layout, devices.device(index).kv_layout(request.desc));
  ASSIGN_OR_RETURN(const StepBuffers buffers, step_buffers(model(), devices.device(index), runtime_options_));
  const uint64_t step = step_bytes(buffers, int64_t{model().config().hidden}, int64_t{model().config().vocab_size});
  uint64_t memory_free = description.desc.memory_free;
  const auto cap = devices.memory_caps().find(description.name);
  if (cap != devices.memory_caps().end()) memory_free = std::min(memory_free, cap->second);
  const uint64_t kept = rounding_bytes(model()) + (leaves_room ? step + measuring_bytes(model()) : 0);
  memory_free -= std::min(memory_free, kept);
  const PlanDevice device{description.name,       description.desc.memory_total,   memory_free, step,
                          layout.bytes_per_block, has_own_memory(description.desc)};
  return plan_single_device(model(), device, plan);
}

// The first device that the model fits serves until all are measured: if there is any, one that has room to be measured
// meanwhile, and for a request such as the plan will be for.
Status Instance::place_first() {
  for (size_t tried = 0; tried < 2 * devices_.size(); ++tried) {
    const size_t i = tried % devices_.size();
    const bool roomy = tried < devices_.size();
    auto placement = alone_on(devices_, i, roomy);
    if (!placement.ok()) continue;
    if (roomy && kv_tokens(*placement) < uint64_t{settings_.prompt_len} + settings_.output_len) continue;
    log_info("serving on {} until the devices are measured", devices_.listed(i).description.name);
    placement_ = *std::move(placement);
    plans_later_ = true;
    std::lock_guard lock(mutex_);
    in_force_.emplace().placement = placement_;  // of which nothing is predicted
    return ok_status();
  }
  return place_together();  // on none alone, but perhaps on all together
}

// Of the plan.
Result<std::vector<std::string>> Instance::slow_to_compile(const PlannedModel& planned) const {
  RuntimeOptions options = runtime_options_;
  options.row_counts = row_counts_of(planned.input);
  ASSIGN_OR_RETURN(const auto seconds, compile_seconds(model(), planned.report.placement, devices_.named(), options));
  std::vector<std::string> slow;
  for (const auto& [device, expected] : seconds) {
    if (expected > kCompileSoonSeconds) slow.push_back(device);
  }
  return slow;
}

// The best plan by the same figures, without some devices.
Result<PlannedModel> Instance::plan_without(const PlannedModel& planned, const std::vector<std::string>& names) const {
  PlannedModel made = planned;
  made.input = without_devices(std::move(made.input), [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  });
  ASSIGN_OR_RETURN(made.report, plan(made.shape, made.input, made.request));
  made.report.simulated = planned.report.simulated;
  return made;
}

// `planned` becomes the best plan without the slow devices, and is kept for later itself. Nothing changes where there
// is none.
Status Instance::serve_while_compiling(PlannedModel* planned, const std::vector<std::string>& slow) {
  ASSIGN_OR_RETURN(PlannedModel first, plan_without(*planned, slow));
  next_ = std::exchange(*planned, std::move(first));
  plans_later_ = true;
  log_info("serving without {} until its programs are compiled", fmt::join(slow, ", "));
  return ok_status();
}

Status Instance::place_together(bool may_serve_first) {
  ASSIGN_OR_RETURN(PlannedModel planned, plan_model(model(), devices_, settings_, kv_, runtime_options_,
                                                    [](const std::string& what) { log_info("{}", what); }));
  if (may_serve_first) {
    ASSIGN_OR_RETURN(const std::vector<std::string> slow, slow_to_compile(planned));
    const Status others = slow.empty() ? ok_status() : serve_while_compiling(&planned, slow);
    if (!others.ok())
      log_info("waiting for the programs of {}: no plan without: {}", fmt::join(slow, ", "), others.message());
  }
  placement_ = planned.report.placement;
  tell(planned.report);
  std::lock_guard lock(mutex_);
  in_force_ = planned.report;
  planned_ = std::make_shared<const PlannedModel>(std::move(planned));
  return ok_status();
}

void Instance::tell(const PlanReport& report) {
  for (const LeftOut& left : report.left_out) log_info("{} is left out: {}", left.device, left.reason);
  if (report.forced && report.forced_loss.loss >= kLossTold) {
    log_warning("forced: {:.0f} tokens/s predicted, {:.0f} % less than the {:.0f} of the best plan",
                report.predicted.tokens_per_s, 100 * report.forced_loss.loss, report.forced_loss.best_tokens_per_s);
  }
}

std::shared_ptr<const PlannedModel> Instance::planned() const {
  std::lock_guard lock(mutex_);
  return planned_;
}

Status Instance::start(const InstanceOptions& options) {
  holdings_ = std::make_shared<Holdings>(model());
  RETURN_IF_ERROR(make_runtime(placement_));
  ASSIGN_OR_RETURN(engine_, Engine::create(
                                *runtime_, engine_options(options.engine, runtime_->describe()), system_clock(),
                                [this](const Status& why) { return recover(why); }, options.trace));
  if (plans_later_) {
    changing_ = true;  // until plan_later() has ended
    planning_ = std::jthread([this](const std::stop_token& stop) { plan_later(stop); });
  }
  if (options.adapt && !settings_.plan_file.empty()) log_warning("--adapt: a plan of a file stays as it is");
  if (options.adapt && devices_.size() > 1 && settings_.plan_file.empty())
    adapting_ = std::jthread([this](const std::stop_token& stop) { adapt(stop); });
  return ok_status();
}

}  // namespace motley
