#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <thread>

#include "sim/queue.hpp"

namespace motley::sim {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// Which simulated devices of this process share a memory bus. Thread-safe.
class Buses {
 public:
  void join(const Device* device) {
    std::lock_guard lock(mutex_);
    open_[device->spec.memory_group].push_back(device);
  }
  void leave(const Device* device) {
    std::lock_guard lock(mutex_);
    std::erase(open_[device->spec.memory_group], device);
  }
  template <typename Uses>
  int64_t others(const Device* device, Uses uses) {
    std::lock_guard lock(mutex_);
    const auto& group = open_[device->spec.memory_group];
    return std::count_if(group.begin(), group.end(), [&](const Device* d) { return d != device && uses(*d); });
  }

 private:
  std::mutex mutex_;
  std::map<uint32_t, std::vector<const Device*>> open_;
};

Buses& buses() {
  static Buses all;
  return all;
}

uint64_t cap_of(const Spec& spec, const motley_open_options& options) {
  return options.memory_cap ? std::min(options.memory_cap, spec.memory_bytes) : spec.memory_bytes;
}

int64_t death_by_time(const Spec& spec, int64_t zero_ns) {
  int64_t death_ns = kNever;
  for (const Fault& fault : spec.faults)
    if (fault.what == Fault::kDeath && fault.at_ns >= 0) death_ns = std::min(death_ns, zero_ns + fault.at_ns);
  return death_ns;
}

}  // namespace

Device::Device(const Spec& spec_in, const motley_open_options& options)
    : spec(spec_in),
      clock{options.virtual_now, options.virtual_user},
      rates(spec_in.rates),
      budget(cap_of(spec_in, options)),
      residents(spec_in.rules.programs_resident),
      zero_ns_(clock.is_virtual() ? 0 : kit::monotonic_ns()),
      death_ns_(death_by_time(spec, zero_ns_)),
      met_(spec_in.faults.size()) {
  if (options.variant)
    kit::fail(MOTLEY_NOT_FOUND, "a simulated device has no kernel variants, and none named \"%s\"", options.variant);
  motley_open_options inner_options{};
  inner_options.struct_size = sizeof inner_options;
  inner_options.threads = 1;
  inner_options.cores = options.cores, inner_options.deterministic = options.deterministic;
  inner_options.log = options.log, inner_options.log_user = options.log_user;
  motley_device* raw = nullptr;
  call([&](motley_error* error) { return inner().open(0, &inner_options, &raw, error); });
  inner_device = {raw, inner().close};
  if (spec.core_share > 0 && !clock.is_virtual()) {
    const Rates& core = measured_core();
    for (size_t c = 0; c < kWorkClassCount; ++c) rates.gflops[c] = core.gflops[c] * spec.core_share;
    rates.half_rows = core.half_rows;
    rates.bandwidth_gb_s = core.bandwidth_gb_s * spec.core_share;
  }
  if (spec.memory_group) buses().join(this);
}

Device::~Device() {
  if (spec.memory_group) buses().leave(this);
}

void Device::require_alive() {
  if (lost()) kit::fail(MOTLEY_UNAVAILABLE, "the simulated device is lost (a fault of its description)");
}

bool Device::lost() {
  if (!clock.is_virtual() && kit::monotonic_ns() >= death_ns_) lose();
  return lost_;
}

void Device::lose() {
  if (lost_.exchange(true)) return;
  std::lock_guard lock(waking_);
  for (Queue* queue : queues_) queue->wake();
}

void Device::add_queue(Queue* queue) {
  std::lock_guard lock(waking_);
  queues_.push_back(queue);
  ++queues_open_;
}

void Device::remove_queue(Queue* queue) {
  std::lock_guard lock(waking_);
  std::erase(queues_, queue);
  --queues_open_;
}

Verdict Device::judge_program(int64_t at_ns) {
  std::lock_guard lock(faults_);
  ++enqueued_;
  Verdict verdict;
  verdict.dies = at_ns >= death_ns_;
  for (size_t i = 0; i < spec.faults.size(); ++i) {
    const Fault& fault = spec.faults[i];
    const bool now = fault.at_program ? enqueued_ == fault.at_program : at_ns - zero_ns_ >= fault.at_ns;
    if (!now || met_[i] || fault.what == Fault::kCompile || fault.what == Fault::kPack || fault.what == Fault::kFormat)
      continue;
    met_[i] = true;
    if (fault.what == Fault::kMemory) budget.set_cap(std::max<uint64_t>(fault.left_bytes, 1));
    if (fault.what == Fault::kDeath) verdict.dies = true;
    if (fault.what == Fault::kStall && fault.for_ns) verdict.delay_ns += fault.for_ns;
    if (fault.what == Fault::kStall && !fault.for_ns) verdict.hangs = hung = true;
    if (fault.what == Fault::kSlow) slow_.push_back({fault.for_ns ? at_ns + fault.for_ns : kNever, fault.factor});
  }
  if (verdict.dies) lose();
  verdict.starves = budget.used() > budget.cap();
  std::erase_if(slow_, [&](const Slow& s) { return s.until_ns <= at_ns; });
  for (const Slow& s : slow_) verdict.factor *= s.factor;
  return verdict;
}

