// What it costs two devices to meet.
#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/affinity.hpp"
#include "base/clock.hpp"
#include "base/log.hpp"
#include "comm/communicator.hpp"
#include "model/axes.hpp"
#include "runtime/copy_side.hpp"
#include "runtime/measure.hpp"
#include "runtime/measured_layers.hpp"
#include "runtime/probe.hpp"

namespace motley {
namespace {

constexpr uint32_t kSumsOfLayer = 2;
constexpr uint32_t kLayersMax = 8;            // of a sample
constexpr double kSampleNs = 10'000'000;      // that it takes, or one layer
constexpr int64_t kEnoughNs = 1'000'000'000;  // of all samples, where the devices are slow

// Of a chunk, no more than steps will have: what they take of the devices' memory stays theirs.
uint32_t chunk_rows(const MeasureOptions& options) { return std::clamp(options.rows_max, 2u, kCopiedRows); }

// One side of a link: runs half of each layer as the driver of a split stage does, and after each part sums with the
// other, from and to its device's memory. Where that does not hold them, it has fewer layers, or sums alone.
class LinkSide {
 public:
  static Result<LinkSide> create(const Model& model, const MeasuredDevice& device, uint64_t bytes_max,
                                 const MeasureOptions& options) {
    const ModelAxes axes = axes_of(model);
    const auto half = [](int64_t units) { return (units + 1) / 2; };
    ProbeShare share{.layers = measured_layers(model, device.description.desc.memory_free),
                     .kv_heads = half(axes.kv_heads)};
    share.layers.count = std::min(share.layers.count, kLayersMax);
    share.ffn_columns = half(axes.ffn_columns), share.experts = half(axes.experts);
    share.kv_blocks = kCopiedRows / Probe::kBlockSize;
    const bool any_rows = (device.description.desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0;
    const uint32_t chunk = chunk_rows(options);
    ASSIGN_OR_RETURN(CopySide copies, CopySide::create(*device.device, bytes_max, options.virtual_time));
    ASSIGN_OR_RETURN(
        ProbeOptions probing,
        probe_options(model, *device.device, device.description,
                      {.rows_max = any_rows ? chunk : std::max({chunk, options.rows_max, options.step_rows_max}),
                       .compile_seconds_max = options.compile_seconds_max,
                       .program_bytes_max = device.program_bytes_max,
                       .without = rows_of(device.uncompiled),
                       .load = options.load},
                      options.kv_dtype, options.virtual_time));
    probing.uncompiled = device.uncompiled;
    const auto first = std::lower_bound(probing.buckets.begin(), probing.buckets.end(), chunk);
    if (first != probing.buckets.end()) probing.buckets.erase(std::next(first), probing.buckets.end());
    auto made = Probe::create(model, *device.device, share, probing);
    if (made.error().code() == MOTLEY_RESOURCE_EXHAUSTED && std::exchange(share.layers.count, 1) > 1)
      made = Probe::create(model, *device.device, share, probing);
    if (!made.ok() && made.error().code() != MOTLEY_RESOURCE_EXHAUSTED) return made.error();
    std::unique_ptr<Probe> probe = made.ok() ? *std::move(made) : nullptr;
    if (probing.attends && probe != nullptr)
      RETURN_IF_ERROR(through(options.gate, [&] { return probe->write_kv(chunk); }));
    LinkSide side(std::move(copies), std::move(probe));
    side.layers_ = share.layers.count;
    side.rows_max_ = std::min(chunk, probing.buckets.back());
    side.row_ = model.config().hidden;
    side.cores_ = device.cores;
    return side;
  }
  // On a thread that runs where the device's driver does; without a communicator, what a plan counts already.
  std::thread start(Communicator* communicator, uint32_t rows, uint32_t layers) {
    return std::thread([this, communicator, rows, layers] {
      run_on(cores_);
      run(communicator, rows, layers);
    });
  }
  uint32_t layers() const { return layers_; }
  uint32_t rows_max() const { return rows_max_; }
  const Status& status() const { return status_; }  // of the device
  const Status& met() const { return met_; }        // of the meetings
  double ns() const { return ns_; }                 // of all layers

 private:
  LinkSide(CopySide copies, std::unique_ptr<Probe> probe) : copies_(std::move(copies)), probe_(std::move(probe)) {}
  void run(Communicator* communicator, uint32_t rows, uint32_t layers) {
    const size_t count = rows * row_;
    met_ = status_ = ok_status();
    const auto meet = [&]() -> Status {
      RETURN_IF_ERROR(copies_.pull(count * sizeof(float)));
      if (communicator != nullptr) met_ = communicator->all_reduce(copies_.view(count), true, copies_.call());
      RETURN_IF_ERROR(met_);
      return copies_.push(count * sizeof(float));
    };
    // Before the clock starts, what was pushed last has arrived, and they come together.
    status_ = copies_.pull(count * sizeof(float));
    if (communicator != nullptr) met_ = communicator->all_reduce(copies_.view(count), true, copies_.call());
    const int64_t began_ns = copies_.now_ns();
    if (met_.ok() && status_.ok()) {
      const Status ended = with_parts(rows, layers, meet);
      if (met_.ok()) status_ = ended;
    }
    if (!status_.ok() && communicator != nullptr) communicator->abort(status_);
    ns_ = static_cast<double>(copies_.now_ns() - began_ns);
  }

  Status with_parts(uint32_t rows, uint32_t layers, const std::function<Status()>& meet) {
    if (!copies_.virtual_time() && probe_ != nullptr) {
      const ProbeLoad load{.rows = rows, .context = rows, .one_sequence = true, .prompt = rows > 1};
      return probe_->parts_ns(load, layers, meet).error();
    }
    // In virtual time the probe keeps a time of its own.
    for (uint32_t sum = 0; sum < kSumsOfLayer * layers; ++sum) RETURN_IF_ERROR(meet());
    return ok_status();
  }

  CopySide copies_;
  std::unique_ptr<Probe> probe_;  // null: of no layer
  uint32_t layers_ = 1, rows_max_ = 1;
  size_t row_ = 0;  // values
  std::vector<int> cores_;
  Status status_, met_;
  double ns_ = 0;
};

// What a sum adds to the two sides' parts, over each of some routes. With and without by turns: what disturbs the
// machine for a while disturbs both.
class Meetings {
 public:
  Meetings(LinkSide left, LinkSide right, std::span<const Route> routes, const GroupOptions& group, MeasureGate* gate)
      : left_(std::move(left)),
        right_(std::move(right)),
        group_(group),
        chunk_rows_(std::min(left_.rows_max(), right_.rows_max())),
        gate_(gate) {
    for (const Route route : routes) samples_.push_back({route, {}, {}});
  }

