#include "llm/instance.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <utility>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "planner/plan.hpp"
#include "planner/plan_picture.hpp"
#include "runtime/kv_request.hpp"

namespace motley {
namespace {

constexpr double kServedPerMeasured = 19;   // of the time, measuring takes a twentieth
constexpr uint32_t kRowsMaxDefault = 2048;  // of one step, where no budget is given
constexpr size_t kTemplateBytesMax = 1u << 20;
constexpr uint32_t kSequencesMax = 4096;  // two token slots each
constexpr uint32_t kBlockSizeMax = 1024;
constexpr uint32_t kBatchedTokensMax = 1u << 17;
constexpr int64_t kPatienceWithTheLast = 10;  // nobody takes over from it, and it may be slow only
constexpr size_t kDevicesPlannedFully = 4;    // while requests wait: with more, the first good plan is taken

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
  open.isolate = options.isolate;
  ASSIGN_OR_RETURN(devices_, DeviceSet::open(std::move(listed), open));
  return ok_status();
}

Status Instance::place(const InstanceOptions& options) {
  settings_ = options.planning;
  runtime_options_ = runtime_options(options);
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
    ASSIGN_OR_RETURN(placement_, alone_on(0));
    return ok_status();
  }
  const bool known = known_input(model(), devices_, runtime_options_.virtual_time).has_value();
  return options.serve_first && !known && !settings_.forced() ? place_first() : place_together();
}

// One device: nothing to choose, nothing to measure.
Result<Placement> Instance::alone_on(size_t index) const {
  const DeviceDescription& description = devices_.listed(index).description;
  for (const uint32_t size : {settings_.tensor_parallel_size, settings_.pipeline_parallel_size}) {
    if (size > 1)
      return invalid_argument("{} devices are asked for, and --devices lists one: {}", size, description.name);
  }
  const PlanOptions plan{kv_.block_size, kv_.dtype, kv_.bytes, kv_.max_model_len};
  const KvRequest request(model().kv_layers(), plan.kv_dtype, plan.block_size, 1);
  ASSIGN_OR_RETURN(const motley_kv_layout layout, devices_.device(index).kv_layout(request.desc));
  ASSIGN_OR_RETURN(const uint64_t step, step_bytes(model(), devices_.device(index), runtime_options_));
  uint64_t memory_free = description.desc.memory_free;
  const auto cap = devices_.memory_caps().find(description.name);
  if (cap != devices_.memory_caps().end()) memory_free = std::min(memory_free, cap->second);
  const PlanDevice device{description.name, description.desc.memory_total, memory_free, step, layout.bytes_per_block};
  return plan_single_device(model(), device, plan);
}

// The first device that the model fits serves until the others are measured.
Status Instance::place_first() {
  for (size_t i = 0; i < devices_.size(); ++i) {
    auto placement = alone_on(i);
    if (!placement.ok()) continue;
    log_info("serving on {} until the devices are measured", devices_.listed(i).description.name);
    placement_ = *std::move(placement);
    plans_later_ = true;
    return ok_status();
  }
  return place_together();  // on none alone, but perhaps on all together
}

Status Instance::place_together() {
  ASSIGN_OR_RETURN(PlannedModel planned,
                   plan_model(model(), devices_, settings_, kv_, runtime_options_.rows_max,
                              runtime_options_.virtual_time, [](const std::string& what) { log_info("{}", what); }));
  placement_ = planned.report.placement;
  in_force_ = planned.report;
  take(std::move(planned));
  return ok_status();
}

void Instance::take(PlannedModel planned) {
  const PlanReport& report = planned.report;
  for (const LeftOut& left : report.left_out) log_info("{} is left out: {}", left.device, left.reason);
  if (report.forced && report.forced_loss.loss > 0) {
    log_warning("forced: {:.0f} tokens/s predicted, {:.0f} % less than the {:.0f} of the best plan",
                report.predicted.tokens_per_s, 100 * report.forced_loss.loss, report.forced_loss.best_tokens_per_s);
  }
  auto kept = std::make_shared<const PlannedModel>(std::move(planned));
  std::lock_guard lock(mutex_);
  planned_ = std::move(kept);
}

