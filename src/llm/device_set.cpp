#include "llm/device_set.hpp"

#include <strings.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/log.hpp"
#include "base/quote.hpp"
#include "device/worker/worker_process.hpp"

namespace motley {
namespace {

// What --deterministic asks of a device.
Status check_deterministic(const DeviceDescription& device) {
  struct Need {
    uint64_t cap;
    std::string_view what;
  };
  static constexpr std::array<Need, 2> kNeeds = {
      {{MOTLEY_CAP_ROW_INVARIANT, "does not promise bit-identical rows; leave --deterministic out"},
       {MOTLEY_CAP_ONE_CLASS, "computes prompts and answers differently; leave --deterministic out"}}};
  for (const Need& need : kNeeds) {
    if ((device.desc.caps & need.cap) == 0) return error(MOTLEY_UNIMPLEMENTED, "device {} {}", device.name, need.what);
  }
  return ok_status();
}

Result<Device> open_device(const ListedDevice& listed, const DeviceOptions& options, bool isolate,
                           double compile_seconds_max) {
  const motley_device_desc& desc = listed.description.desc;
  if (!isolate) return Device::open(*listed.plugin, desc.index, options);
  WorkerOptions worker;
  worker.device_name = listed.description.name;
  worker.spec = listed.spec.substr(listed.spec.find(':') + 1);  // as the plugin takes it, without the family
  worker.compile_timeout_ns = std::max(worker.compile_timeout_ns, static_cast<int64_t>(compile_seconds_max * 1e9));
  return Device::open_isolated(listed.plugin->file(), desc.index, options, worker);
}

}  // namespace

namespace {
constexpr std::pair<Quality, std::string_view> kQualities[] = {
    {Quality::kExact, "exact"}, {Quality::kBalanced, "balanced"}, {Quality::kFast, "fast"}};
}  // namespace

Result<Quality> parse_quality(std::string_view name) {
  for (const auto& [quality, known] : kQualities)
    if (known == name) return quality;
  return invalid_argument("--quality {}: exact, balanced or fast", in_quotes(name));
}

std::string_view quality_name(Quality quality) {
  for (const auto& [known, name] : kQualities)
    if (known == quality) return name;
  return "";
}

namespace {
bool is_accelerator(const ListedDevice& device) {
  return device.description.desc.threads == 0 && device.description.desc.simulated == 0;
}
// A device of the host's cores, of which nobody named any.
bool of_host(const ListedDevice& device) { return device.description.desc.threads > 0 && device.cores.empty(); }
}  // namespace

Result<std::shared_ptr<DeviceSet::Opened>> DeviceSet::open_one(ListedDevice listed, const DeviceSetOptions& options) {
  if (options.deterministic) {
    RETURN_IF_ERROR(check_deterministic(listed.description));
    // How it rounds depends on where blocks lie, and so on what ran before.
    listed.description.desc.caps &= ~uint64_t{MOTLEY_CAP_PARTIAL_ATTENTION};
  }
  DeviceOptions open;
  if (listed.description.desc.threads > 0) open.threads = options.threads;
  if (of_host(listed) && options.threads == 0) open.threads = listed.description.desc.threads;
  open.cores = listed.cores;
  open.deterministic = options.deterministic;
  open.virtual_time = options.virtual_time;
  open.weight_formats = listed.description.desc.weight_dtypes;
  open.quality = options.quality;
  const auto cap = options.memory_caps.find(listed.description.name);
  if (cap != options.memory_caps.end()) open.memory_cap = cap->second;
  const bool isolate =
      options.isolation == Isolation::kAll || (options.isolation == Isolation::kAccelerators && is_accelerator(listed));
  auto device = open_device(listed, open, isolate, options.compile_seconds_max);
  if (!device.ok()) return device.error().annotate(listed.description.name);
  return std::make_shared<Opened>(std::move(listed), *std::move(device));
}

namespace {

// Simulated devices compute on the host's cores, one each. Processors that nobody gave threads or cores leave them
// theirs, as far as each keeps one: else all are slower than what was measured of each alone.
void leave_cores(const DeviceSetOptions& options, std::vector<ListedDevice>* listed) {
  if (options.threads > 0 || options.virtual_time) return;
  uint64_t cores = 0, simulated = 0;
  for (const ListedDevice& device : *listed) {
    if (of_host(device)) cores += device.description.desc.threads;
    if (device.description.desc.simulated != 0) ++simulated;
  }
  if (cores == 0) return;
  const uint64_t left = cores - std::min(cores, simulated);
  for (ListedDevice& device : *listed) {
    uint32_t& threads = device.description.desc.threads;
    if (of_host(device)) threads = static_cast<uint32_t>(std::max<uint64_t>(1, threads * left / cores));
  }
}

}  // namespace

Result<DeviceSet> DeviceSet::open(std::vector<ListedDevice> listed, const DeviceSetOptions& options) {
  DeviceSet set;
  set.options_ = options;
  leave_cores(options, &listed);
  for (ListedDevice& each : listed) {
    ASSIGN_OR_RETURN(auto opened, open_one(std::move(each), options));
    set.devices_.push_back(std::move(opened));
  }
  RETURN_IF_ERROR(set.take_caps(options.memory_caps));
  for (const auto& opened : set.devices_) {
    const DeviceDescription& device = opened->listed.description;
    if (shown_name(device) != device.name)
      log_info("{} stands for {}:{}, SIMULATED", device.name, device.desc.family, device.desc.label);
  }
  return set;
}

// Names in any case, as in --devices.
Status DeviceSet::take_caps(const std::map<std::string, uint64_t>& caps) {
  options_.memory_caps.clear();
  for (const auto& [name, bytes] : caps) {
    const auto found = std::find_if(devices_.begin(), devices_.end(), [&](const auto& device) {
      return same_device(device->listed.description.name, name);
    });
    if (found == devices_.end())
      return invalid_argument("--device-memory {}: the device is not listed in --devices", name);
    const DeviceDescription& device = (*found)->listed.description;
    if (bytes > device.desc.memory_total)
      return invalid_argument("--device-memory {}={}: it has {} bytes", name, bytes, device.desc.memory_total);
    if (!options_.memory_caps.emplace(device.name, bytes).second)
      return invalid_argument("--device-memory {}: given twice", device.name);
  }
  return ok_status();
}

Result<DeviceSet> DeviceSet::with(std::vector<ListedDevice> more) const {
  for (size_t i = 0; i < more.size(); ++i) {
    const ListedDevice& each = more[i];
    const std::string& name = each.description.name;
    for (size_t j = 0; j < i; ++j) {
      if (more[j].description.name == name) return invalid_argument("device {} is listed twice", name);
      RETURN_IF_ERROR(check_apart(more[j], each));
    }
    for (const auto& opened : devices_) {
      const bool same = opened->listed.description.name == name;
      if (same && !opened->lost) return error(MOTLEY_ALREADY_EXISTS, "device {} is in use already", name);
      if (same && opened->at_work) {
        return error(MOTLEY_FAILED_PRECONDITION,
                     "device {} hangs within this process and cannot be opened anew; start the server again, "
                     "and with --isolate if it is to come back by itself",
                     name);
      }
      if (!opened->lost) RETURN_IF_ERROR(check_apart(opened->listed, each));
    }
  }
  DeviceSet set = *this;
  for (ListedDevice& each : more) {
    const auto known = find(each.description.name);
    ASSIGN_OR_RETURN(auto opened, open_one(std::move(each), options_));
    if (known) {
      set.devices_[*known] = std::move(opened);
    } else {
      set.devices_.push_back(std::move(opened));
    }
  }
  return set;
}

std::optional<size_t> DeviceSet::find(std::string_view name) const {
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (devices_[i]->listed.description.name == name) return i;
  }
  return std::nullopt;
}

