#include "runtime/runtime_executor.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "base/check.hpp"
#include "base/log.hpp"
#include "device/worker/worker_process.hpp"
#include "model/dtype.hpp"
#include "model/requantise.hpp"
#include "runtime/segment.hpp"
#include "runtime/step_check.hpp"

namespace motley {
namespace {

constexpr std::chrono::milliseconds kLookEvery{100};
constexpr int64_t kGraceNs = 100'000'000;  // a driver that is not stuck says first that its device is late

}  // namespace

Result<uint64_t> workspace_bytes(const Model& model, const Device& device, const RuntimeOptions& options) {
  const std::array<uint32_t, 1> buckets = {options.rows_max};
  uint64_t workspace = 0;  // of one segment after another
  for (const motley_cut cut : {MOTLEY_CUT_EMBED, MOTLEY_CUT_STAGE, MOTLEY_CUT_HEAD, MOTLEY_CUT_SAMPLE}) {
    const Segment segment = Segment::cut(model.graph(), cut, 0, static_cast<int32_t>(model.config().layers));
    ASSIGN_OR_RETURN(const QueryResult asked, device.query(segment.view(), buckets));
    workspace = std::max(workspace, asked.workspace_bytes);
  }
  return workspace;
}

namespace {

LaneRole role_of(const Lane& lane) {
  if (lane.prefills && lane.decodes) return LaneRole::kBoth;
  return lane.prefills ? LaneRole::kPrefill : LaneRole::kDecode;
}

// Who keeps which KV heads of which layers.
std::set<std::string> holders_of(const Lane& lane) {
  std::set<std::string> holders;
  for (const Stage& stage : lane.stages) {
    for (const Shard& shard : stage.shards) {
      for (const UnitRange& heads : shard.kv_heads)
        holders.insert(fmt::format("{} layers {}-{} heads {}-{}", shard.kv_owner(), stage.layer_begin, stage.layer_end,
                                   heads.begin, heads.end));
    }
  }
  return holders;
}

Status check_sections(const Lane& lane) {
  std::set<std::string> owners;
  for (const Stage& stage : lane.stages) {
    for (const Shard& shard : stage.shards)
      if (!shard.kv_heads.empty()) owners.insert(shard.kv_owner());
  }
  uint64_t blocks = lane.kv_blocks;
  for (const KvSection& section : lane.sections) blocks += section.blocks;
  if (blocks > INT32_MAX) return invalid_argument("a KV pool of {} blocks; {} at most", blocks, INT32_MAX);
  for (const KvSection& section : lane.sections) {
    if (section.blocks == 0) return invalid_argument("the section of {} has no blocks", section.owner);
    if (!owners.insert(section.owner).second)
      return invalid_argument("{} keeps two sections of one pool; make them one", section.owner);
  }
  return ok_status();
}

// Lanes of one pool are told apart by what they compute alone.
Status check_pools(const Placement& placement) {
  for (size_t i = 0; i < placement.lanes.size(); ++i) {
    const Lane& lane = placement.lanes[i];
    RETURN_IF_ERROR(check_sections(lane));
    if (!lane.prefills && !lane.decodes) return invalid_argument("lane {} neither prefills nor decodes", i);
    for (size_t j = 0; j < i; ++j) {
      const Lane& other = placement.lanes[j];
      if (other.pool != lane.pool) continue;
      if (other.kv_blocks != lane.kv_blocks || other.sections != lane.sections || holders_of(other) != holders_of(lane))
        return invalid_argument("lanes {} and {} share pool {}, but not its owners, heads and blocks", j, i, lane.pool);
    }
  }
  return ok_status();
}

}  // namespace

Result<std::unique_ptr<RuntimeExecutor>> RuntimeExecutor::create(const Model& model, const Placement& placement,
                                                                 std::span<const NamedDevice> devices,
                                                                 const RuntimeOptions& options, const Clock& clock) {
  if (placement.lanes.empty()) return invalid_argument("a placement without lanes");
  RETURN_IF_ERROR(check_pools(placement));
  std::unique_ptr<RuntimeExecutor> runtime(new RuntimeExecutor(model, options, clock));
  for (size_t lane = 0; lane < placement.lanes.size(); ++lane) {
    ASSIGN_OR_RETURN(runtime->lanes_.emplace_back(),
                     LaneRunner::create(model, placement, lane, devices, options, runtime->holdings_.get(), clock));
  }
  runtime->describe(model, placement);
  runtime->start();
  return runtime;
}

void RuntimeExecutor::describe(const Model& model, const Placement& placement) {
  const ModelConfig& config = model.config();
  description_.epoch = placement.epoch;
  description_.vocab_size = config.vocab_size;
  description_.positions_max = options_.positions_max == 0 ? config.context_length : options_.positions_max;
  description_.slots = kTokenSlots;
  std::map<uint32_t, uint32_t> pools;  // as the placement counts them, as the description does
  for (size_t i = 0; i < lanes_.size(); ++i) {
    const Lane& from = placement.lanes[i];
    const auto [pool, is_new] = pools.emplace(from.pool, static_cast<uint32_t>(description_.pools.size()));
    if (is_new) {
      std::set<std::pair<uint32_t, uint64_t>> memory;  // by section
      lanes_[i]->each_driver([&](const Driver& driver) {
        if (driver.part().kv_number() > 0) memory.emplace(driver.part().shard().section, driver.part().kv_number());
      });
      KvPoolDescription& made = description_.pools.emplace_back();
      made.block_size = placement.block_size;
      made.blocks = pool_blocks(from);
      made.share = from.share;
      for (uint32_t begin = from.kv_blocks; const KvSection& section : from.sections) {
        made.section_begins.push_back(begin);
        begin += section.blocks;
      }
      for (const auto& [section, number] : memory) made.memory.push_back(number);
    }
    LaneDescription lane;
    std::vector<uint32_t>& sections = sections_.emplace_back(1, from.kv_blocks);
    for (const KvSection& section : from.sections) sections.push_back(section.blocks);
    lane.pool = pool->second;
    lane.role = role_of(from);
    lane.chunk_rows = from.chunk_rows;
    lane.rows_max = lanes_[i]->rows_max();
    lane.buckets = lanes_[i]->buckets();
    lane.lookahead = lanes_[i]->lookahead();
    lane.pipeline = lanes_[i]->pipeline();
    description_.lanes.push_back(std::move(lane));
  }
  states_.resize(lanes_.size());
  make_mover();
}

// Of all pools, each owner's part once, though several lanes may use it.
void RuntimeExecutor::make_mover() {
  std::vector<KvMover::Owner> owners;
  std::set<uint64_t> known;
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i]->each_driver([&](const Driver& driver) {
      if (driver.part().kv() == nullptr || !known.insert(driver.part().kv_number()).second) return;
      owners.push_back({driver.name(), driver.hold_part(), description_.lanes[i].pool});
    });
  }
  DeviceTurnOptions turns;
  turns.virtual_time = options_.virtual_time;
  if (options_.step_limit_ns != nullptr) turns.limit_ns = options_.kv_limit_ns;
  turns.lost = [this](const DeviceTask& task, const Status& why) { lost(task.name, task.device->worker(), why); };
  mover_.emplace(std::move(owners), static_cast<uint32_t>(description_.pools.size()), std::move(turns),
                 options_.host_memory, clock_);
  description_.moves_kv = mover_->moves_kv();
}

