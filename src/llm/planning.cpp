#include "llm/planning.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <sstream>
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
constexpr uint64_t kHangsNsMin = 5'000'000'000;  // a program that is measured, and takes longer than the limit, hangs

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

uint64_t rounding_bytes(const Model& model) {
  constexpr uint64_t kPageBytes = 4096, kPlanesOfLayer = 4, kBuffers = 32;
  return kPageBytes * (kPlanesOfLayer * model.config().layers + kBuffers);
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

bool any_rows(const MeasuredDevice& device) { return (device.description.desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0; }

BucketOptions bucket_options(const MeasuredDevice& device, const MeasureOptions& options) {
  return {.any_rows = any_rows(device),
          .rows_max = std::max(options.rows_max, options.step_rows_max),
          .compile_seconds_max = options.compile_seconds_max,
          .program_bytes_max = device.program_bytes_max,
          .load = options.load};
}

// Of the row counts that devices are compiled for if all compile; empty where each runs any.
std::string row_counts_digest(const Model& model, const std::vector<MeasuredDevice>& devices,
                              const MeasureOptions& options) {
  std::string text;
  for (const MeasuredDevice& device : devices) {
    if (any_rows(device)) continue;
    const auto counts = buckets_of(model, *device.device, bucket_options(device, options));
    text += fmt::format("{} {}\n", device.description.name,
                        fmt::join(counts.ok() ? counts->rows : std::vector<uint32_t>(), " "));
  }
  return text.empty() ? "" : text_digest(text);
}

// Of the model on devices opened as these are: what changes times beside who they are.
std::string cost_key(const Model& model, const DeviceSet& devices, const MeasureOptions& measure) {
  const DeviceSetOptions& options = devices.options();
  const std::string counts = row_counts_digest(model, devices.measured(), measure);
  const auto if_any = [](const std::string& what, bool any) { return any ? "-" + what : ""; };
  return fmt::format(
      "{}-kv{}-threads{}{}{}{}{}{}{}", model_digest(model), measure.kv_dtype, options.threads,
      if_any(fmt::format("rows{}", measure.step_rows_max), !counts.empty() || measure.rows_max < kMeasuredRowsMax),
      if_any("counts" + counts, !counts.empty()), if_any("deterministic", options.deterministic),
      if_any("isolated", options.isolation == Isolation::kAll),
      if_any("in-process", options.isolation == Isolation::kNone && devices.has_accelerators()),
      if_any(std::string(quality_name(options.quality)), options.quality != Quality::kExact));
}

// Of a note of the devices that could not be measured and are to be tried again, each in a line.
std::string failed_key(const std::string& key) { return key + "-failed"; }

}  // namespace

MeasureOptions measure_options(const KvSettings& kv, const RuntimeOptions& runtime) {
  MeasureOptions options;
  options.kv_dtype = kv.dtype;
  options.virtual_time = runtime.virtual_time;
  options.compile_seconds_max = runtime.compile_seconds_max;
  options.load = runtime.load;
  options.step_rows_max = runtime.rows_max;
  options.rows_max = std::min(kMeasuredRowsMax, runtime.rows_max);
  return options;
}

namespace {

// Those that are found not to compile go from what the profile counts with; those that it knows of are known from now
// on.
void take_uncompiled(const MeasuredDevice& device, DeviceProfile* profile) {
  if (device.uncompiled == nullptr) return;
  for (const int64_t rows : profile->uncompiled) device.uncompiled->known(static_cast<uint32_t>(rows));
  const std::vector<uint32_t> all = device.uncompiled->rows();
  profile->uncompiled.assign(all.begin(), all.end());
  std::erase_if(profile->buckets, [&](int64_t rows) { return std::find(all.begin(), all.end(), rows) != all.end(); });
}

std::vector<uint32_t> row_counts_of(const DeviceProfile& profile) {
  return {profile.buckets.begin(), profile.buckets.end()};
}

// What changes from start to start: what is free for the plan, without what the programs of a device of fixed row
// counts take. FAILED_PRECONDITION where it compiles for none of those that it was measured for.
Status take_memory(const Model& model, const MeasuredDevice& device, DeviceProfile* profile) {
  take_uncompiled(device, profile);
  const motley_device_desc& desc = device.description.desc;
  uint64_t taken = rounding_bytes(model);
  if (!any_rows(device)) {
    if (profile->buckets.empty())
      return error(MOTLEY_FAILED_PRECONDITION, "{} compiles for none of the row counts that it was measured for",
                   profile->name);
    const BucketOptions all{.any_rows = false,
                            .compile_seconds_max = std::numeric_limits<double>::infinity(),
                            .of = row_counts_of(*profile)};
    ASSIGN_OR_RETURN(const Buckets programs, buckets_of(model, *device.device, all));
    taken += std::min(programs.program_bytes, desc.memory_free);
  }
  profile->memory_free = desc.memory_free - std::min(desc.memory_free, taken);
  return ok_status();
}

// It was measured roughly for want of memory, and has some more now: of a change by less nothing may come.
bool has_room_now(const MeasuredDevice& device, const DeviceProfile& profile) {
  constexpr double kMore = 1.1;
  return profile.roughly_with > 0 &&
         static_cast<double>(device.description.desc.memory_free) > kMore * static_cast<double>(profile.roughly_with);
}

// Those of devices that are left out do not count.
void take_caps(const DeviceSet& devices, PlanInput* input) {
  input->memory_caps = devices.memory_caps();
  *input = without_devices(std::move(*input), [](const std::string&) { return false; });
}

// What is in the cache and can be used as it is; `anew`: devices that are not in it, but to be measured.
struct Kept {
  PlanInput input;
  std::vector<std::string> anew;
};

std::optional<Kept> kept_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options,
                               const std::string& key) {
  if (options.virtual_time) return std::nullopt;
  const std::vector<MeasuredDevice> measured = devices.measured();
  std::optional<PlanInput> known = cost_cache().read(machine_of(devices), key);
  if (!known || known->devices.empty()) return std::nullopt;
  Kept kept;
  for (DeviceProfile& profile : known->devices) {
    const auto device = std::find_if(measured.begin(), measured.end(),
                                     [&](const MeasuredDevice& each) { return each.description.name == profile.name; });
    if (device == measured.end()) return std::nullopt;
    profile.attends_partially = (device->description.desc.caps & MOTLEY_CAP_PARTIAL_ATTENTION) != 0;
    if (has_room_now(*device, profile) || !take_memory(model, *device, &profile).ok())
      kept.anew.push_back(profile.name);
  }
  const auto anew = [&](const std::string& name) {
    return std::find(kept.anew.begin(), kept.anew.end(), name) != kept.anew.end();
  };
  kept.input = without_devices(*std::move(known), anew);
  take_caps(devices, &kept.input);
  return kept;
}

}  // namespace

