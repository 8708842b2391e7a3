#include "runtime/measure.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "base/affinity.hpp"
#include "base/log.hpp"
#include "device/virtual_time.hpp"
#include "model/axes.hpp"
#include "runtime/copy_side.hpp"
#include "runtime/measured_layers.hpp"
#include "runtime/probe.hpp"

namespace motley {
namespace {

constexpr int kVirtualSamples = 3;
constexpr int kVisits = 2;                           // to each part, which is sampled as Sampling says
constexpr double kShortNs = 600'000, kSlowNs = 4e6;  // of the first run, whose layer is in no cache
constexpr uint32_t kHeadRowsMax = 64;  // logits are asked for a row a sequence; beyond, time grows with the rows
constexpr double kSampleNs = 500'000;  // a sample has as many runs as this takes, at most kRunsMax
constexpr uint32_t kContextRows[] = {1, 4, 16, 64};  // of sequences of their own
constexpr uint32_t kTurnRowsMax = 64;                // that take layers in turn; beyond, they share each weight enough
constexpr uint32_t kContextReads = Probe::kKvBlocks * Probe::kBlockSize;  // of all of them, at most
constexpr uint32_t kChunkRows = 64;  // of one sequence, where their reading is measured
constexpr uint32_t kNear = 16;       // positions where little is read
constexpr int kTogetherRounds = 2;
constexpr int64_t kColumnGrain = 64;
constexpr int kWakeSamples = 9;
constexpr std::chrono::milliseconds kPause{2};  // longer than a device waits for more before it sleeps

std::vector<uint32_t> row_points(uint32_t rows_max) {
  std::vector<uint32_t> rows;
  for (uint32_t r = 1; r < rows_max; r *= r == 16 || r == 64 ? 4 : 2) rows.push_back(r);  // no 32, no 128
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

ProbeLoad prompt_of(uint32_t rows) { return {.rows = rows, .context = rows, .one_sequence = true}; }

class DeviceMeasurer {
 public:
  DeviceMeasurer(const Model& model, const MeasuredDevice& device, const MeasureOptions& options)
      : model_(model),
        axes_(axes_of(model)),
        device_(device),
        options_(options),
        depth_(std::max(1u, device.description.desc.queue_depth)),
        layers_(measured_layers(model)) {}

  // A part to be timed.
  struct Timing {
    Probe* probe;
    motley_cut cut;
    ProbeLoad load;
  };

  Result<DeviceProfile> run();
  // Nanoseconds of one run of each, the median of several. They are taken in turns, so that what disturbs the machine
  // for a while hits a sample of each and not all samples of one.
  Result<std::vector<double>> times_ns(std::span<const Timing> timings);
  Result<double> time_ns(Probe& probe, motley_cut cut, const ProbeLoad& load) {
    const Timing timing{&probe, cut, load};
    ASSIGN_OR_RETURN(const std::vector<double> times, times_ns(std::span(&timing, 1)));
    return times[0];
  }
  Result<std::unique_ptr<Probe>> probe(const ProbeShare& share) const {
    return Probe::create(model_, *device_.device, share, options_.rows_max, static_cast<int32_t>(options_.kv_dtype),
                         options_.virtual_time);
  }
  const MeasuredDevice& device() const { return device_; }
  const ModelAxes& axes() const { return axes_; }
  LayerRange layers() const { return layers_; }  // to measure in turn

 private:
  struct Part {
    motley_cut cut;
    CostTable* table;
    uint32_t rows_max;
    std::vector<int64_t> units;
    std::function<ProbeShare(int64_t)> share;
    std::function<ProbeLoad(uint32_t rows)> load = [](uint32_t r) { return ProbeLoad{.rows = r}; };
    // What of the time is not the table's.
    std::function<double(int64_t units, uint32_t rows)> read_ns = [](int64_t, uint32_t) { return 0.0; };
  };
  // How a part is sampled at each visit. A short one takes the layers in turn, and first runs twice: what ran before
  // has taken the caches, and it takes two rounds to have them back. A slow one has no time to notice.
  struct Sampling {
    uint32_t turns = 1;  // programs of a round
    int warm_ups = 0;    // rounds
    uint32_t runs = 1;   // of a sample
    int samples = 1;
    double first_ns = 0;  // counts as a sample; 0 = none
  };
  Result<Sampling> sampling_of(const Timing& timing);
  Status measure(const Part& part);
  // Positions that the load's rows read in the probed layer.
  double reads_of(const ProbeLoad& load) const;
  Status measure_layer(DeviceProfile* profile);
  Status measure_sampling(DeviceProfile* profile);
  Status measure_wake(DeviceProfile* profile);
  Status measure_copies(DeviceProfile* profile);

  const Model& model_;
  const ModelAxes axes_;
  const MeasuredDevice& device_;
  const MeasureOptions& options_;
  const uint32_t depth_;
  const LayerRange layers_;
  double source_bytes_ = 0, packed_bytes_ = 0;
};

Result<DeviceMeasurer::Sampling> DeviceMeasurer::sampling_of(const Timing& timing) {
  if (options_.virtual_time) return Sampling{1, 0, 1, kVirtualSamples, 0};  // there all runs are alike, but for jitter
  ASSIGN_OR_RETURN(const double once, timing.probe->time_ns(timing.cut, timing.load, 1));
  if (options_.pace) RETURN_IF_ERROR(options_.pace(once));
  if (once > kSlowNs) return Sampling{1, 0, 1, 1, once};
  const uint32_t rounds = static_cast<uint32_t>(std::clamp(kSampleNs / std::max(once, 1.0), 1.0, double{kRunsMax}));
  if (once > kShortNs) return Sampling{1, 2, std::min(rounds, depth_), 1, 0};
  const auto programs = static_cast<uint32_t>(timing.probe->programs(timing.cut));
  const uint32_t turns = std::clamp(programs, 1u, depth_);
  return Sampling{turns, 2, std::min(std::max(rounds / turns, 1u) * turns, depth_), 2, 0};
}

Result<std::vector<double>> DeviceMeasurer::times_ns(std::span<const Timing> timings) {
  std::vector<Sampling> plans;
  std::vector<std::vector<double>> samples(timings.size());
  for (size_t i = 0; i < timings.size(); ++i) {
    ASSIGN_OR_RETURN(const Sampling plan, sampling_of(timings[i]));
    plans.push_back(plan);
    if (plan.first_ns > 0) samples[i].push_back(plan.first_ns);
  }
  for (int visit = 0; visit < (options_.virtual_time ? 1 : kVisits); ++visit) {
    for (size_t i = 0; i < timings.size(); ++i) {
      const auto& [part, cut, load] = timings[i];
      const Sampling& plan = plans[i];
      double spent_ns = 0;
      for (int again = 0; again < plan.warm_ups; ++again) {
        ASSIGN_OR_RETURN(const double ns, part->time_ns(cut, load, plan.turns));
        spent_ns += ns * plan.turns;
      }
      for (int sample = 0; sample < plan.samples; ++sample) {
        ASSIGN_OR_RETURN(const double ns, part->time_ns(cut, load, plan.runs));
        samples[i].push_back(ns);
        spent_ns += ns * plan.runs;
      }
      if (options_.pace) RETURN_IF_ERROR(options_.pace(spent_ns));
    }
  }
  std::vector<double> times;
  for (std::vector<double>& of_one : samples) times.push_back(lower_median(std::move(of_one)));
  return times;
}

Status DeviceMeasurer::measure(const Part& part) {
  if (part.units.empty()) return ok_status();  // the model has none
  CostTable& table = *part.table;
  const std::vector<uint32_t> rows = row_points(std::min(part.rows_max, options_.rows_max));
  table.rows.assign(rows.begin(), rows.end());
  table.units = part.units;
  std::vector<std::unique_ptr<Probe>> probes;
  std::vector<Timing> timings;
  for (const int64_t units : part.units) {
    ASSIGN_OR_RETURN(auto made, probe(part.share(units)));
    probes.push_back(std::move(made));
    for (const uint32_t r : rows) timings.push_back({probes.back().get(), part.cut, part.load(r)});
  }
  ASSIGN_OR_RETURN(const std::vector<double> times, times_ns(timings));
  for (size_t u = 0; u < part.units.size(); ++u) {
    std::vector<double>& line = table.ns.emplace_back();
    for (size_t r = 0; r < rows.size(); ++r)
      line.push_back(std::max(0.0, times[u * rows.size() + r] - part.read_ns(part.units[u], rows[r])));
  }
  packed_bytes_ += static_cast<double>(probes.back()->weight_bytes());
  source_bytes_ += static_cast<double>(probes.back()->source_bytes());
  table.make_monotone();
  return ok_status();
}

double DeviceMeasurer::reads_of(const ProbeLoad& load) const {
  const uint32_t window = window_of(model_, model_.config().layers / 2);
  const auto seen = [&](uint32_t context) { return double{1} * (window > 0 ? std::min(context, window) : context); };
  if (!load.one_sequence) return load.rows * seen(load.context);
  double reads = 0;
  for (uint32_t r = 0; r < load.rows; ++r) reads += seen(load.context - r);
  return reads;
}

// A layer among others, as whole programs of several: on rows of a prompt; and what reading the KV pool adds, of one
// sequence's rows and of rows of sequences of their own, by how many there are, and what these take beside as many of a
// prompt.
Status DeviceMeasurer::measure_layer(DeviceProfile* profile) {
  ASSIGN_OR_RETURN(const auto several, probe({.layers = layers_, .whole = true}));
  ASSIGN_OR_RETURN(const auto single, probe({.layers = {layers_.first, 1}, .whole = true}));
  RETURN_IF_ERROR(several->write_kv());
  std::vector<Timing> timings;
  const auto timing = [&](const ProbeLoad& load) {
    Probe* const of = load.rows > kTurnRowsMax ? single.get() : several.get();
    timings.push_back({of, MOTLEY_CUT_STAGE, load});
    return timings.size() - 1;
  };
  const std::vector<uint32_t> rows = row_points(options_.rows_max);
  for (const uint32_t r : rows) timing(prompt_of(r));
  const uint32_t chunk = std::min(kChunkRows, options_.rows_max);
  const size_t chunk_near = timing(prompt_of(chunk)), chunk_far = timing({chunk, kMeasuredContext, true});
  std::vector<std::pair<size_t, size_t>> sequences;  // that see little, and much
  for (const uint32_t r : kContextRows) {
    if (r > options_.rows_max) break;
    profile->context.rows.push_back(r);
    profile->sequences.rows.push_back(r);
    const size_t near = timing({r, kNear, false}),
                 far = timing({r, std::min(kMeasuredContext, kContextReads / r), false});
    sequences.emplace_back(near, far);
  }
  ASSIGN_OR_RETURN(std::vector<double> ns, times_ns(timings));
  const double program = profile->embed.ns.back().front(), heads = static_cast<double>(axes_.kv_heads);
  for (size_t i = 0; i < ns.size(); ++i)
    ns[i] = std::max(0.0, ns[i] - program) / (timings[i].probe == single.get() ? 1 : layers_.count);
  const auto per_read = [&](size_t near, size_t far) {
    const double more = std::max(1.0, reads_of(timings[far].load) - reads_of(timings[near].load));
    return std::max(0.0, ns[far] - ns[near]) / (more * heads);
  };
  profile->chunk_context_ns = per_read(chunk_near, chunk_far);
  CostTable& table = profile->layer;
  table.rows.assign(rows.begin(), rows.end());
  table.units = {1};
  table.ns.emplace_back();
  for (size_t i = 0; i < rows.size(); ++i)
    table.ns[0].push_back(std::max(0.0, ns[i] - profile->chunk_context_ns * heads * reads_of(timings[i].load)));
  table.make_monotone();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto [near, far] = sequences[i];
    const double read = per_read(near, far);
    const double more = ns[near] - heads * read * reads_of(timings[near].load) -
                        table.at(static_cast<double>(profile->context.rows[i]), 1);
    profile->context.values.push_back(read);
    profile->sequences.values.push_back(std::max(0.0, more) / heads);
  }
  return ok_status();
}

// What a row adds: the program's own time is that of any.
Status DeviceMeasurer::measure_sampling(DeviceProfile* profile) {
  ASSIGN_OR_RETURN(const auto made, probe({.vocab_rows = axes_.vocab}));
  if (!made->programs(MOTLEY_CUT_SAMPLE) > 0) return ok_status();
  const uint32_t rows = std::min(kHeadRowsMax, options_.rows_max);
  ASSIGN_OR_RETURN(const double one, time_ns(*made, MOTLEY_CUT_SAMPLE, {.rows = 1}));
  ASSIGN_OR_RETURN(const double many, time_ns(*made, MOTLEY_CUT_SAMPLE, {.rows = rows}));
  profile->sample_ns = static_cast<int64_t>(std::max(0.0, many - one) / std::max(rows - 1, 1u));
  return ok_status();
}

// What the smallest program takes after a pause, beside what it takes behind another.
Status DeviceMeasurer::measure_wake(DeviceProfile* profile) {
  if (options_.virtual_time) return ok_status();  // there nothing falls asleep
  ASSIGN_OR_RETURN(const auto made, probe({.vocab_rows = axes_.vocab}));
  if (!made->programs(MOTLEY_CUT_EMBED) > 0) return ok_status();
  ASSIGN_OR_RETURN(const double busy, time_ns(*made, MOTLEY_CUT_EMBED, {}));
  std::vector<double> samples;
  for (int i = 0; i < kWakeSamples; ++i) {
    std::this_thread::sleep_for(kPause);
    ASSIGN_OR_RETURN(const double idle, made->time_ns(MOTLEY_CUT_EMBED, {}, 1));
    samples.push_back(idle);
  }
  profile->wake_ns = std::max(0.0, lower_median(std::move(samples)) - busy);
  return ok_status();
}

Status DeviceMeasurer::measure_copies(DeviceProfile* profile) {
  const uint64_t row_bytes = uint64_t{model_.config().hidden} * sizeof(float), most = kCopiedRows * row_bytes;
  ASSIGN_OR_RETURN(CopySide side, CopySide::create(*device_.device, most, options_.virtual_time));
  std::vector<double> small, large;
  for (int i = 0; i < (options_.virtual_time ? kVirtualSamples : kCopySamples); ++i) {
    ASSIGN_OR_RETURN(const double one, side.there_and_back_ns(row_bytes, kCopyRounds));
    ASSIGN_OR_RETURN(const double many, side.there_and_back_ns(most, kCopyRounds));
    small.push_back(one / 2);
    large.push_back(many / 2);
  }
  const double one = lower_median(std::move(small)), many = lower_median(std::move(large));
  profile->copy.ns_per_byte = std::max(0.0, many - one) / static_cast<double>(most - row_bytes);
  profile->copy.latency_ns = std::max(0.0, one - static_cast<double>(row_bytes) * profile->copy.ns_per_byte);
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
  const auto heads = [&](int64_t n) { return ProbeShare{.layers = layers_, .kv_heads = n}; };
  const auto columns = [&](int64_t n) { return ProbeShare{.layers = layers_, .ffn_columns = n}; };
  const auto experts = [&](int64_t n) { return ProbeShare{.layers = layers_, .experts = n}; };
  const auto rows = [](int64_t n) { return ProbeShare{.vocab_rows = n}; };
  const auto read_ns = [&](int64_t units, uint32_t r) {
    return profile.chunk_context_ns * static_cast<double>(units) * reads_of(prompt_of(r));
  };
  RETURN_IF_ERROR(measure({MOTLEY_CUT_EMBED, &profile.embed, options_.rows_max, {axes_.vocab}, rows}));
  RETURN_IF_ERROR(measure_layer(&profile));
  const std::vector<Part> parts = {
      {MOTLEY_CUT_ATTN_PART, &profile.attention, options_.rows_max, unit_points(axes_.kv_heads, 1), heads, prompt_of,
       read_ns},
      {MOTLEY_CUT_FFN_PART, &profile.ffn, options_.rows_max, unit_points(axes_.ffn_columns, kColumnGrain), columns},
      {MOTLEY_CUT_FFN_PART, &profile.experts, options_.rows_max, unit_points(axes_.experts, 1), experts},
      {MOTLEY_CUT_HEAD, &profile.head, kHeadRowsMax, unit_points(axes_.vocab, 1), rows}};
  for (const Part& part : parts) RETURN_IF_ERROR(measure(part));
  RETURN_IF_ERROR(measure_sampling(&profile));
  RETURN_IF_ERROR(measure_wake(&profile));
  RETURN_IF_ERROR(measure_copies(&profile));
  if (source_bytes_ > 0) profile.packed_ratio = packed_bytes_ / source_bytes_;
  return profile;
}

}  // namespace

Result<DeviceProfile> measure_device(const Model& model, const MeasuredDevice& device, const MeasureOptions& options) {
  Result<DeviceProfile> profile = DeviceProfile{};
  std::thread driver([&] {
    run_on(device.cores);
    profile = DeviceMeasurer(model, device, options).run();
  });
  driver.join();
  if (!profile.ok()) return profile.error().annotate(device.description.name);
  return profile;
}

namespace {

// The devices of one memory, each with a narrow part of a layer: what it moves weighs most beside what it computes.
class Group {
 public:
  Group(const Model& model, std::span<const MeasuredDevice> devices, const MeasureOptions& options)
      : options_(options), rows_(rows_of(options.rows_max)), probes_(devices.size()), working_(devices.size()) {
    for (const MeasuredDevice& device : devices)
      measurers_.push_back(std::make_unique<DeviceMeasurer>(model, device, options));
  }

