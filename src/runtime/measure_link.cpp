// What it costs two devices to meet.
#include <algorithm>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/affinity.hpp"
#include "base/log.hpp"
#include "comm/communicator.hpp"
#include "runtime/copy_side.hpp"
#include "runtime/measure.hpp"
#include "runtime/probe.hpp"

namespace motley {
namespace {

constexpr int kRowRounds = 50;

// One side of a link: does many times what a driver does between two programs. It waits for the smallest program there
// is, and sums with the other from and to its device's memory.
class LinkSide {
 public:
  static Result<LinkSide> create(const Model& model, const MeasuredDevice& device, uint64_t bytes_max,
                                 bool virtual_time) {
    ASSIGN_OR_RETURN(CopySide copies, CopySide::create(*device.device, bytes_max, virtual_time));
    ASSIGN_OR_RETURN(auto probe, Probe::create(model, *device.device, {.vocab_rows = 1}, 1, MOTLEY_F32, virtual_time));
    LinkSide side(std::move(copies), std::move(probe));
    side.runs_ = std::clamp(device.description.desc.queue_depth, 1u, kRunsMax);
    side.cores_ = device.cores;
    return side;
  }
  // On a thread that runs where the device's driver does. The first round is not counted.
  std::thread start(Communicator& communicator, size_t count, int rounds) {
    return std::thread([this, &communicator, count, rounds] {
      run_on(cores_);
      run(communicator, count, rounds);
    });
  }
  // What a plan counts of a round already: the copies, and the program as one of several behind one another.
  std::thread start_alone(size_t count, int rounds) {
    return std::thread([this, count, rounds] {
      run_on(cores_);
      const Result<double> ns = copies_and_program_ns(count, rounds);
      met_ = ok_status();
      status_ = ns.ok() ? ok_status() : ns.error();
      ns_ = ns.ok() ? *ns : 0;
    });
  }
  const Status& status() const { return status_; }  // of the device
  const Status& met() const { return met_; }        // of the meetings
  double ns() const { return ns_; }                 // of a round

 private:
  LinkSide(CopySide copies, std::unique_ptr<Probe> probe) : copies_(std::move(copies)), probe_(std::move(probe)) {}
  void run(Communicator& communicator, size_t count, int rounds) {
    const uint64_t bytes = count * sizeof(float);
    const auto between = [&]() -> Status {
      RETURN_IF_ERROR(copies_.push(bytes));
      RETURN_IF_ERROR(probe_->time_ns(MOTLEY_CUT_EMBED, {}, 1).error());
      return copies_.pull(bytes);
    };
    met_ = status_ = ok_status();
    int64_t began_ns = 0;
    for (int i = 0; i <= rounds && met_.ok() && status_.ok(); ++i) {
      met_ = communicator.all_reduce(copies_.view(count), true, copies_.call());
      if (met_.ok()) status_ = between();
      if (i == 0) began_ns = copies_.now_ns();
    }
    if (!status_.ok()) communicator.abort(status_);
    ns_ = static_cast<double>(copies_.now_ns() - began_ns) / rounds;
  }
  Result<double> copies_and_program_ns(size_t count, int rounds) {
    ASSIGN_OR_RETURN(const double copies, copies_.there_and_back_ns(count * sizeof(float), rounds));
    if (copies_.virtual_time()) return copies;  // the probe keeps a time of its own
    ASSIGN_OR_RETURN(const double program, probe_->time_ns(MOTLEY_CUT_EMBED, {}, runs_));
    return copies + program;
  }

  CopySide copies_;
  std::unique_ptr<Probe> probe_;
  uint32_t runs_ = 1;
  std::vector<int> cores_;
  Status status_, met_;
  double ns_ = 0;
};

// What the two sides' meetings take beside their copies, over each of some routes.
class Meetings {
 public:
  Meetings(LinkSide left, LinkSide right, size_t row, std::span<const Route> routes, const GroupOptions& group)
      : left_(std::move(left)), right_(std::move(right)), row_(row), group_(group) {
    for (const Route route : routes) samples_.push_back({route, {}, {}});
  }