std::optional<PlanInput> known_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options) {
  std::optional<Kept> kept = kept_input(model, devices, options, cost_key(model, devices, options));
  if (!kept || !kept->anew.empty()) return std::nullopt;
  return std::move(kept->input);
}

std::map<std::string, std::vector<uint32_t>> row_counts_of(const PlanInput& input) {
  std::map<std::string, std::vector<uint32_t>> counts;
  for (const DeviceProfile& profile : input.devices) {
    if (!profile.buckets.empty()) counts[profile.name] = row_counts_of(profile);
  }
  return counts;
}

void keep_uncompiled(const Model& model, const DeviceSet& devices, const MeasureOptions& options) {
  const std::vector<MeasuredDevice> measured = devices.measured();
  const bool any = std::any_of(measured.begin(), measured.end(),
                               [](const MeasuredDevice& device) { return !rows_of(device.uncompiled).empty(); });
  if (!any || options.virtual_time) return;
  const std::string machine = machine_of(devices), key = cost_key(model, devices, options);
  std::optional<PlanInput> known = cost_cache().read(machine, key);
  if (!known) return;
  bool changed = false;
  for (const MeasuredDevice& device : measured) {
    for (DeviceProfile& profile : known->devices) {
      if (profile.name != device.description.name) continue;
      const size_t before = profile.uncompiled.size();
      take_uncompiled(device, &profile);
      changed |= profile.uncompiled.size() != before;
    }
  }
  if (changed) cost_cache().write(machine, key, *known);
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

const Unmeasured* find_unmeasured(const std::vector<Unmeasured>& devices, const std::string& name) {
  const auto found =
      std::find_if(devices.begin(), devices.end(), [&](const Unmeasured& each) { return each.left.device == name; });
  return found == devices.end() ? nullptr : &*found;
}

// One device, measured now or why not: what is UNAVAILABLE or CANCELLED is no matter of the device's figures.
Result<DeviceProfile> measure_one(const Model& model, const MeasuredDevice& device, const MeasureOptions& options,
                                  const MeasureScope& scope, bool others, std::optional<Unmeasured>* left) {
  const std::string& name = device.description.name;
  MeasureOptions own = options;
  LimitedGate gate(options.gate, scope.limit_s);
  const bool may_go = scope.may_go_without && others && !options.virtual_time;
  if (may_go && scope.limit_s > 0) {
    own.gate = &gate;
    own.wait_ns = measured_wait_ns(scope.limit_s, own.wait_ns);
  }
  auto profile = measure_device(model, device, own);
  const Code failed = profile.error().code();
  if (failed == MOTLEY_OK || failed == MOTLEY_UNAVAILABLE || failed == MOTLEY_CANCELLED || !may_go) return profile;
  const bool late = failed == MOTLEY_DEADLINE_EXCEEDED && scope.limit_s > 0;
  *left = Unmeasured{
      late ? without(name, fmt::format("takes longer than {} s to measure (--measure-limit)", scope.limit_s))
           : LeftOut{name,
                     fmt::format("cannot be measured: {}; each later start tries anew", profile.error().message())},
      !late};
  return profile;
}

}  // namespace

