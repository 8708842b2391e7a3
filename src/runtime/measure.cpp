#include "runtime/measure.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "comm/communicator.hpp"
#include "device/virtual_time.hpp"
#include "model/axes.hpp"
#include "runtime/host_buffer.hpp"
#include "runtime/probe.hpp"

namespace motley {
namespace {

constexpr int kSamples = 5;      // of which the median counts
constexpr int kSlowSamples = 3;  // where one takes longer than kSlowNs
constexpr double kSlowNs = 4e6;
constexpr uint32_t kHeadRowsMax = 32;  // logits are asked for a row a sequence; beyond, time grows with the rows
constexpr double kSampleNs = 300'000;  // a sample has as many runs as this takes, at most kRunsMax
constexpr uint32_t kRunsMax = 8;       // fewer where the queue is shallower
constexpr uint32_t kContext = 1024;    // positions at which the reading of KV is measured
constexpr uint32_t kContextRows = 4;
constexpr int64_t kColumnGrain = 64;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<uint32_t> row_points(uint32_t rows_max) {
  std::vector<uint32_t> rows;
  for (uint32_t r = 1; r < rows_max; r *= 2) rows.push_back(r);
  rows.push_back(rows_max);
  return rows;
}

// A few numbers of units from small to all.
std::vector<int64_t> unit_points(int64_t units, int64_t grain) {
  std::vector<int64_t> points;
  for (const int64_t part : {units / 4, units / 2, units}) {
    const int64_t rounded = part == units ? units : part / grain * grain;
    if (rounded > 0 && (points.empty() || points.back() < rounded)) points.push_back(rounded);
  }
  return points;
}

class DeviceMeasurer {
 public:
  DeviceMeasurer(const Model& model, const MeasuredDevice& device, const MeasureOptions& options)
      : model_(model),
        axes_(axes_of(model)),
        device_(device),
        options_(options),
        depth_(std::max(1u, device.description.desc.queue_depth)) {}

  Result<DeviceProfile> run();
  // Nanoseconds of one run of the part, the median of several.
  Result<double> time_ns(Probe& probe, motley_cut cut, uint32_t rows, uint32_t context);
  Result<std::unique_ptr<Probe>> probe(const ProbeShare& share) const {
    return Probe::create(model_, *device_.device, share, options_.rows_max, static_cast<int32_t>(options_.kv_dtype),
                         options_.virtual_time);
  }
  const ModelAxes& axes() const { return axes_; }

 private:
  struct Part {
    motley_cut cut;
    CostTable* table;
    uint32_t rows_max;
    std::vector<int64_t> units;
    std::function<ProbeShare(int64_t)> share;
  };
  Status measure(const Part& part);
  Status measure_context(DeviceProfile* profile);
  Status measure_sampling(DeviceProfile* profile);