  // A route that fails is left out.
  Status sample() {
    ASSIGN_OR_RETURN(const Alone row, alone(1));
    ASSIGN_OR_RETURN(const Alone chunk, alone(chunk_rows_));
    for (size_t i = 0; i < samples_.size();) {
      Samples& of = samples_[i];
      Status status = time(of.route, 1, row, &of.row_ns);
      if (status.ok()) status = time(of.route, chunk_rows_, chunk, &of.chunk_ns);
      if (status.ok()) {
        ++i;
        continue;
      }
      if (!left_.status().ok() || !right_.status().ok() || samples_.size() == 1) return status;
      log_info("two devices do not meet over {}: {}", route_name(of.route), status.message());
      samples_.erase(samples_.begin() + static_cast<ptrdiff_t>(i));
    }
    return ok_status();
  }

  uint32_t chunk_rows() const { return chunk_rows_; }
  std::vector<RouteTimes> times() const {
    std::vector<RouteTimes> times;
    for (const Samples& of : samples_) {
      const double row = std::max(0.0, lower_median(of.row_ns)), chunk = std::max(0.0, lower_median(of.chunk_ns));
      times.push_back({of.route, row, chunk});
    }
    return times;
  }

 private:
  struct Samples {
    Route route;
    std::vector<double> row_ns, chunk_ns;  // may be below 0, by what disturbs the machine
  };
  struct Alone {
    uint32_t layers = 1;
    double ns = 0;  // of one
  };