uint64_t measured_wait_ns(uint64_t limit_s, uint64_t wait_ns) {
  return limit_s == 0 ? wait_ns
                      : std::clamp(limit_s * uint64_t{1'000'000'000}, std::min(kHangsNsMin, wait_ns), wait_ns);
}

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
    if (const Unmeasured* before = find_unmeasured(scope.unmeasured, name); before != nullptr && known == nullptr) {
      made.unmeasured.push_back(*before);
      continue;
    }
    DeviceProfile profile;
    bool is_new = known == nullptr;
    if (!is_new) {
      profile = *known;
      is_new = !take_memory(model, all[i], &profile).ok();
    }
    if (is_new) {
      progress(fmt::format("measuring {}", name));
      std::optional<Unmeasured> left;
      auto now = measure_one(model, all[i], options, scope, !measured.empty() || i + 1 < all.size(), &left);
      if (left) {
        made.unmeasured.push_back(*std::move(left));
        continue;
      }
      ASSIGN_OR_RETURN(profile, std::move(now));
      RETURN_IF_ERROR(take_memory(model, all[i], &profile));
    }
    made.input.devices.push_back(std::move(profile));
    measured.push_back(all[i]);
    fresh.push_back(is_new);
  }
  progress("measuring what the devices have in common");
  RETURN_IF_ERROR(measure_groups(model, measured, options, fresh, &made.input.devices));
  RETURN_IF_ERROR(measure_links(model, measured, options, given, &made.input));
  take_caps(devices, &made.input);
  return made;
}

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Those of which the cache tells nothing are not tried again, but for those that it says to try.
std::vector<Unmeasured> not_tried(const DeviceSet& devices, const Kept& kept, const std::string& failed,
                                  const MeasureScope& scope) {
  std::vector<Unmeasured> all = scope.unmeasured;
  std::erase_if(all, [&](const Unmeasured& each) { return find_profile(kept.input, each.left.device) != nullptr; });
  const auto is_in = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const std::vector<std::string> again = lines_of(failed);
  for (const MeasuredDevice& device : devices.measured()) {
    const std::string& name = device.description.name;
    const bool known = find_profile(kept.input, name) != nullptr || find_unmeasured(all, name) != nullptr;
    if (known || is_in(kept.anew, name) || is_in(again, name) || scope.limit_s == 0) continue;
    all.push_back({without(name, "took longer to measure than --measure-limit allowed"), false});
  }
  return all;
}

}  // namespace

Result<MeasuredInput> measured_input(const Model& model, const DeviceSet& devices, const MeasureOptions& options,
                                     const Progress& progress, const MeasureScope& scope) {
  const std::string machine = machine_of(devices);
  const std::string key = options.virtual_time ? "" : cost_key(model, devices, options);
  MeasureScope rest = scope;
  std::optional<Kept> kept;
  if (!scope.again) kept = kept_input(model, devices, options, key);
  if (kept) {
    rest.have = &kept->input;
    rest.unmeasured = not_tried(devices, *kept, cost_cache().read_text(machine, failed_key(key)).value_or(""), scope);
    const std::vector<MeasuredDevice> all = devices.measured();
    const bool nothing_new = std::all_of(all.begin(), all.end(), [&](const MeasuredDevice& device) {
      const std::string& name = device.description.name;
      return find_profile(kept->input, name) != nullptr || find_unmeasured(rest.unmeasured, name) != nullptr;
    });
    if (nothing_new) return MeasuredInput{std::move(kept->input), std::move(rest.unmeasured)};
  }
  auto made = measure_input(model, devices, options, progress, rest);
  if (!made.ok() || options.virtual_time) return made;
  PlanInput written = made->input;
  written.memory_caps.clear();  // the caller's, not the machine's
  std::string again;
  for (const Unmeasured& each : made->unmeasured) again += each.again ? each.left.device + "\n" : "";
  cost_cache().write(machine, key, written);
  cost_cache().note(machine, failed_key(key), again);
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