  const Model& model_;
  const ModelAxes axes_;
  const MeasuredDevice& device_;
  const MeasureOptions& options_;
  const uint32_t depth_;
  double source_bytes_ = 0, packed_bytes_ = 0;
};

Result<double> DeviceMeasurer::time_ns(Probe& probe, motley_cut cut, uint32_t rows, uint32_t context) {
  ASSIGN_OR_RETURN(const double first, probe.time_ns(cut, rows, context, 1));  // also warms up
  const double wanted = std::clamp(kSampleNs / std::max(first, 1.0), 1.0, double{kRunsMax});
  const uint32_t runs = std::min(static_cast<uint32_t>(wanted), depth_);
  std::vector<double> samples;
  const int count = first > kSlowNs ? kSlowSamples : kSamples;
  for (int i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const double ns, probe.time_ns(cut, rows, context, runs));
    samples.push_back(ns);
    if (options_.pace) RETURN_IF_ERROR(options_.pace(ns * runs));
  }
  return median(std::move(samples));
}

Status DeviceMeasurer::measure(const Part& part) {
  if (part.units.empty()) return ok_status();  // the model has none
  CostTable& table = *part.table;
  const std::vector<uint32_t> rows = row_points(std::min(part.rows_max, options_.rows_max));
  table.rows.assign(rows.begin(), rows.end());
  table.units = part.units;
  for (const int64_t units : part.units) {
    ASSIGN_OR_RETURN(const auto made, probe(part.share(units)));
    std::vector<double>& line = table.ns.emplace_back();
    for (const uint32_t r : rows) {
      ASSIGN_OR_RETURN(const double ns, time_ns(*made, part.cut, r, 1));
      line.push_back(ns);
    }
    if (units == part.units.back()) {
      packed_bytes_ += static_cast<double>(made->weight_bytes());
      source_bytes_ += static_cast<double>(made->source_bytes());
    }
  }
  table.make_monotone();
  return ok_status();
}

Status DeviceMeasurer::measure_context(DeviceProfile* profile) {
  ASSIGN_OR_RETURN(const auto made, probe({.kv_heads = axes_.kv_heads}));
  ASSIGN_OR_RETURN(const double near, time_ns(*made, MOTLEY_CUT_ATTN_PART, kContextRows, 1));
  ASSIGN_OR_RETURN(const double far, time_ns(*made, MOTLEY_CUT_ATTN_PART, kContextRows, kContext));
  const double reads = double{kContextRows} * kContext * static_cast<double>(axes_.kv_heads);
  profile->context_ns = std::max(0.0, far - near) / reads;
  return ok_status();
}

Status DeviceMeasurer::measure_sampling(DeviceProfile* profile) {
  ASSIGN_OR_RETURN(const auto made, probe({.layer = false, .vocab_rows = axes_.vocab}));
  if (!made->has(MOTLEY_CUT_SAMPLE)) return ok_status();
  ASSIGN_OR_RETURN(const double ns, time_ns(*made, MOTLEY_CUT_SAMPLE, 1, 1));
  profile->sample_ns = static_cast<int64_t>(ns);
  return ok_status();
}

Result<DeviceProfile> DeviceMeasurer::run() {
  const motley_device_desc& desc = device_.description.desc;
  DeviceProfile profile;
  profile.name = device_.description.name;
  profile.kind = kind_name(desc.kind);
  if (desc.memory_group != 0) profile.memory_group = fmt::format("memory {}", desc.memory_group);
  profile.memory_total = desc.memory_total;
  profile.memory_free = desc.memory_free;
  const auto heads = [](int64_t n) { return ProbeShare{.kv_heads = n}; };
  const auto columns = [](int64_t n) { return ProbeShare{.ffn_columns = n}; };
  const auto experts = [](int64_t n) { return ProbeShare{.experts = n}; };
  const auto rows = [](int64_t n) { return ProbeShare{.layer = false, .vocab_rows = n}; };
  const std::vector<Part> parts = {
      {MOTLEY_CUT_ATTN_PART, &profile.attention, options_.rows_max, unit_points(axes_.kv_heads, 1), heads},
      {MOTLEY_CUT_FFN_PART, &profile.ffn, options_.rows_max, unit_points(axes_.ffn_columns, kColumnGrain), columns},
      {MOTLEY_CUT_FFN_PART, &profile.experts, options_.rows_max, unit_points(axes_.experts, 1), experts},
      {MOTLEY_CUT_HEAD, &profile.head, kHeadRowsMax, unit_points(axes_.vocab, 1), rows},
      {MOTLEY_CUT_EMBED, &profile.embed, options_.rows_max, {axes_.vocab}, rows}};
  for (const Part& part : parts) RETURN_IF_ERROR(measure(part));
  RETURN_IF_ERROR(measure_context(&profile));
  RETURN_IF_ERROR(measure_sampling(&profile));
  if (source_bytes_ > 0) profile.packed_ratio = packed_bytes_ / source_bytes_;
  return profile;
}

}  // namespace

Result<DeviceProfile> measure_device(const Model& model, const MeasuredDevice& device, const MeasureOptions& options) {
  auto profile = DeviceMeasurer(model, device, options).run();
  if (!profile.ok()) return profile.error().annotate(device.description.name);
  return profile;
}