  // Routes take turns, so that what disturbs the machine disturbs all of them. A route that fails is left out.
  Status sample(int row_rounds) {
    ASSIGN_OR_RETURN(const double row_alone, alone_ns(1, row_rounds));
    ASSIGN_OR_RETURN(const double rows_alone, alone_ns(kCopiedRows, kCopyRounds));
    for (size_t i = 0; i < samples_.size();) {
      Samples& of = samples_[i];
      Status status = time(of.route, 1, row_rounds, row_alone, &of.row_ns);
      if (status.ok()) status = time(of.route, kCopiedRows, kCopyRounds, rows_alone, &of.chunk_ns);
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

  std::vector<RouteTimes> times() const {
    std::vector<RouteTimes> times;
    for (const Samples& of : samples_) times.push_back({of.route, lower_median(of.row_ns), lower_median(of.chunk_ns)});
    return times;
  }

 private:
  struct Samples {
    Route route;
    std::vector<double> row_ns, chunk_ns;
  };

  // Side by side, as they run in a round.
  Result<double> alone_ns(uint32_t rows, int rounds) {
    std::thread left = left_.start_alone(rows * row_, rounds), right = right_.start_alone(rows * row_, rounds);
    left.join();
    right.join();
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->status());
    return std::max(left_.ns(), right_.ns());
  }
  Status time(Route route, uint32_t rows, int rounds, double alone_ns, std::vector<double>* out) {
    ASSIGN_OR_RETURN(CommGroup group, make_group(route, group_));
    std::thread left = left_.start(*group[0], rows * row_, rounds);
    std::thread right = right_.start(*group[1], rows * row_, rounds);
    left.join();
    right.join();
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->status());
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->met());
    out->push_back(std::max(0.0, left_.ns() - alone_ns));
    return ok_status();
  }

  LinkSide left_, right_;
  const size_t row_;  // values
  const GroupOptions group_;
  std::vector<Samples> samples_;
};

}  // namespace

const RouteTimes& cheapest(std::span<const RouteTimes> times) {
  return *std::min_element(times.begin(), times.end(), [](const RouteTimes& a, const RouteTimes& b) {
    const double a_ns = a.row_ns + a.chunk_ns, b_ns = b.row_ns + b.chunk_ns;
    return a_ns < b_ns || (a_ns == b_ns && a.route < b.route);
  });
}

Result<LinkProfile> measure_link(const Model& model, const MeasuredDevice& a, const MeasuredDevice& b,
                                 const MeasureOptions& options) {
  const uint32_t hidden = model.config().hidden;
  const uint64_t bytes_max = uint64_t{kCopiedRows} * hidden * sizeof(float);
  ASSIGN_OR_RETURN(LinkSide left, LinkSide::create(model, a, bytes_max, options.virtual_time));
  ASSIGN_OR_RETURN(LinkSide right, LinkSide::create(model, b, bytes_max, options.virtual_time));
  GroupOptions group{.size = 2, .message_bytes_max = 1u << 20};
  group.link_latency_ns = options.virtual_link.latency_ns;
  group.link_ns_per_byte = options.virtual_link.ns_per_byte;
  group.own_cores = !a.cores.empty() && !b.cores.empty();
  const std::vector<Route> routes = options.virtual_time ? std::vector{Route::kSharedMemory} : options.routes;
  Meetings meetings(std::move(left), std::move(right), hidden, routes, group);
  for (int i = 0; i < (options.virtual_time ? 1 : kCopySamples); ++i)
    RETURN_IF_ERROR(meetings.sample(options.virtual_time ? kCopyRounds : kRowRounds));
  const std::vector<RouteTimes> times = meetings.times();
  for (const RouteTimes& of : times)
    log(LogLevel::kDebug, "{} and {} over {}: a row in {:.1f} us, a chunk in {:.1f} us", a.description.name,
        b.description.name, route_name(of.route), of.row_ns / 1e3, of.chunk_ns / 1e3);
  const RouteTimes best = cheapest(times);
  LinkProfile link{a.description.name, b.description.name, best.row_ns, 0, best.route};
  const double bytes = double{kCopiedRows - 1} * hidden * sizeof(float);
  link.ns_per_byte = std::max(0.0, best.chunk_ns - link.latency_ns) / bytes;
  return link;
}

}  // namespace motley
