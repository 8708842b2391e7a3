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

#include "base/log.hpp"
#include "comm/communicator.hpp"
#include "device/virtual_time.hpp"
#include "model/axes.hpp"
#include "runtime/host_buffer.hpp"
#include "runtime/probe.hpp"

namespace motley {
namespace {

constexpr int kSamples = 5;  // of copies and links, of which the median counts
constexpr int kVirtualSamples = 3;
constexpr int kVisits = 2;                           // to each part, which is sampled as Sampling says
constexpr double kShortNs = 600'000, kSlowNs = 4e6;  // of the first run, whose layer is in no cache
constexpr uint32_t kHeadRowsMax = 64;  // logits are asked for a row a sequence; beyond, time grows with the rows
constexpr double kSampleNs = 500'000;  // a sample has as many runs as this takes, at most kRunsMax
constexpr uint32_t kRunsMax = 8;       // fewer where the queue is shallower
constexpr uint32_t kContext = 512;     // positions at which the reading of KV is measured
constexpr uint32_t kContextRows[] = {1, 4, 16, 64};  // of sequences of their own
constexpr uint32_t kJoinedRowsMax = 64;              // of whole layers; beyond, a program's own cost is nothing
constexpr uint32_t kContextReads = Probe::kKvBlocks * Probe::kBlockSize;  // of all of them, at most
constexpr uint32_t kChunkRows = 64;  // of one sequence, where their reading is measured
constexpr uint32_t kNear = 16;       // positions where little is read
// Layers are measured in turn until they hold this much, at most so many: more than the caches next to the cores keep.
constexpr uint64_t kLayersBytes = 64u << 20;
constexpr uint32_t kLayersMax = 8;
constexpr uint32_t kCopiedRows = 256;  // at which what a byte costs is measured; beside one
constexpr int kCopyRounds = 8;
constexpr int kTogetherRounds = 2;
constexpr int64_t kColumnGrain = 64;
constexpr int kWakeSamples = 9;
constexpr std::chrono::milliseconds kPause{2};  // longer than a device waits for more before it sleeps

// The lower one of an even number: what disturbs a time only adds to it.
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) / 2];
}

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

// Positions that a layer sees; 0 = all.
uint32_t window_of(const Model& model, size_t layer) {
  return layer < model.kv_layers().size() ? model.kv_layers()[layer].window : 0;
}

// Rows, columns and experts of a layer's weights, and their bytes.
struct LayerWeights {
  std::vector<std::array<int64_t, 3>> sizes;
  uint64_t bytes = 0;
};

std::vector<LayerWeights> layer_weights(const Model& model) {
  std::vector<LayerWeights> layers(model.config().layers);
  const std::vector<GraphWeight>& weights = model.graph().weights;
  for (size_t w = 0; w < weights.size(); ++w) {
    if (weights[w].layer < 0 || static_cast<size_t>(weights[w].layer) >= layers.size()) continue;
    LayerWeights& layer = layers[static_cast<size_t>(weights[w].layer)];
    layer.sizes.push_back({weights[w].rows, weights[w].cols, weights[w].experts});
    layer.bytes += model.weight(w).bytes;
  }
  return layers;
}

// Layers from the middle one on that are measured in turn: they do the same, as far as it is measured.
uint32_t layers_of(const Model& model) {
  const std::vector<LayerWeights> layers = layer_weights(model);
  const auto seen = [&](size_t layer) {
    const uint32_t window = window_of(model, layer);
    return window == 0 ? kContext : std::min(window, kContext);
  };
  const size_t middle = layers.size() / 2;
  uint64_t bytes = 0;
  uint32_t count = 0;
  for (size_t l = middle; l < layers.size() && count < kLayersMax && bytes < kLayersBytes; ++l, ++count) {
    if (layers[l].sizes != layers[middle].sizes || seen(l) != seen(middle)) break;
    bytes += layers[l].bytes;
  }
  return count;
}