int64_t Device::compile(double seconds, std::span<const uint32_t> buckets) {
  for (const Fault& fault : spec.faults) {
    if (fault.what != Fault::kCompile) continue;
    const bool meant = fault.rows == 0 || std::find(buckets.begin(), buckets.end(), fault.rows) != buckets.end();
    if (meant)
      kit::fail(MOTLEY_INTERNAL, "the compiler fails on the bucket of %u rows (a fault of the device's description)",
                fault.rows ? fault.rows : buckets.front());
  }
  if (seconds <= 0) return 0;
  const std::lock_guard lock(compiling_);  // one at a time
  const int64_t duration_ns = std::llround(seconds * 1e9);
  compile_ns += static_cast<uint64_t>(duration_ns);
  if (!clock.is_virtual()) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds * spec.rules.compile_wall));
    return 0;
  }
  const int64_t now_ns = clock.now();
  return compiler_.take(now_ns, duration_ns) + duration_ns;
}

void Device::take_workspace(uint64_t bytes) {
  const std::lock_guard lock(workspace_);
  const uint64_t pages = kit::page_up(bytes);
  if (pages <= workspace_bytes_) return;
  workspace_shares_.emplace_back(budget, pages - workspace_bytes_, "workspace");
  workspace_bytes_ = pages;
}

void Device::packing() {
  require_alive();
  if (clock.is_virtual()) return;
  const int64_t now_ns = kit::monotonic_ns();
  int64_t until_ns = now_ns;
  {
    std::lock_guard lock(faults_);
    for (size_t i = 0; i < spec.faults.size(); ++i) {
      const Fault& fault = spec.faults[i];
      if (fault.what != Fault::kPack || met_[i] || now_ns - zero_ns_ < fault.at_ns) continue;
      met_[i] = true;
      until_ns = fault.for_ns ? std::max(until_ns, now_ns + fault.for_ns) : kNever;
    }
  }
  while (kit::monotonic_ns() < until_ns) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    require_alive();
  }
}

bool Residents::load(uint64_t program) {
  if (most_ == 0) return false;
  const std::lock_guard lock(mutex_);
  const auto found = std::find(there_.begin(), there_.end(), program);
  const bool absent = found == there_.end();
  if (!absent) there_.erase(found);
  there_.push_back(program);
  if (there_.size() > most_) there_.erase(there_.begin());
  return absent;
}

void Residents::forget(uint64_t first, size_t count) {
  const std::lock_guard lock(mutex_);
  std::erase_if(there_, [&](uint64_t program) { return program >= first && program < first + count; });
}

double Device::bandwidth_share() const {
  if (spec.memory_group == 0) return 1;
  const auto others = static_cast<double>(buses().others(
      this, [this](const Device& other) { return clock.is_virtual() ? other.queues_open_ > 0 : other.running > 0; }));
  return 1 / (1 + spec.contention * others);
}

namespace {

std::vector<double> kept_of(const std::vector<WeightFacts>& weights) {
  std::vector<double> kept;
  for (const WeightFacts& weight : weights) kept.push_back(weight.kept);
  return kept;
}

}  // namespace

Programs::Programs(Device* owner, Owned<motley_programs> inner_in, kit::CheckedSegment segment_in,
                   const std::vector<WeightFacts>& weights, std::vector<uint32_t> buckets_in)
    : device(owner),
      inner(std::move(inner_in)),
      segment(std::move(segment_in)),
      cost(segment.plan, weights),
      arithmetic(segment.plan, kept_of(weights)),
      buckets(std::move(buckets_in)),
      written(segment.plan.values.size()),
      first_name(owner->residents.names(buckets.size())) {
  for (size_t i = 0; i < buckets.size(); ++i) (void)owner->residents.load(name(i));
  for (const int32_t id : segment.outputs) written[static_cast<size_t>(id)] = true;
  for (const kit::PlanOp& op : segment.plan.ops)
    for (size_t i = 0; i < op.in.size(); ++i)
      if (op.writes_in >> i & 1) written[static_cast<size_t>(op.in[i])] = true;
}

bool Programs::has_head_rows() const {
  return std::any_of(segment.plan.values.begin(), segment.plan.values.end(),
                     [](const kit::PlanValue& value) { return value.rows == MOTLEY_DIM_HEAD_ROWS; });
}

bool Programs::overwrites(int32_t value) const {
  return writes(value) && std::find(segment.inputs.begin(), segment.inputs.end(), value) == segment.inputs.end();
}

}  // namespace motley::sim