Result<KvContents> RuntimeExecutor::save_kv(std::vector<KvBlock> blocks) {
  RETURN_IF_ERROR(health());
  return mover_->save(blocks);
}

Result<KvLoaded> RuntimeExecutor::load_kv(std::shared_ptr<const KvContents> contents, std::vector<KvMove> moves) {
  RETURN_IF_ERROR(health());
  return mover_->load(contents, std::move(moves));
}

void RuntimeExecutor::start() {
  Driver::Events events;
  events.lost = [this](const Driver& driver, const Status& why) { lost(driver.name(), driver.device().worker(), why); };
  events.broken = [this](const Status& why) { broken(why); };
  events.health = [this] { return health(); };
  for (const auto& lane : lanes_) lane->start(events, [this](Flight& flight) { hand_in(flight); });
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

std::vector<TotalsByDevice> RuntimeExecutor::totals() const {
  std::vector<TotalsByDevice> totals;
  for (const auto& lane : lanes_) totals.push_back(lane->totals());
  return totals;
}

namespace {

// Of a weight what a shard keeps, as the model has it.
double part_bytes(const WeightSource& source, const ShardWeight& weight) {
  const auto part = [](const std::vector<motley_range>& ranges, int64_t all) {
    int64_t kept = ranges.empty() ? all : 0;
    for (const motley_range& range : ranges) kept += range.end - range.begin;
    return static_cast<double>(kept) / static_cast<double>(std::max<int64_t>(all, 1));
  };
  return static_cast<double>(source.bytes) * part(weight.experts, source.experts) * part(weight.rows, source.rows) *
         part(weight.cols, source.cols);
}

}  // namespace

Result<std::vector<std::shared_ptr<const PackedWeight>>> RuntimeExecutor::pack(const Model& model,
                                                                               const Placement& placement,
                                                                               std::span<const NamedDevice> devices,
                                                                               const RuntimeOptions& options,
                                                                               const PackingLimit& limit) {
  CHECK(options.holdings != nullptr);
  std::vector<std::shared_ptr<const PackedWeight>> all;
  auto left = static_cast<double>(limit.bytes);
  for (const Lane& lane : placement.lanes) {
    for (const LanePart& part : lane_parts(lane)) {
      const NamedDevice* device = find_device(devices, part.device);
      if (device == nullptr) return invalid_argument("the plan names device {}, which is not opened", part.device);
      ASSIGN_OR_RETURN(const ShardGraph graph,
                       shard_graph(model, lane, part.stage, part.shard, part.role, part.section));
      const auto limited = limit.devices.find(part.device);
      for (const ShardWeight& weight : graph.weights) {
        if (options.stop.stop_requested()) return error(MOTLEY_CANCELLED, "nobody waits for the weights any more");
        if (limited != limit.devices.end() && options.holdings->find_weight(*device->device, weight) == nullptr) {
          const double bytes = limited->second * part_bytes(model.weight(weight.source), weight);
          if (bytes > left) continue;
          left -= bytes;
        }
        auto packed = options.holdings->weight(*device->device, weight);
        if (packed.ok()) {
          all.push_back(*std::move(packed));
        } else if (packed.error().code() != MOTLEY_RESOURCE_EXHAUSTED) {
          return packed.error().annotate(part.device);
        }
      }
    }
  }
  return all;
}

std::vector<DriverReport> RuntimeExecutor::reports() const {
  std::vector<DriverReport> reports;
  std::set<const PackedWeight*> counted;
  std::map<std::string, FormatError> errors;
  std::map<std::string, std::set<std::string>> formats;
  for (const auto& lane : lanes_) {
    lane->each_driver([&](const Driver& driver) {
      auto report = std::find_if(reports.begin(), reports.end(),
                                 [&](const DriverReport& each) { return each.device == driver.name(); });
      if (report == reports.end()) {
        reports.push_back({driver.name(), {}, 0, {}, 0});
        report = reports.end() - 1;
      }
      report->work += driver.work();
      for (const auto& weight : driver.part().weights()) {
        if (!counted.insert(weight.get()).second) continue;
        report->weight_bytes += weight->info.bytes;
        errors[driver.name()] += {weight->squares, weight->error_squares};
        const DtypeInfo* made = weight->squares > 0 ? find_dtype(weight->info.format) : nullptr;
        if (made != nullptr) formats[driver.name()].emplace(made->name);
      }
      report->weight_formats = fmt::format("{}", fmt::join(formats[driver.name()], ","));
      report->weight_error = errors[driver.name()].relative();
    });
  }
  return reports;
}

Status RuntimeExecutor::admit(const StepPlan& plan) {
  if (plan.lane >= lanes_.size()) return invalid_argument("lane {} out of range", plan.lane);
  {
    std::lock_guard lock(mutex_);
    if (!lost_.ok()) return lost_;
    const uint32_t under_way = states_[plan.lane].under_way;
    if (under_way >= lanes_[plan.lane]->lookahead() + lanes_[plan.lane]->pipeline())
      return invalid_argument("{} steps are under way already", under_way);
  }
  return check_step(plan, description_, {description_.lanes[plan.lane].rows_max, options_.logit_rows_max});
}

Future<StepResult> RuntimeExecutor::submit(StepPlan plan) {
  double reads = 0;
  for (const PlanSequence& sequence : plan.sequences)
    reads += static_cast<double>(sequence.row_count) * sequence.context;
  const auto rows = static_cast<double>(plan.tokens.size());
  const size_t lane = std::min<size_t>(plan.lane, lanes_.size() - 1);  // who runs it, refused or not
  auto flight = std::make_shared<Flight>(std::move(plan));
  Future<StepResult> future = flight->promise.future();
  flight->submitted_ns = clock_.now_ns();
  const Status admitted = admit(flight->plan);
  if (admitted.ok()) {
    flight->prepare(description_.pools[description_.lanes[lane].pool].block_size, kTokenSlots, sections_[lane]);
  } else {
    flight->fail(admitted);
    flight->refused = true;
  }
  if (options_.step_limit_ns) {
    flight->submitted_at_ns = system_clock().now_ns();
    flight->limit_ns = options_.step_limit_ns(rows, reads);
    longest_limit_ns_ = std::max(longest_limit_ns_, flight->limit_ns);
    size_t parts = 0;
    for (const auto& each : lanes_) parts += each->drivers() * (each->lookahead() + each->pipeline());
    flight->patience_ns = static_cast<int64_t>(parts + 1) * longest_limit_ns_;
  }
  {
    std::lock_guard lock(mutex_);
    ++states_[lane].under_way;
  }
  begun_.notify_one();
  lanes_[lane]->push(std::move(flight));
  return future;
}

void RuntimeExecutor::hand_in(Flight& flight) {
  StepResult result;
  result.epoch = flight.plan.epoch;
  result.step = flight.plan.step;
  result.status = flight.status();
  {
    std::lock_guard lock(mutex_);
    LaneState& state = states_[std::min<size_t>(flight.plan.lane, states_.size() - 1)];
    const int64_t now_ns = flight.ended_ns.load();
    result.busy_ns = now_ns - std::max(flight.submitted_ns, state.last_finished_ns);
    state.last_finished_ns = now_ns;
    --state.under_way;
    if (!lost_.ok() && (state.ended || !result.status.ok())) {
      result.status = lost_;
      state.ended = true;
    }
  }
  if (result.status.ok()) result.tokens = std::move(flight.tokens);
  flight.promise.set(std::move(result));
}

void RuntimeExecutor::lost(const std::string& device, WorkerProcess* worker, const Status& why) {
  {
    std::lock_guard lock(mutex_);
    for (const LostDevice& known : lost_devices_) {
      if (known.name == device) return;
    }
    if (lost_.ok()) lost_ = error(MOTLEY_UNAVAILABLE, "device {} is lost: {}", device, why.message());
    lost_devices_.push_back({device, why.code() == MOTLEY_DEADLINE_EXCEEDED});
  }
  abort_meetings();
  if (worker != nullptr) worker->kill();
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
  const Status why = health();
  for (const auto& lane : lanes_) lane->each_driver([&](Driver& driver) { driver.abort(why); });
}

// A driver sees for itself what its device does not finish, unless it is inside a call that does not come back.
void RuntimeExecutor::watch(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const auto under_way = [this] {
    return std::any_of(states_.begin(), states_.end(), [](const LaneState& state) { return state.under_way > 0; });
  };
  while (begun_.wait(lock, stop, under_way) && !stop.stop_requested()) {
    begun_.wait_for(lock, stop, kLookEvery, [] { return false; });
    lock.unlock();
    const int64_t late_ns = system_clock().now_ns() - kGraceNs;
    for (const auto& lane : lanes_) {
      lane->each_driver([&](const Driver& driver) {
        if (driver.due_ns() > late_ns) return;
        lost(driver.name(), driver.device().worker(),
             error(MOTLEY_DEADLINE_EXCEEDED, "it did not come back from a call in time"));
      });
    }
    lock.lock();
  }
}

RuntimeExecutor::~RuntimeExecutor() {
  for (const auto& lane : lanes_) lane->each_driver([](Driver& driver) { driver.stop(); });
}

}  // namespace motley
