#include "llm/planning.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "comm/communicator.hpp"
#include "llm/cost_cache.hpp"

namespace motley {
namespace {

constexpr double kStepLimitNsMin = 1e9;
constexpr double kStepLimitFactor = 5;

LeftOut without(const std::string& device, const std::string& why) {
  return {device, why + "; --use-all-devices insists on it, --measure-again tries anew"};
}

// Another gate (null: none) that shuts some time from now on, what is waited at it not counted.
class LimitedGate final : public MeasureGate {
 public:
  LimitedGate(MeasureGate* inner, uint32_t limit_s)
      : inner_(inner), end_ns_(system_clock().now_ns() + limit_s * int64_t{1'000'000'000}) {}
  Status enter() override {
    if (system_clock().now_ns() > end_ns_) return error(MOTLEY_DEADLINE_EXCEEDED, "measuring takes too long");
    return wait(&MeasureGate::enter);
  }
  Status leave() override { return wait(&MeasureGate::leave); }

 private:
  Status wait(Status (MeasureGate::*pass)()) {
    if (inner_ == nullptr) return ok_status();
    const int64_t began_ns = system_clock().now_ns();
    const Status status = (inner_->*pass)();
    end_ns_ += system_clock().now_ns() - began_ns;
    return status;
  }

  MeasureGate* const inner_;
  int64_t end_ns_;
};

double kv_element_bytes(int32_t dtype, uint32_t head_dim) {
  switch (dtype) {
    case MOTLEY_F32: return 4;
    case MOTLEY_F8_E4M3: return 1;
    case MOTLEY_I8: return 1 + 4.0 / head_dim;  // a scale per head and position
    default: return 2;
  }
}

// Devices of one memory are measured running together, too, where one of them is new.
Status measure_groups(const Model& model, const std::vector<MeasuredDevice>& devices, const MeasureOptions& options,
                      const std::vector<bool>& fresh, std::vector<DeviceProfile>* profiles) {
  std::map<std::string, std::vector<size_t>> groups;
  for (size_t i = 0; i < devices.size(); ++i) groups[(*profiles)[i].memory_group].push_back(i);
  for (const auto& [name, members] : groups) {
    const bool any_fresh = std::any_of(members.begin(), members.end(), [&](size_t i) { return fresh[i]; });
    if (name.empty() || members.size() < 2 || !any_fresh) continue;
    std::vector<MeasuredDevice> some;
    std::vector<DeviceProfile> theirs;
    for (const size_t i : members) some.push_back(devices[i]), theirs.push_back((*profiles)[i]);
    RETURN_IF_ERROR(measure_together(model, some, options, theirs));
    for (size_t k = 0; k < members.size(); ++k) (*profiles)[members[k]] = theirs[k];
  }
  return ok_status();
}

}  // namespace

PlanRequest plan_request(const PlanSettings& settings, const KvSettings& kv, const ModelConfig& config,
                         uint32_t rows_max, const StepBuffers& buffers) {
  PlanRequest request;
  request.buffers = buffers;
  request.step_bytes = step_bytes(buffers, int64_t{config.hidden}, int64_t{config.vocab_size});
  request.objective = settings.objective;
  request.ttft_ms_max = settings.ttft_ms_max;
  request.tpot_ms_max = settings.tpot_ms_max;
  request.concurrency = settings.concurrency;
  request.prompt_len = settings.prompt_len;
  request.output_len = settings.output_len;
  request.chunk_rows = std::min(kMeasuredRowsMax, rows_max);
  request.tensor_parallel_size = settings.tensor_parallel_size;
  request.pipeline_parallel_size = settings.pipeline_parallel_size;
  request.use_all_devices = settings.use_all_devices;
  request.kv.block_size = kv.block_size;
  request.kv.dtype = kv.dtype;
  request.kv.element_bytes = kv_element_bytes(kv.dtype, config.head_dim);
  request.kv.bytes = kv.bytes;
  request.kv.max_model_len = kv.max_model_len;
  return request;
}

Result<StepBuffers> step_buffers(const Model& model, const Device& device, const RuntimeOptions& runtime) {
  ASSIGN_OR_RETURN(const uint64_t workspace, workspace_bytes(model, device, runtime));
  return StepBuffers{runtime.rows_max, runtime.logit_rows_max, kTokenSlots, workspace};
}

StepBuffers most_step_buffers(const Model& model, const DeviceSet& devices, const RuntimeOptions& runtime) {
  StepBuffers most;
  for (size_t i = 0; i < devices.size(); ++i) {
    if (devices.lost(i)) continue;
    const auto buffers = step_buffers(model, devices.device(i), runtime);
    if (buffers.ok() && (most.rows == 0 || buffers->workspace_bytes > most.workspace_bytes)) most = *buffers;
  }
  return most;
}

std::string machine_of(const DeviceSet& devices) {
  std::vector<ListedDevice> listed;
  for (size_t i = 0; i < devices.size(); ++i) {
    if (!devices.lost(i)) listed.push_back(devices.listed(i));
  }
  return machine_digest(listed);
}

namespace {

CostCache cost_cache() { return CostCache(cache_directory() / "costs"); }

// Of the model on devices opened as these are: what changes times beside who they are.
std::string cost_key(const Model& model, const DeviceSet& devices, const MeasureOptions& measure) {
  const DeviceSetOptions& options = devices.options();
  const bool usual = measure.compile_seconds_max == kCompileSecondsMax;
  const std::vector<MeasuredDevice> all = devices.measured();
  const bool compiled = std::any_of(all.begin(), all.end(), [](const MeasuredDevice& device) {
    return (device.description.desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) == 0;
  });
  return fmt::format("{}-kv{}-threads{}{}{}{}{}{}", model_digest(model), measure.kv_dtype, options.threads,
                     compiled ? fmt::format("-rows{}", measure.step_rows_max) : "",
                     usual ? "" : fmt::format("-compile{:.0f}", measure.compile_seconds_max),
                     options.deterministic ? "-deterministic" : "", options.isolate ? "-isolated" : "",
                     options.quality == Quality::kExact ? "" : fmt::format("-{}", quality_name(options.quality)));
}

// Of a note that some device could not be measured, and is to be tried again.
std::string failed_key(const Model& model, const DeviceSet& devices, const MeasureOptions& measure) {
  return cost_key(model, devices, measure) + "-failed";
}

}  // namespace

MeasureOptions measure_options(const KvSettings& kv, const RuntimeOptions& runtime) {
  MeasureOptions options;
  options.kv_dtype = kv.dtype;
  options.virtual_time = runtime.virtual_time;
  options.compile_seconds_max = runtime.compile_seconds_max;
  options.step_rows_max = runtime.rows_max;
  return options;
}

namespace {

// What changes from start to start: what is free for the plan, without what the programs of a device of fixed row
// counts take. FAILED_PRECONDITION where it would be compiled for others than it was measured for.
Status take_memory(const Model& model, const MeasuredDevice& device, const MeasureOptions& options,
                   DeviceProfile* profile) {
  const motley_device_desc& desc = device.description.desc;
  const bool any_rows = (desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0;
  ASSIGN_OR_RETURN(const Buckets buckets, buckets_of(model, *device.device,
                                                     {any_rows, std::max(options.rows_max, options.step_rows_max),
                                                      options.compile_seconds_max, device.program_bytes_max}));
  if (!any_rows &&
      !std::equal(buckets.rows.begin(), buckets.rows.end(), profile->buckets.begin(), profile->buckets.end()))
    return error(MOTLEY_FAILED_PRECONDITION, "{} was measured for other row counts", profile->name);
  profile->memory_free = desc.memory_free - std::min(desc.memory_free, buckets.program_bytes);
  return ok_status();
}

// Those of devices that are left out do not count.
void take_caps(const DeviceSet& devices, PlanInput* input) {
  input->memory_caps = devices.memory_caps();
  *input = without_devices(std::move(*input), [](const std::string&) { return false; });
}

}  // namespace

std::optional<PlanInput> known_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options) {
  if (options.virtual_time) return std::nullopt;
  const std::vector<MeasuredDevice> measured = devices.measured();
  std::optional<PlanInput> known = cost_cache().read(machine_of(devices), cost_key(model, devices, options));
  if (!known || known->devices.empty()) return std::nullopt;
  for (DeviceProfile& profile : known->devices) {
    const auto device = std::find_if(measured.begin(), measured.end(),
                                     [&](const MeasuredDevice& each) { return each.description.name == profile.name; });
    if (device == measured.end()) return std::nullopt;
    if (!take_memory(model, *device, options, &profile).ok()) return std::nullopt;
    profile.attends_partially = (device->description.desc.caps & MOTLEY_CAP_PARTIAL_ATTENTION) != 0;
  }
  take_caps(devices, &*known);
  return known;
}

namespace {

Status measure_links(const Model& model, const std::vector<MeasuredDevice>& measured, const MeasureOptions& options,
                     const PlanInput& given, PlanInput* input) {
  MeasureOptions between = options;
  if (measured.size() > 1 && !options.virtual_time) between.routes = available_routes();
  for (size_t a = 0; a < measured.size(); ++a) {
    for (size_t b = a + 1; b < measured.size(); ++b) {
      const std::string &from = measured[a].description.name, &to = measured[b].description.name;
      const auto known = std::find_if(given.links.begin(), given.links.end(), [&](const LinkProfile& link) {
        return (link.a == from && link.b == to) || (link.a == to && link.b == from);
      });
      if (known != given.links.end()) {
        input->links.push_back(*known);
        continue;
      }
      ASSIGN_OR_RETURN(LinkProfile link, measure_link(model, measured[a], measured[b], between));
      input->links.push_back(std::move(link));
    }
  }
  return ok_status();
}

}  // namespace

Result<MeasuredInput> measure_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options,
                                    const Progress& progress, const MeasureScope& scope) {
  const std::vector<MeasuredDevice> all = devices.measured();
  const PlanInput nothing;
  const PlanInput& given = scope.have != nullptr ? *scope.have : nothing;
  MeasuredInput made;
  std::vector<MeasuredDevice> measured;
  std::vector<bool> fresh;
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string& name = all[i].description.name;
    const DeviceProfile* known = find_profile(given, name);
    if (known == nullptr) {
      progress(fmt::format("measuring {}", name));
      MeasureOptions own = options;
      LimitedGate gate(options.gate, scope.limit_s);
      const bool others = !measured.empty() || i + 1 < all.size();
      const bool limited = scope.limit_s > 0 && others && !options.virtual_time;
      if (limited) own.gate = &gate;
      auto profile = measure_device(model, all[i], own);
      const Code failed = profile.error().code();
      if (failed != MOTLEY_OK && failed != MOTLEY_UNAVAILABLE && failed != MOTLEY_CANCELLED && limited) {
        made.again |= failed != MOTLEY_DEADLINE_EXCEEDED;
        made.left_out.push_back(
            without(name, failed == MOTLEY_DEADLINE_EXCEEDED
                              ? fmt::format("takes longer than {} s to measure (--measure-limit)", scope.limit_s)
                              : fmt::format("cannot be measured: {}", profile.error().message())));
        continue;
      }
      RETURN_IF_ERROR(profile.error());
      made.input.devices.push_back(*std::move(profile));
    } else {
      made.input.devices.push_back(*known);
    }
    RETURN_IF_ERROR(take_memory(model, all[i], options, &made.input.devices.back()));
    measured.push_back(all[i]);
    fresh.push_back(known == nullptr);
  }
  progress("measuring what the devices have in common");
  RETURN_IF_ERROR(measure_groups(model, measured, options, fresh, &made.input.devices));
  RETURN_IF_ERROR(measure_links(model, measured, options, given, &made.input));
  take_caps(devices, &made.input);
  return made;
}

Result<MeasuredInput> measured_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options,
                                     const Progress& progress, const MeasureScope& scope) {
  MeasureScope rest = scope;
  std::optional<PlanInput> known;
  if (!scope.again) known = known_input(model, devices, options);
  if (known) {
    MeasuredInput made;
    for (const MeasuredDevice& device : devices.measured()) {
      const std::string& name = device.description.name;
      if (find_profile(*known, name) == nullptr)
        made.left_out.push_back(without(name, "took longer to measure than --measure-limit allowed"));
    }
    rest.have = &*known;
    const bool failed = cost_cache().read_text(machine_of(devices), failed_key(model, devices, options)).has_value();
    if (made.left_out.empty() || (scope.limit_s > 0 && !failed)) {
      made.input = *std::move(known);
      return made;
    }
  }
  auto made = measure_input(model, devices, options, progress, rest);
  if (!made.ok() || options.virtual_time) return made;
  PlanInput kept = made->input;
  kept.memory_caps.clear();  // the caller's, not the machine's
  const std::string machine = machine_of(devices);
  cost_cache().write(machine, cost_key(model, devices, options), kept);
  cost_cache().mark(machine, failed_key(model, devices, options), made->again);
  return made;
}