namespace {

// What its compiled programs depend on.
std::string identity_of(const ListedDevice& device, const DeviceSetOptions& options) {
  const motley_device_desc& d = device.description.desc;
  const motley_backend& plugin = device.plugin->api();
  return fmt::format("{} {} {} {} {} {} {} {} {} {}", plugin.name, plugin.version, d.family, d.label, d.vendor, d.model,
                     d.variant, d.driver, quality_name(options.quality), options.deterministic);
}

}  // namespace

std::vector<NamedDevice> DeviceSet::named() const {
  std::vector<NamedDevice> named;
  for (const auto& opened : devices_) {
    const DeviceDescription& description = opened->listed.description;
    if (opened->lost) continue;
    named.push_back({description.name, &opened->device, cores_of(opened->listed.cores), description.desc.simulated != 0,
                     (description.desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0, description.desc.queue_depth,
                     (description.desc.caps & MOTLEY_CAP_PARTIAL_ATTENTION) != 0, identity_of(opened->listed, options_),
                     program_bytes_max(description), opened->busy, opened->uncompiled});
  }
  return named;
}

uint64_t DeviceSet::program_bytes_max(const DeviceDescription& device) const {
  const auto cap = options_.memory_caps.find(device.name);
  const uint64_t memory = cap == options_.memory_caps.end() ? device.desc.memory_total : cap->second;
  return memory / kProgramsPart;
}

bool DeviceSet::has_accelerators() const {
  return std::any_of(devices_.begin(), devices_.end(), [](const auto& each) { return is_accelerator(each->listed); });
}

std::vector<std::string> DeviceSet::simulated() const {
  std::vector<std::string> names;
  for (const auto& opened : devices_) {
    const DeviceDescription& description = opened->listed.description;
    if (description.desc.simulated != 0) names.push_back(description.name);
  }
  return names;
}

std::vector<MeasuredDevice> DeviceSet::measured() const {
  std::vector<MeasuredDevice> measured;
  for (const auto& opened : devices_) {
    if (opened->lost) continue;
    DeviceDescription description = opened->listed.description;
    const auto cap = options_.memory_caps.find(description.name);  // the device itself refuses what is beyond
    if (cap != options_.memory_caps.end())
      description.desc.memory_free = std::min<uint64_t>(description.desc.memory_free, cap->second);
    measured.push_back({description, &opened->device, cores_of(opened->listed.cores),
                        program_bytes_max(opened->listed.description), opened->uncompiled});
  }
  return measured;
}

void DeviceSet::mark_lost(std::string_view name, bool at_work) {
  const auto found = find(name);
  if (!found) return;
  devices_[*found]->lost = true;
  if (at_work) devices_[*found]->at_work = true;
  if (WorkerProcess* worker = devices_[*found]->device.worker()) worker->kill();
}

std::vector<std::string> DeviceSet::mark_failed() {
  std::vector<std::string> failed;
  for (const auto& opened : devices_) {
    if (opened->lost) continue;
    const auto stats = opened->device.stats();  // of a worker that is gone: answered here, lost
    if (stats.ok() && stats->lost == 0) continue;
    failed.push_back(opened->listed.description.name);
    mark_lost(failed.back());
  }
  return failed;
}

std::vector<DeviceWorker> DeviceSet::workers() const {
  std::vector<DeviceWorker> workers;
  for (const auto& opened : devices_) {
    const WorkerProcess* worker = opened->device.worker();
    if (worker != nullptr && !opened->lost) workers.push_back({opened->listed.description.name, worker->pid()});
  }
  return workers;
}

bool DeviceSet::has_worker(std::string_view name) const {
  const auto found = find(name);
  return found && devices_[*found]->device.worker() != nullptr;
}

}  // namespace motley