std::shared_ptr<const PlannedModel> Instance::planned() const {
  std::lock_guard lock(mutex_);
  return planned_;
}

// Measures while the first device serves, and then has the best plan take over.
void Instance::plan_later(const std::stop_token& stop) {
  const Pace pace = [&stop](double spent_ns) -> Status {
    std::mutex mutex;
    std::condition_variable_any stopped;
    std::unique_lock lock(mutex);
    const auto pause = std::chrono::nanoseconds(static_cast<int64_t>(spent_ns * kServedPerMeasured));
    stopped.wait_for(lock, stop, pause, [] { return false; });
    return stop.stop_requested() ? error(MOTLEY_CANCELLED, "the instance ends") : ok_status();
  };
  auto planned = plan_model(
      model(), devices_, settings_, kv_, runtime_options_.rows_max, runtime_options_.virtual_time,
      [](const std::string& what) { log_info("{}", what); }, pace);
  if (stop.stop_requested()) return;
  if (!planned.ok()) {
    log_warning("no plan over the other devices: {}; serving goes on as it is", planned.error().message());
    return;
  }
  PlanReport report = planned->report;
  take(*std::move(planned));
  const Future<Status> replaced = engine_->replace([this, report]() mutable -> Result<Executor*> {
    RETURN_IF_ERROR(put_in_force(std::move(report)));
    return runtime_.get();
  });
  log_info("the devices are measured; the plan takes over");
}

Status Instance::make_runtime(const Placement& placement) {
  RuntimeOptions options = runtime_options_;
  if (const auto known = planned()) {
    const PlanInput left = without_lost(known->input, devices_);
    ASSIGN_OR_RETURN(options.step_limit_ns, step_limit(known->shape, left, placement, options.rows_max));
    if (left.devices.size() == 1) {
      options.step_limit_ns = [limit = options.step_limit_ns](double rows, double reads) {
        return kPatienceWithTheLast * limit(rows, reads);
      };
    }
  }
  const std::vector<NamedDevice> named = devices_.named();
  ASSIGN_OR_RETURN(auto runtime, RuntimeExecutor::create(model(), placement, named, options));
  std::lock_guard lock(mutex_);
  runtime_ = std::move(runtime);
  epoch_ = placement.epoch;
  return ok_status();
}

// Ends the executor, which has lost devices; other threads may be reading its figures until then.
void Instance::drop_runtime() {
  bool at_work = false;  // a device in this process that hangs may go on writing to what the executor owns
  for (const LostDevice& lost : runtime_->lost_devices()) {
    devices_.mark_lost(lost.name);  // first: with its worker gone, nothing below waits for it
    at_work |= lost.hangs && !devices_.has_worker(lost.name);
  }
  devices_.mark_failed();
  std::unique_ptr<RuntimeExecutor> ended;
  {
    std::lock_guard lock(mutex_);
    for (const DriverReport& report : runtime_->reports()) moved_[report.device] += report.bytes_moved;
    ended = std::move(runtime_);
  }
  if (at_work) static_cast<void>(ended.release());  // that is never freed then
}

// On a thread of the engine's, while no step is under way: the same model over what is left.
Result<Executor*> Instance::recover(const Status& why) {
  const bool blamed = !runtime_->lost_devices().empty();
  log_warning("{}; planning {}", why.message(), blamed ? "without it" : "anew");
  const int64_t began_ns = system_clock().now_ns();
  drop_runtime();
  const int64_t dropped_ns = system_clock().now_ns();
  for (;;) {
    if (devices_.named().empty()) return why.annotate("no device is left");
    const Status status = serve_on_what_is_left(why);
    if (status.ok()) break;
    // A device that fails while it is loaded is lost too. Each turn has one less.
    const std::vector<std::string> failed = devices_.mark_failed();
    if (failed.empty()) return status;
    log_warning("{}; planning without {}", status.message(), fmt::join(failed, ", "));
  }
  const int64_t ready_ns = system_clock().now_ns();
  log_info("loaded anew on {} in {:.0f} ms, after {:.0f} ms for letting go of what was there", device_text(),
           static_cast<double>(ready_ns - dropped_ns) / 1e6, static_cast<double>(dropped_ns - began_ns) / 1e6);
  return runtime_.get();
}