// Moves a value to the host and back, as a driver does between two programs.
class CopySide {
 public:
  static Result<CopySide> create(const Device& device, uint64_t bytes_max, bool virtual_time) {
    ASSIGN_OR_RETURN(QueueHandle queue, device.create_queue());
    ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::create(device, bytes_max));
    return CopySide(std::move(queue), std::move(buffer), virtual_time);
  }
  Status push(uint64_t bytes) {
    const VirtualTimeScope scope(&virtual_ns_);
    return buffer_.push(queue_, bytes);
  }
  // Once what was pushed has arrived.
  Status pull(uint64_t bytes) {
    const VirtualTimeScope scope(&virtual_ns_);
    return buffer_.pull(queue_, bytes, UINT64_MAX, &virtual_ns_);
  }
  Result<double> there_and_back_ns(uint64_t bytes, int rounds) {
    int64_t began_ns = 0;
    for (int i = 0; i <= rounds; ++i) {
      RETURN_IF_ERROR(push(bytes));
      RETURN_IF_ERROR(pull(bytes));
      if (i == 0) began_ns = now_ns();
    }
    return static_cast<double>(now_ns() - began_ns) / rounds;
  }
  std::span<float> view(size_t count) { return buffer_.view<float>(count); }
  int64_t now_ns() const { return virtual_time_ ? virtual_ns_ : system_clock().now_ns(); }
  bool virtual_time() const { return virtual_time_; }
  CommCall call() { return virtual_time_ ? CommCall{.virtual_ns = &virtual_ns_} : CommCall{}; }

 private:
  CopySide(QueueHandle queue, HostBuffer buffer, bool virtual_time)
      : queue_(std::move(queue)),
        buffer_(std::move(buffer)),
        virtual_time_(virtual_time),
        virtual_ns_(virtual_time ? virtual_start_ns() : 0) {}
  QueueHandle queue_;
  HostBuffer buffer_;
  bool virtual_time_;
  int64_t virtual_ns_;
};

class DeviceMeasurer {
 public:
  DeviceMeasurer(const Model& model, const MeasuredDevice& device, const MeasureOptions& options)
      : model_(model),
        axes_(axes_of(model)),
        device_(device),
        options_(options),
        depth_(std::max(1u, device.description.desc.queue_depth)),
        layers_(layers_of(model)) {}

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
  const ModelAxes& axes() const { return axes_; }
  uint32_t layers() const { return layers_; }  // to measure in turn

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
  Status measure_context(Probe* made, DeviceProfile* profile);
  Status measure_sequences(Probe* made, DeviceProfile* profile);
  Status measure_layer(DeviceProfile* profile);
  Status measure_sampling(DeviceProfile* profile);
  Status measure_wake(DeviceProfile* profile);
  Status measure_copies(DeviceProfile* profile);