  // Alone and together by turns: what else slows the machine for a while slows both. Few rows share the memory's rate,
  // many the cores' clock, or the cores themselves where two are one's threads: the factors may rise or fall.
  Status measure(std::span<DeviceProfile> profiles) {
    std::vector<std::vector<std::vector<double>>> factors(probes_.size(),
                                                          std::vector<std::vector<double>>(rows_.size()));
    for (int round = 0; round < (options_.virtual_time ? 1 : kTogetherRounds); ++round) {
      std::vector<std::vector<double>> alone(probes_.size()), together(probes_.size());
      // In virtual time a device counts as running while it has a queue.
      for (size_t i = 0; i < probes_.size(); ++i) {
        RETURN_IF_ERROR(open(i));
        for (const uint32_t rows : rows_) RETURN_IF_ERROR(time(i, rows, &alone[i]));
        probes_[i].reset();
      }
      for (size_t i = 0; i < probes_.size(); ++i) RETURN_IF_ERROR(open(i));
      for (const uint32_t rows : rows_) RETURN_IF_ERROR(time_all(rows, &together));
      for (size_t i = 0; i < probes_.size(); ++i) {
        probes_[i].reset();
        for (size_t r = 0; r < rows_.size(); ++r) factors[i][r].push_back(together[i][r] / std::max(alone[i][r], 1.0));
      }
    }
    for (size_t i = 0; i < probes_.size(); ++i) {
      RowCurve& curve = profiles[i].together;
      curve = {{rows_.begin(), rows_.end()}, {}};
      for (std::vector<double>& of_rows : factors[i]) {
        curve.values.push_back(std::max(1.0, lower_median(std::move(of_rows))));
        log(LogLevel::kDebug, "{} beside the others of its memory, {} rows: {:.2f} times as long", profiles[i].name,
            rows_[curve.values.size() - 1], curve.values.back());
      }
    }
    return ok_status();
  }