  Status run(Communicator* left, Communicator* right, uint32_t rows, uint32_t layers) {
    return through(gate_, [&] { return side_by_side(left, right, rows, layers); });
  }
  Status side_by_side(Communicator* left, Communicator* right, uint32_t rows, uint32_t layers) {
    std::thread one = left_.start(left, rows, layers), other = right_.start(right, rows, layers);
    one.join();
    other.join();
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->status());
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->met());
    return ok_status();
  }
  double layer_ns(uint32_t layers) const { return std::max(left_.ns(), right_.ns()) / layers; }
  // Side by side, as they run with meetings between.
  Result<Alone> alone(uint32_t rows) {
    RETURN_IF_ERROR(run(nullptr, nullptr, rows, 1));  // also to have what it needs in the caches
    const auto most = std::min(left_.layers(), right_.layers());
    const auto layers =
        static_cast<uint32_t>(std::clamp(kSampleNs / std::max(layer_ns(1), 1.0), 1.0, static_cast<double>(most)));
    RETURN_IF_ERROR(run(nullptr, nullptr, rows, layers));
    return Alone{layers, layer_ns(layers)};
  }
  Status time(Route route, uint32_t rows, const Alone& alone, std::vector<double>* out) {
    ASSIGN_OR_RETURN(CommGroup group, make_group(route, group_));
    RETURN_IF_ERROR(run(group[0].get(), group[1].get(), rows, alone.layers));
    out->push_back((layer_ns(alone.layers) - alone.ns) / kSumsOfLayer);
    return ok_status();
  }

  LinkSide left_, right_;
  const GroupOptions group_;
  const uint32_t chunk_rows_;
  MeasureGate* const gate_;
  std::vector<Samples> samples_;
};

}  // namespace

const RouteTimes& cheapest(std::span<const RouteTimes> times) {
  return *std::min_element(times.begin(), times.end(), [](const RouteTimes& a, const RouteTimes& b) {
    const double a_ns = a.row_ns + a.chunk_ns, b_ns = b.row_ns + b.chunk_ns;
    return a_ns < b_ns || (a_ns == b_ns && a.route < b.route);
  });
}

namespace {

Result<LinkProfile> measure_once(const Model& model, const MeasuredDevice& a, const MeasuredDevice& b,
                                 const MeasureOptions& options) {
  const uint32_t hidden = model.config().hidden;
  const uint64_t bytes_max = uint64_t{kCopiedRows} * hidden * sizeof(float);
  ASSIGN_OR_RETURN(LinkSide left, LinkSide::create(model, a, bytes_max, options));
  ASSIGN_OR_RETURN(LinkSide right, LinkSide::create(model, b, bytes_max, options));
  GroupOptions group{.size = 2, .message_bytes_max = 1u << 20};
  group.link_latency_ns = options.virtual_link.latency_ns;
  group.link_ns_per_byte = options.virtual_link.ns_per_byte;
  group.own_cores = distinct_cores(std::array{std::span<const int>(a.cores), std::span<const int>(b.cores)});
  const std::vector<Route> routes = options.virtual_time ? std::vector{Route::kSharedMemory} : options.routes;
  Meetings meetings(std::move(left), std::move(right), routes, group, options.gate);
  const int64_t began_ns = system_clock().now_ns();
  for (int i = 0; i < (options.brief ? 1 : kCopySamples); ++i) {
    if (i > 0 && !options.virtual_time && system_clock().now_ns() - began_ns > kEnoughNs) break;
    RETURN_IF_ERROR(meetings.sample());
  }
  const std::vector<RouteTimes> times = meetings.times();
  for (const RouteTimes& of : times)
    log(LogLevel::kDebug, "{} and {} over {}: a row in {:.1f} us, a chunk in {:.1f} us", a.description.name,
        b.description.name, route_name(of.route), of.row_ns / 1e3, of.chunk_ns / 1e3);
  const RouteTimes best = cheapest(times);
  LinkProfile link{a.description.name, b.description.name, best.row_ns, 0, best.route};
  const double bytes = (double{1} * meetings.chunk_rows() - 1) * hidden * sizeof(float);
  link.ns_per_byte = std::max(0.0, best.chunk_ns - link.latency_ns) / bytes;
  return link;
}

}  // namespace

Result<LinkProfile> measure_link(const Model& model, const MeasuredDevice& a, const MeasuredDevice& b,
                                 const MeasureOptions& options) {
  return until_all_compile(a.uncompiled, [&] {
    return until_all_compile(b.uncompiled, [&] { return measure_once(model, a, b, options); });
  });
}

}  // namespace motley