  const Model& model_;
  const ModelAxes axes_;
  const MeasuredDevice& device_;
  const MeasureOptions& options_;
  const uint32_t depth_, layers_;
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
  for (std::vector<double>& of_one : samples) times.push_back(median(std::move(of_one)));
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

// What reading the KV pool costs: of rows of sequences of their own, by how many there are, and of one's.
Status DeviceMeasurer::measure_context(Probe* made, DeviceProfile* profile) {
  std::vector<ProbeLoad> loads;
  const uint32_t chunk = std::min(kChunkRows, options_.rows_max);
  for (const uint32_t context : {chunk, kContext}) loads.push_back({chunk, context, true});
  for (const uint32_t rows : kContextRows) {
    if (rows > options_.rows_max) break;
    profile->context.rows.push_back(rows);
    for (const uint32_t context : {kNear, std::min(kContext, kContextReads / rows)})
      loads.push_back({rows, context, false});
  }
  std::vector<Timing> timings;
  for (const ProbeLoad& load : loads) timings.push_back({made, MOTLEY_CUT_ATTN_PART, load});
  ASSIGN_OR_RETURN(const std::vector<double> ns, times_ns(timings));
  const auto per_read = [&](size_t near) {
    const double more = std::max(1.0, reads_of(loads[near + 1]) - reads_of(loads[near]));
    return std::max(0.0, ns[near + 1] - ns[near]) / (more * static_cast<double>(axes_.kv_heads));
  };
  profile->chunk_context_ns = per_read(0);
  for (size_t i = 2; i < loads.size(); i += 2) profile->context.values.push_back(per_read(i));
  return ok_status();
}

// What rows of sequences of their own take beside what as many of a prompt do, which the table has.
Status DeviceMeasurer::measure_sequences(Probe* made, DeviceProfile* profile) {
  const auto heads = static_cast<double>(axes_.kv_heads);
  std::vector<Timing> timings;
  for (const int64_t rows : profile->context.rows) {
    const auto count = static_cast<uint32_t>(rows);
    timings.push_back({made, MOTLEY_CUT_ATTN_PART, {.rows = count, .context = kNear}});
    timings.push_back({made, MOTLEY_CUT_ATTN_PART, prompt_of(count)});
  }
  ASSIGN_OR_RETURN(const std::vector<double> ns, times_ns(timings));
  for (size_t i = 0; i < profile->context.rows.size(); ++i) {
    const Timing &own = timings[2 * i], &shared = timings[2 * i + 1];
    const double more = ns[2 * i] - heads * profile->context.values[i] * reads_of(own.load) - ns[2 * i + 1] +
                        heads * profile->chunk_context_ns * reads_of(shared.load);
    profile->sequences.rows.push_back(profile->context.rows[i]);
    profile->sequences.values.push_back(std::max(0.0, more) / heads);
  }
  return ok_status();
}

// A layer among others, on rows of a prompt: the whole program of several, less what any program costs.
Status DeviceMeasurer::measure_layer(DeviceProfile* profile) {
  const ProbeShare share{.layers = layers_, .whole = true};
  ASSIGN_OR_RETURN(const auto made, probe(share));
  const std::vector<uint32_t> rows = row_points(std::min(kJoinedRowsMax, options_.rows_max));
  std::vector<Timing> timings;
  for (const uint32_t r : rows) timings.push_back({made.get(), MOTLEY_CUT_STAGE, prompt_of(r)});
  ASSIGN_OR_RETURN(const std::vector<double> times, times_ns(timings));
  const double program = profile->embed.ns.back().front();
  CostTable& table = profile->layer;
  table.rows.assign(rows.begin(), rows.end());
  table.units = {1};
  table.ns.emplace_back();
  for (size_t r = 0; r < rows.size(); ++r) {
    const double read = profile->chunk_context_ns * static_cast<double>(axes_.kv_heads) * reads_of(prompt_of(rows[r]));
    table.ns[0].push_back(std::max(0.0, (times[r] - program) / layers_ - read));
  }
  table.make_monotone();
  return ok_status();
}

// What a row adds: the program's own time is that of any.
Status DeviceMeasurer::measure_sampling(DeviceProfile* profile) {
  ASSIGN_OR_RETURN(const auto made, probe({.layers = 0, .vocab_rows = axes_.vocab}));
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
  ASSIGN_OR_RETURN(const auto made, probe({.layers = 0, .vocab_rows = axes_.vocab}));
  if (!made->programs(MOTLEY_CUT_EMBED) > 0) return ok_status();
  ASSIGN_OR_RETURN(const double busy, time_ns(*made, MOTLEY_CUT_EMBED, {}));
  std::vector<double> samples;
  for (int i = 0; i < kWakeSamples; ++i) {
    std::this_thread::sleep_for(kPause);
    ASSIGN_OR_RETURN(const double idle, made->time_ns(MOTLEY_CUT_EMBED, {}, 1));
    samples.push_back(idle);
  }
  profile->wake_ns = std::max(0.0, median(std::move(samples)) - busy);
  return ok_status();
}

Status DeviceMeasurer::measure_copies(DeviceProfile* profile) {
  const uint64_t row_bytes = uint64_t{model_.config().hidden} * sizeof(float), most = kCopiedRows * row_bytes;
  ASSIGN_OR_RETURN(CopySide side, CopySide::create(*device_.device, most, options_.virtual_time));
  std::vector<double> small, large;
  for (int i = 0; i < (options_.virtual_time ? kVirtualSamples : kSamples); ++i) {
    ASSIGN_OR_RETURN(const double one, side.there_and_back_ns(row_bytes, kCopyRounds));
    ASSIGN_OR_RETURN(const double many, side.there_and_back_ns(most, kCopyRounds));
    small.push_back(one / 2);
    large.push_back(many / 2);
  }
  const double one = median(std::move(small)), many = median(std::move(large));
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
  const auto rows = [](int64_t n) { return ProbeShare{.layers = 0, .vocab_rows = n}; };
  ASSIGN_OR_RETURN(const auto reader, probe({.kv_heads = axes_.kv_heads}));
  RETURN_IF_ERROR(reader->write_kv());
  RETURN_IF_ERROR(measure_context(reader.get(), &profile));
  const auto read_ns = [&](int64_t units, uint32_t r) {
    return profile.chunk_context_ns * static_cast<double>(units) * reads_of(prompt_of(r));
  };
  const std::vector<Part> parts = {
      {MOTLEY_CUT_ATTN_PART, &profile.attention, options_.rows_max, unit_points(axes_.kv_heads, 1), heads, prompt_of,
       read_ns},
      {MOTLEY_CUT_FFN_PART, &profile.ffn, options_.rows_max, unit_points(axes_.ffn_columns, kColumnGrain), columns},
      {MOTLEY_CUT_FFN_PART, &profile.experts, options_.rows_max, unit_points(axes_.experts, 1), experts},
      {MOTLEY_CUT_HEAD, &profile.head, kHeadRowsMax, unit_points(axes_.vocab, 1), rows},
      {MOTLEY_CUT_EMBED, &profile.embed, options_.rows_max, {axes_.vocab}, rows}};
  for (const Part& part : parts) RETURN_IF_ERROR(measure(part));
  RETURN_IF_ERROR(measure_sequences(reader.get(), &profile));
  RETURN_IF_ERROR(measure_layer(&profile));
  RETURN_IF_ERROR(measure_sampling(&profile));
  RETURN_IF_ERROR(measure_wake(&profile));
  RETURN_IF_ERROR(measure_copies(&profile));
  if (source_bytes_ > 0) profile.packed_ratio = packed_bytes_ / source_bytes_;
  return profile;
}

}  // namespace