 private:
  static std::vector<uint32_t> rows_of(uint32_t rows_max) {
    std::vector<uint32_t> rows;
    for (uint32_t r = 1; r <= rows_max; r *= 16) rows.push_back(r);
    return rows;
  }
  Status open(size_t i) {
    const ModelAxes& axes = measurers_[i]->axes();
    const auto narrow = [](int64_t units, int64_t grain) {
      const std::vector<int64_t> points = unit_points(units, grain);
      return points.empty() ? 0 : points.front();
    };
    const ProbeShare share{.layers = measurers_[i]->layers(),
                           .kv_heads = narrow(axes.kv_heads, 1),
                           .ffn_columns = narrow(axes.ffn_columns, kColumnGrain),
                           .experts = narrow(axes.experts, 1)};
    ASSIGN_OR_RETURN(probes_[i], measurers_[i]->probe(share));
    return ok_status();
  }
  Status time(size_t i, uint32_t rows, std::vector<double>* out) {
    const DeviceMeasurer::Timing parts[] = {{probes_[i].get(), MOTLEY_CUT_ATTN_PART, {.rows = rows}},
                                            {probes_[i].get(), MOTLEY_CUT_FFN_PART, {.rows = rows}}};
    ASSIGN_OR_RETURN(const std::vector<double> ns, measurers_[i]->times_ns(parts));
    out->push_back(ns[0] + ns[1]);
    return ok_status();
  }
  // All at the same time: who is done goes on until all are.
  Status time_all(uint32_t rows, std::vector<std::vector<double>>* out) {
    std::vector<Status> ended(probes_.size());
    std::vector<std::thread> threads;
    working_ = probes_.size();
    for (size_t i = 0; i < probes_.size(); ++i) {
      threads.emplace_back([&, i] {
        run_on(measurers_[i]->device().cores);
        ended[i] = time(i, rows, &(*out)[i]);
        --working_;
        std::vector<double> ignored;
        while (!options_.virtual_time && working_ > 0 && ended[i].ok()) ended[i] = time(i, rows, &ignored);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Status& status : ended) RETURN_IF_ERROR(status);
    return ok_status();
  }

  const MeasureOptions& options_;
  const std::vector<uint32_t> rows_;
  std::vector<std::unique_ptr<DeviceMeasurer>> measurers_;
  std::vector<std::unique_ptr<Probe>> probes_;
  std::atomic<size_t> working_;  // devices that are still being timed
};

}  // namespace

Status measure_together(const Model& model, std::span<const MeasuredDevice> devices, const MeasureOptions& options,
                        std::span<DeviceProfile> profiles) {
  if (devices.size() < 2) return ok_status();
  return Group(model, devices, options).measure(profiles);
}

}  // namespace motley
