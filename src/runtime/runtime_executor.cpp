#include "runtime/runtime_executor.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "base/affinity.hpp"
#include "base/log.hpp"
#include "device/worker/worker_process.hpp"
#include "runtime/segment.hpp"
#include "runtime/step_check.hpp"

namespace motley {
namespace {

constexpr std::chrono::milliseconds kLookEvery{100};
constexpr int64_t kGraceNs = 100'000'000;  // a driver that is not stuck says first that its device is late
constexpr size_t kWaysWithPartners = 2;

const NamedDevice* find_device(std::span<const NamedDevice> devices, const std::string& name) {
  const auto found = std::find_if(devices.begin(), devices.end(), [&](const auto& d) { return d.name == name; });
  return found == devices.end() ? nullptr : &*found;
}

// Each device of the lane has some, and no two the same one.
bool have_own_cores(const std::vector<LanePart>& parts, std::span<const NamedDevice> devices) {
  std::vector<std::span<const int>> cores;
  for (const NamedDevice& device : devices) {
    if (std::any_of(parts.begin(), parts.end(), [&](const LanePart& part) { return part.device == device.name; }))
      cores.push_back(device.cores);
  }
  return distinct_cores(cores);
}

}  // namespace

Result<uint64_t> step_bytes(const Model& model, const Device& device, const RuntimeOptions& options) {
  const uint64_t rows = options.rows_max, logit_rows = options.logit_rows_max;
  const std::array<uint32_t, 1> buckets = {options.rows_max};
  uint64_t workspace = 0;  // of one segment after another
  for (const motley_cut cut : {MOTLEY_CUT_EMBED, MOTLEY_CUT_STAGE, MOTLEY_CUT_HEAD, MOTLEY_CUT_SAMPLE}) {
    const Segment segment = Segment::cut(model.graph(), cut, 0, static_cast<int32_t>(model.config().layers));
    ASSIGN_OR_RETURN(const uint64_t bytes, device.query(segment.view(), buckets));
    workspace = std::max(workspace, bytes);
  }
  return workspace + sizeof(float) * (rows * model.config().hidden + logit_rows * model.config().vocab_size);
}

Result<std::unique_ptr<RuntimeExecutor>> RuntimeExecutor::create(const Model& model, const Placement& placement,
                                                                 std::span<const NamedDevice> devices,
                                                                 const RuntimeOptions& options, const Clock& clock) {
  if (placement.lanes.size() != 1)
    return error(MOTLEY_UNIMPLEMENTED, "placements of {} lanes are not built yet", placement.lanes.size());
  std::unique_ptr<RuntimeExecutor> runtime(new RuntimeExecutor(options, clock));
  runtime->describe(model, placement, devices);
  RETURN_IF_ERROR(runtime->make_drivers(model, placement, devices));
  runtime->start();
  return runtime;
}

// A pipeline keeps as many steps under way as its lane says, else as it has stages, of sequences that differ; one stage
// runs the same sequence's next step behind this one, because the token it needs is there by then. Where somebody
// attends for another, two steps of sequences that differ run side by side, so that both have work.
void RuntimeExecutor::describe(const Model& model, const Placement& placement, std::span<const NamedDevice> devices) {
  const ModelConfig& config = model.config();
  const Lane& from = placement.lanes[0];
  const auto stages = static_cast<uint32_t>(from.stages.size());
  const std::vector<LanePart> parts = lane_parts(from);
  const auto attends = [](const LanePart& part) { return part.role == ShardRole::kAttention; };
  ways_.resize(std::any_of(parts.begin(), parts.end(), attends) ? kWaysWithPartners : 1);
  description_.epoch = placement.epoch;
  description_.vocab_size = config.vocab_size;
  description_.positions_max = options_.positions_max == 0 ? config.context_length : options_.positions_max;
  description_.slots = kSlots;
  const auto ways = static_cast<uint32_t>(ways_.size());
  description_.pools.push_back({placement.block_size, from.kv_blocks});
  LaneDescription lane;
  lane.lookahead = stages == 1 && ways == 1 ? 1 : 0;
  lane.pipeline = stages == 1 || from.micro_batches == 0 ? stages * ways : from.micro_batches;
  lane.rows_max = options_.rows_max;
  for (const LanePart& part : parts) {
    const NamedDevice* device = find_device(devices, part.device);
    if (device != nullptr && !device->any_rows) lane.buckets = row_buckets(options_.rows_max);
  }
  description_.lanes.push_back(lane);
}

Result<std::shared_ptr<const DevicePart>> RuntimeExecutor::make_part(const Model& model, const Placement& placement,
                                                                     const LanePart& part,
                                                                     const NamedDevice& device) const {
  PartOptions options;
  options.buckets = device.any_rows ? std::vector<uint32_t>{options_.rows_max} : row_buckets(options_.rows_max);
  options.kv_blocks = placement.lanes[0].kv_blocks;
  options.block_size = placement.block_size;
  options.kv_dtype = placement.kv_dtype;
  ASSIGN_OR_RETURN(ShardGraph graph, shard_graph(model, placement.lanes[0], part.stage, part.shard, part.role));
  auto made = DevicePart::create(model, *device.device, std::move(graph), std::move(options));
  if (!made.ok()) return made.error().annotate(device.name);
  return made;
}

DriverOptions RuntimeExecutor::driver_options(const NamedDevice& device) const {
  DriverOptions options;
  options.name = device.name;
  options.cores = device.cores;
  options.logit_rows_max = options_.logit_rows_max;
  options.slots = kSlots;
  options.steps_ahead = description_.lanes[0].lookahead;
  options.virtual_time = options_.virtual_time;
  options.simulated = device.simulated;
  options.trace = options_.trace;
  return options;
}

// The parts once; links and drivers for each way.
Status RuntimeExecutor::make_drivers(const Model& model, const Placement& placement,
                                     std::span<const NamedDevice> devices) {
  const Lane& lane = placement.lanes[0];
  const std::vector<LanePart> parts = lane_parts(lane);
  std::vector<std::shared_ptr<const DevicePart>> made;
  for (const LanePart& part : parts) {
    const NamedDevice* device = find_device(devices, part.device);
    if (device == nullptr) return invalid_argument("the plan names device {}, which is not opened", part.device);
    ASSIGN_OR_RETURN(made.emplace_back(), make_part(model, placement, part, *device));
  }
  const bool own_cores = ways_.size() == 1 && have_own_cores(parts, devices);
  for (auto& way : ways_) {
    ASSIGN_OR_RETURN(std::vector<DriverLinks> links,
                     make_lane_links(lane, model.config(), options_.virtual_link, own_cores));
    for (size_t i = 0; i < parts.size(); ++i) {
      const NamedDevice& device = *find_device(devices, parts[i].device);
      auto driver = Driver::create(made[i], std::move(links[i]), driver_options(device), clock_);
      if (!driver.ok()) return driver.error().annotate(device.name);
      way.push_back(*std::move(driver));
    }
  }
  return ok_status();
}

void RuntimeExecutor::start() {
  each_driver([this](Driver& driver) {
    driver.start({.finished = [this](Flight& flight) { finished(flight); },
                  .lost = [this, raw = &driver](const Status& why) { lost(*raw, why); },
                  .broken = [this](const Status& why) { broken(why); },
                  .health = [this] { return health(); }});
  });
  if (options_.step_limit_ns) watch_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
}

Status RuntimeExecutor::health() const {
  std::lock_guard lock(mutex_);
  return lost_;
}

std::vector<LostDevice> RuntimeExecutor::lost_devices() const {
  std::lock_guard lock(mutex_);
  return lost_devices_;
}

std::vector<DriverReport> RuntimeExecutor::reports() const {
  std::vector<DriverReport> reports;
  for (const auto& way : ways_) {
    for (const auto& driver : way) {
      const auto known = std::find_if(reports.begin(), reports.end(),
                                      [&](const DriverReport& report) { return report.device == driver->name(); });
      DriverReport& report = known == reports.end() ? reports.emplace_back() : *known;
      report.device = driver->name();
      report.work += driver->work();
      if (&way == &ways_[0]) report.weight_bytes += driver->part().weight_bytes();
    }
  }
  return reports;
}

Status RuntimeExecutor::admit(const StepPlan& plan) {
  {
    std::lock_guard lock(mutex_);
    if (!lost_.ok()) return lost_;
    if (under_way_ >= description_.lanes[0].lookahead + description_.lanes[0].pipeline)
      return invalid_argument("{} steps are under way already", under_way_);
  }
  return check_step(plan, description_, {description_.lanes[0].rows_max, options_.logit_rows_max});
}

Future<StepResult> RuntimeExecutor::submit(StepPlan plan) {
  double reads = 0;
  for (const PlanSequence& sequence : plan.sequences)
    reads += static_cast<double>(sequence.row_count) * sequence.context;
  const auto rows = static_cast<double>(plan.tokens.size());
  auto flight = std::make_shared<Flight>(std::move(plan));
  Future<StepResult> future = flight->promise.future();
  flight->submitted_ns = clock_.now_ns();
  const Status admitted = admit(flight->plan);
  if (admitted.ok()) {
    flight->prepare(description_.pools[0].block_size, kSlots);
  } else {
    flight->fail(admitted);
    flight->refused = true;
  }
  if (options_.step_limit_ns) {
    flight->submitted_at_ns = system_clock().now_ns();
    flight->limit_ns = options_.step_limit_ns(rows, reads);
    longest_limit_ns_ = std::max(longest_limit_ns_, flight->limit_ns);
    const auto drivers = static_cast<int64_t>(ways_.size() * ways_[0].size());
    const int64_t parts = drivers * (description_.lanes[0].lookahead + description_.lanes[0].pipeline);
    flight->patience_ns = (parts + 1) * longest_limit_ns_;
  }
  const auto& way = ways_[std::exchange(next_way_, (next_way_ + 1) % ways_.size())];
  flight->drivers = static_cast<uint32_t>(way.size());
  {
    std::lock_guard lock(mutex_);
    ++under_way_;
    flights_.push_back(flight);
  }
  begun_.notify_one();
  for (const auto& driver : way) driver->push(flight);
  return future;
}

// On the thread of the driver that ends the step last. Steps on other ways may have been overtaken: who hands in does
// so for all whose turn it is.
void RuntimeExecutor::finished(Flight& flight) {
  std::unique_lock lock(mutex_);
  flight.ended = true;
  if (std::exchange(handing_in_, true)) return;
  while (!flights_.empty() && flights_.front()->ended) {
    const std::shared_ptr<Flight> next = std::move(flights_.front());
    flights_.pop_front();
    lock.unlock();
    hand_in(*next);
    lock.lock();
  }
  handing_in_ = false;
}

void RuntimeExecutor::hand_in(Flight& flight) {
  StepResult result;
  result.epoch = flight.plan.epoch;
  result.step = flight.plan.step;
  result.status = flight.status();
  {
    std::lock_guard lock(mutex_);
    const int64_t now_ns = flight.ended_ns.load();
    result.busy_ns = now_ns - std::max(flight.submitted_ns, last_finished_ns_);
    last_finished_ns_ = now_ns;
    --under_way_;
    if (!lost_.ok() && !result.status.ok()) result.status = lost_;
  }
  if (result.status.ok()) result.tokens = std::move(flight.tokens);
  flight.promise.set(std::move(result));
}

void RuntimeExecutor::lost(const Driver& driver, const Status& why) {
  {
    std::lock_guard lock(mutex_);
    for (const LostDevice& known : lost_devices_) {
      if (known.name == driver.name()) return;
    }
    if (lost_.ok()) lost_ = error(MOTLEY_UNAVAILABLE, "device {} is lost: {}", driver.name(), why.message());
    lost_devices_.push_back({driver.name(), why.code() == MOTLEY_DEADLINE_EXCEEDED});
  }
  abort_meetings();
  if (WorkerProcess* worker = driver.device().worker()) worker->kill();
}

// The lane is of no use any more, and no device is to blame: each keeps its own limits.
void RuntimeExecutor::broken(const Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (!lost_.ok()) return;  // the meeting ended because a device is lost
    lost_ = error(MOTLEY_UNAVAILABLE, "the devices cannot meet: {}", why.message());
  }
  abort_meetings();
}

void RuntimeExecutor::abort_meetings() {
  each_driver([why = health()](Driver& driver) { driver.abort(why); });
}

// A driver sees for itself what its device does not finish, unless it is inside a call that does not come back.
void RuntimeExecutor::watch(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (begun_.wait(lock, stop, [this] { return under_way_ > 0; }) && !stop.stop_requested()) {
    begun_.wait_for(lock, stop, kLookEvery, [] { return false; });
    lock.unlock();
    const int64_t late_ns = system_clock().now_ns() - kGraceNs;
    each_driver([&](Driver& driver) {
      if (driver.due_ns() > late_ns) return;
      lost(driver, error(MOTLEY_DEADLINE_EXCEEDED, "it did not come back from a call in time"));
    });
    lock.lock();
  }
}

RuntimeExecutor::~RuntimeExecutor() {
  each_driver([](Driver& driver) { driver.stop(); });
}

}  // namespace motley