Result<DeviceProfile> measure_device(const Model& model, const MeasuredDevice& device, const MeasureOptions& options) {
  auto profile = DeviceMeasurer(model, device, options).run();
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

  // Alone and together by turns: what else slows the machine for a while slows both. More rows to each byte that is
  // read cannot make the others' reading weigh more, so the factors are made to fall.
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
      std::vector<double> rising;  // from many rows to one
      for (size_t r = rows_.size(); r-- > 0;) rising.push_back(std::max(1.0, median(std::move(factors[i][r]))));
      rising = isotonic_fit(rising);
      profiles[i].together = {{rows_.begin(), rows_.end()}, {rising.rbegin(), rising.rend()}};
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

namespace {

// One side of a link: does many times what a driver does between two programs. It waits for the smallest program there
// is, and sums with the other from and to its device's memory.
class LinkSide {
 public:
  static Result<LinkSide> create(const Model& model, const MeasuredDevice& device, uint64_t bytes_max,
                                 bool virtual_time) {
    ASSIGN_OR_RETURN(CopySide copies, CopySide::create(*device.device, bytes_max, virtual_time));
    const ProbeShare share{.layers = 0, .vocab_rows = 1};
    ASSIGN_OR_RETURN(auto probe, Probe::create(model, *device.device, share, 1, MOTLEY_F32, virtual_time));
    LinkSide side(std::move(copies), std::move(probe));
    side.runs_ = std::clamp(device.description.desc.queue_depth, 1u, kRunsMax);
    return side;
  }
  // The first round is not counted.
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
  // What a plan counts of a round already: the copies, and the program as one of several behind one another.
  Result<double> alone_ns(size_t count, int rounds) {
    ASSIGN_OR_RETURN(const double copies, copies_.there_and_back_ns(count * sizeof(float), rounds));
    if (copies_.virtual_time()) return copies;  // the probe keeps a time of its own
    ASSIGN_OR_RETURN(const double program, probe_->time_ns(MOTLEY_CUT_EMBED, {}, runs_));
    return copies + program;
  }
  const Status& status() const { return status_; }  // of the device
  const Status& met() const { return met_; }        // of the meetings
  double ns() const { return ns_; }

 private:
  LinkSide(CopySide copies, std::unique_ptr<Probe> probe) : copies_(std::move(copies)), probe_(std::move(probe)) {}
  CopySide copies_;
  std::unique_ptr<Probe> probe_;
  uint32_t runs_ = 1;
  Status status_, met_;
  double ns_ = 0;
};

// What the two sides' meetings take beside their copies, over each of some routes.
class Meetings {
 public:
  Meetings(LinkSide left, LinkSide right, std::span<const Route> routes, const GroupOptions& group)
      : left_(std::move(left)), right_(std::move(right)), group_(group) {
    for (const Route route : routes) samples_.push_back({route, {}, {}});
  }

  // Routes take turns, so that what disturbs the machine disturbs all of them. A route that fails is left out.
  Status sample(size_t row, size_t rows, int row_rounds, int rows_rounds) {
    ASSIGN_OR_RETURN(const double row_alone, alone_ns(row, row_rounds));
    ASSIGN_OR_RETURN(const double rows_alone, alone_ns(row * rows, rows_rounds));
    for (size_t i = 0; i < samples_.size();) {
      Samples& of = samples_[i];
      Status status = time(of.route, row, row_rounds, row_alone, &of.row_ns);
      if (status.ok()) status = time(of.route, row * rows, rows_rounds, rows_alone, &of.chunk_ns);
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
    for (const Samples& of : samples_) times.push_back({of.route, median(of.row_ns), median(of.chunk_ns)});
    return times;
  }

 private:
  struct Samples {
    Route route;
    std::vector<double> row_ns, chunk_ns;
  };

  Result<double> alone_ns(size_t count, int rounds) {
    ASSIGN_OR_RETURN(const double left, left_.alone_ns(count, rounds));
    ASSIGN_OR_RETURN(const double right, right_.alone_ns(count, rounds));
    return std::max(left, right);
  }
  Status time(Route route, size_t count, int rounds, double alone_ns, std::vector<double>* out) {
    ASSIGN_OR_RETURN(CommGroup group, make_group(route, group_));
    std::thread other([&] { right_.run(*group[1], count, rounds); });
    left_.run(*group[0], count, rounds);
    other.join();
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->status());
    for (const LinkSide* side : {&left_, &right_}) RETURN_IF_ERROR(side->met());
    out->push_back(std::max(0.0, left_.ns() - alone_ns));
    return ok_status();
  }

  LinkSide left_, right_;
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
  const std::vector<Route> routes = options.virtual_time ? std::vector{Route::kSharedMemory} : options.routes;
  Meetings meetings(std::move(left), std::move(right), routes, group);
  for (int i = 0; i < (options.virtual_time ? 1 : kSamples); ++i)
    RETURN_IF_ERROR(meetings.sample(hidden, kCopiedRows, options.virtual_time ? kCopyRounds : 50, kCopyRounds));
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