PlanInput without_lost(const PlanInput& input, const DeviceSet& devices) {
  return without_devices(input, [&](const std::string& name) {
    const auto found = devices.find(name);
    return !found || devices.lost(*found);
  });
}

Result<double> prefill_rate(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                            uint32_t rows_max) {
  StepLoad load;
  load.decode_rows = 0;
  load.chunk_rows = std::min(rows_max, kMeasuredRowsMax);
  ASSIGN_OR_RETURN(const double ns, predict_step_ns(shape, input, placement, load));
  return load.chunk_rows / (ns / 1e9);
}

Result<std::function<int64_t(double, double)>> step_limit(const ModelShape& shape, const PlanInput& input,
                                                          const Placement& placement, uint32_t rows_max) {
  const auto rows = static_cast<double>(std::min(rows_max, kMeasuredRowsMax));
  constexpr double kFar = 1024;
  double one = 0, many = 0, far = 0;
  for (size_t lane = 0; lane < placement.lanes.size(); ++lane) {  // a step may wait for one of each other lane
    const auto add = [&](double* sum, double decoding, double context) -> Status {
      const StepLoad load{.decode_rows = decoding, .context = context, .head_rows = decoding};
      ASSIGN_OR_RETURN(const double ns, predict_step_ns(shape, input, placement, load, lane));
      *sum += ns;
      return ok_status();
    };
    RETURN_IF_ERROR(add(&one, 1, 1));
    RETURN_IF_ERROR(add(&many, rows, 1));
    RETURN_IF_ERROR(add(&far, rows, kFar));
  }
  const double per_row = rows > 1 ? std::max(0.0, many - one) / (rows - 1) : one;
  const double per_read = std::max(0.0, far - many) / (rows * kFar);
  return std::function<int64_t(double, double)>([=](double step_rows, double reads) {
    const double predicted = one + step_rows * per_row + reads * per_read;
    return static_cast<int64_t>(std::max(kStepLimitNsMin, kStepLimitFactor * predicted));
  });
}

}  // namespace motley