Status measure_together(const Model& model, std::span<const MeasuredDevice> devices, const MeasureOptions& options,
                        std::span<DeviceProfile> profiles) {
  if (devices.size() < 2 || options.virtual_time) return ok_status();
  std::vector<std::unique_ptr<DeviceMeasurer>> measurers;
  std::vector<std::unique_ptr<Probe>> probes;
  for (const MeasuredDevice& device : devices) {
    measurers.push_back(std::make_unique<DeviceMeasurer>(model, device, options));
    const ModelAxes& axes = measurers.back()->axes();
    ASSIGN_OR_RETURN(
        auto probe,
        measurers.back()->probe({.kv_heads = axes.kv_heads, .ffn_columns = axes.ffn_columns, .experts = axes.experts}));
    probes.push_back(std::move(probe));
  }
  for (DeviceProfile& profile : profiles) profile.together = {};
  for (const uint32_t rows : row_points(options.rows_max)) {
    std::vector<double> alone(devices.size()), together(devices.size());
    std::vector<Status> failed(devices.size());
    for (size_t i = 0; i < devices.size(); ++i) {
      ASSIGN_OR_RETURN(alone[i], measurers[i]->time_ns(*probes[i], MOTLEY_CUT_FFN_PART, rows, 1));
    }
    std::vector<std::thread> threads;
    for (size_t i = 0; i < devices.size(); ++i) {
      threads.emplace_back([&, i] {
        const auto ns = measurers[i]->time_ns(*probes[i], MOTLEY_CUT_FFN_PART, rows, 1);
        failed[i] = ns.error();
        if (ns.ok()) together[i] = *ns;
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < devices.size(); ++i) {
      RETURN_IF_ERROR(failed[i]);
      profiles[i].together.rows.push_back(rows);
      profiles[i].together.factors.push_back(std::max(1.0, together[i] / std::max(alone[i], 1.0)));
    }
  }
  return ok_status();
}

namespace {

// One side of a link: does many times what a driver does between two programs. It waits for the smallest program there
// is, and sums with the other from and to its device's memory.
class LinkSide {
 public:
  static Result<LinkSide> create(const Model& model, const Device& device, uint64_t bytes_max, bool virtual_time) {
    ASSIGN_OR_RETURN(QueueHandle queue, device.create_queue());
    ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device, bytes_max));
    const ProbeShare share{.layer = false, .vocab_rows = 1};
    ASSIGN_OR_RETURN(auto probe, Probe::create(model, device, share, 1, MOTLEY_F32, virtual_time));
    return LinkSide(std::move(queue), std::move(buffer), std::move(probe), virtual_time);
  }
  void run(Communicator& communicator, size_t count, int rounds) {
    const VirtualTimeScope scope(&virtual_ns_);
    const int64_t began_ns = virtual_time_ ? virtual_ns_ : system_clock().now_ns();
    const uint64_t bytes = count * sizeof(float);
    const auto round = [&]() -> Status {
      RETURN_IF_ERROR(probe_->time_ns(MOTLEY_CUT_EMBED, 1, 1, 1).error());
      RETURN_IF_ERROR(buffer_.pull(queue_, bytes, UINT64_MAX, &virtual_ns_));
      CommCall call;
      if (virtual_time_) call.virtual_ns = &virtual_ns_;
      RETURN_IF_ERROR(communicator.all_reduce(buffer_.view<float>(count), true, call));
      return buffer_.push(queue_, bytes);
    };
    for (int i = 0; i < rounds && status_.ok(); ++i) status_ = round();
    if (!status_.ok()) communicator.abort(status_);
    ns_ = static_cast<double>((virtual_time_ ? virtual_ns_ : system_clock().now_ns()) - began_ns) / rounds;
  }
  const Status& status() const { return status_; }
  double ns() const { return ns_; }

 private:
  LinkSide(QueueHandle queue, HostBuffer buffer, std::unique_ptr<Probe> probe, bool virtual_time)
      : queue_(std::move(queue)), buffer_(std::move(buffer)), probe_(std::move(probe)), virtual_time_(virtual_time) {}
  QueueHandle queue_;
  HostBuffer buffer_;
  std::unique_ptr<Probe> probe_;
  bool virtual_time_;
  int64_t virtual_ns_ = 0;
  Status status_;
  double ns_ = 0;
};

}  // namespace

Result<LinkProfile> measure_link(const Model& model, const MeasuredDevice& a, const MeasuredDevice& b,
                                 const MeasureOptions& options) {
  constexpr uint32_t kRows = 256;
  const uint32_t hidden = model.config().hidden;
  const uint64_t bytes_max = uint64_t{kRows} * hidden * sizeof(float);
  ASSIGN_OR_RETURN(LinkSide left, LinkSide::create(model, *a.device, bytes_max, options.virtual_time));
  ASSIGN_OR_RETURN(LinkSide right, LinkSide::create(model, *b.device, bytes_max, options.virtual_time));
  const auto meet_ns = [&](uint32_t rows, int rounds) -> Result<double> {
    ASSIGN_OR_RETURN(CommGroup group, make_shared_memory_group({.size = 2, .message_bytes_max = 1u << 20}));
    std::thread other([&] { right.run(*group[1], size_t{rows} * hidden, rounds); });
    left.run(*group[0], size_t{rows} * hidden, rounds);
    other.join();
    RETURN_IF_ERROR(left.status());
    RETURN_IF_ERROR(right.status());
    return left.ns();
  };
  std::vector<double> small, large;
  for (int i = 0; i < kSamples; ++i) {
    ASSIGN_OR_RETURN(const double one, meet_ns(1, 50));
    ASSIGN_OR_RETURN(const double many, meet_ns(kRows, 10));
    small.push_back(one);
    large.push_back(many);
  }
  LinkProfile link{a.description.name, b.description.name, median(small), 0};
  const double bytes = double{kRows - 1} * hidden * sizeof(float);
  link.ns_per_byte = std::max(0.0, median(large) - link.latency_ns) / bytes;
  return link;
}

}  // namespace motley