// Plans over the devices that are not lost, and loads the plan.
Status Instance::serve_on_what_is_left(const Status& why) {
  const auto known = planned();
  if (known == nullptr) {  // not measured yet: any that the model fits
    for (size_t i = 0; i < devices_.size(); ++i) {
      if (devices_.lost(i)) continue;
      auto placement = alone_on(i);
      if (!placement.ok()) continue;
      PlanReport report;  // of which nothing is predicted
      report.placement = *std::move(placement);
      return put_in_force(std::move(report));
    }
    return why.annotate("the model fits no other device alone");
  }
  PlanSettings settings = settings_;  // what was forced cannot be any more
  settings.tensor_parallel_size = settings.pipeline_parallel_size = 0;
  settings.use_all_devices = false;
  const PlanRequest request = plan_request(settings, kv_, model().config(), runtime_options_.rows_max);
  const PlanInput left = without_lost(known->input, devices_);
  const int64_t began_ns = system_clock().now_ns();
  const Effort effort = left.devices.size() <= kDevicesPlannedFully ? Effort::kFull : Effort::kFirst;
  ASSIGN_OR_RETURN(PlanReport report, plan(known->shape, left, request, effort));
  ASSIGN_OR_RETURN(const double rate, prefill_rate(known->shape, left, report.placement, runtime_options_.rows_max));
  log_info("planned anew in {:.0f} ms; {:.0f} tokens of prompts per second predicted",
           static_cast<double>(system_clock().now_ns() - began_ns) / 1e6, rate);
  return put_in_force(std::move(report));
}

Status Instance::put_in_force(PlanReport report) {
  report.placement.epoch = epoch_ + 1;
  RETURN_IF_ERROR(make_runtime(report.placement));
  std::lock_guard lock(mutex_);
  in_force_ = std::move(report);
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
  runtime.trace = options.trace;
  return runtime;
}

Status Instance::start(const InstanceOptions& options) {
  RETURN_IF_ERROR(make_runtime(placement_));
  ASSIGN_OR_RETURN(engine_, Engine::create(
                                *runtime_, options.engine, system_clock(),
                                [this](const Status& why) { return recover(why); }, options.trace));
  if (plans_later_) planning_ = std::jthread([this](const std::stop_token& stop) { plan_later(stop); });
  return ok_status();
}

std::string Instance::device_text() const {
  std::lock_guard lock(mutex_);
  const Placement& placement = in_force_ ? in_force_->placement : placement_;
  std::string text;
  for (const Stage& stage : placement.lanes[0].stages) {
    for (const Shard& shard : stage.shards) text += (text.empty() ? "" : " + ") + shard.device;
  }
  return text;
}

std::string Instance::plan_picture() const {
  std::lock_guard lock(mutex_);
  return in_force_ && planned_ != nullptr ? plan_text(*in_force_, planned_->shape) : "";
}

std::vector<DeviceWork> Instance::device_work() {
  std::lock_guard one(work_mutex_);
  std::vector<DeviceWork> work = devices_.work();  // without the other lock: recover() ends a device that hangs
  std::lock_guard lock(mutex_);
  std::map<std::string, uint64_t> moved = moved_;
  if (runtime_ != nullptr) {
    for (const DriverReport& report : runtime_->reports()) moved[report.device] += report.bytes_moved;
  }
  for (DeviceWork& each : work) each.bytes_moved = moved[each.name];
  return work;
}

}  // namespace motley
