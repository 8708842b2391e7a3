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
#include "runtime/measured_weights.hpp"
#include "runtime/probe.hpp"

namespace motley {
namespace {

constexpr int kVirtualSamples = 3;
constexpr int kVisits = 2;                    // to each part, which is sampled as Sampling says
constexpr uint32_t kRunsMax = 8;              // of a sample; fewer where the device's queue is shallower
constexpr int kWarmUps = 2, kWarmUpsMax = 8;  // rounds before a sample, while each is faster than the last
constexpr double kFaster = 0.95;
constexpr double kBusyNs = 60e6;  // of prompts, before a sample on a GPU: its clock falls once it takes much power
constexpr int kShortSamples = 3, kBriefSamples = 2;  // of a short part, at each visit
constexpr double kShortNs = 600'000, kSlowNs = 8e6;  // of the first run, whose layer is in no cache
constexpr double kBriefRunNs = 50e6;                 // of a layer and the most rows, where measuring is brief
constexpr double kSampleNs = 500'000;                // a sample has as many runs as this takes, at most kRunsMax
// On a device with memory of its own, which starts a lone run late, and records a program when it comes again.
constexpr double kOwnSampleNs = 60e6, kOwnBriefSampleNs = kSlowNs;
constexpr int kOwnFirstRuns = 3;                                                // of which the least counts,
constexpr double kOwnFirstRunsNs = 1e9;                                         // unless one takes so long
constexpr uint32_t kContextRows[] = {1, 4, 16, 64};                             // of sequences of their own
constexpr uint32_t kContextReads = ProbeShare{}.kv_blocks * Probe::kBlockSize;  // of all of them, at most
constexpr uint32_t kNear = ProbeLoad::kDecodingContext;                         // positions where little is read
constexpr double kMixedLeast = 0.2;                                             // of `mixed`: less is noise
constexpr int kTogetherRounds = 2;
constexpr uint32_t kTogetherReaders = 16;  // sequences whose reading is timed then
constexpr double kReadingLeast = 0.2;      // of the part's other time
constexpr int64_t kColumnGrain = 64;
constexpr int kWakeSamples = 9;
constexpr std::chrono::milliseconds kPause{2};  // longer than a device waits for more before it sleeps
// Where the memory does not hold what is measured at once.
constexpr uint32_t kFewBlocks = kMeasuredContext / Probe::kBlockSize;  // that all sequences share
constexpr uint32_t kFewLogitRows = 8;
constexpr int64_t kVocabularyParts = 64;  // one of which is the least that is measured

class DeviceMeasurer {
 public:
  // All are borrowed. A sparing one holds one thing at a time, and less of it: fewer layers, KV that sequences share, a
  // part of the vocabulary.
  static Result<std::unique_ptr<DeviceMeasurer>> create(const Model& model, const MeasuredDevice& device,
                                                        const MeasureOptions& options, bool sparing = false) {
    const bool any_rows = (device.description.desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0;
    const uint32_t rows_max = any_rows ? options.rows_max : std::max(options.rows_max, options.step_rows_max);
    ASSIGN_OR_RETURN(ProbeOptions probing, probe_options(model, *device.device, device.description,
                                                         {.rows_max = rows_max,
                                                          .compile_seconds_max = options.compile_seconds_max,
                                                          .program_bytes_max = device.program_bytes_max,
                                                          .without = rows_of(device.uncompiled),
                                                          .load = options.load},
                                                         options.kv_dtype, options.virtual_time));
    probing.virtual_ns = options.virtual_ns;
    probing.wait_ns = options.wait_ns;
    probing.uncompiled = device.uncompiled;
    if (sparing) probing.logit_rows_max = kFewLogitRows;
    return std::unique_ptr<DeviceMeasurer>(new DeviceMeasurer(model, device, options, std::move(probing), sparing));
  }

  // A part to be timed; with `both`, a split layer's attention and FFN by turns.
  struct Timing {
    Probe* probe;
    motley_cut cut;
    ProbeLoad load;
    bool both = false;
    bool behind_layers = false;  // a row of the measured layers has gone before, and taken the caches
  };
  struct Times {
    double ns = 0;
    double ffn_ns = 0;  // of both; then `ns` is the attention's
    double sum() const { return ns + ffn_ns; }
  };

  Result<DeviceProfile> run();
  Result<double> slowdown(const DeviceProfile& known);
  // Nanoseconds of one run of each, the median of several. They are taken in turns, so that what disturbs the machine
  // for a while hits a sample of each and not all samples of one.
  Result<std::vector<Times>> times_of(std::span<const Timing> timings);
  Result<double> time_ns(Probe& probe, motley_cut cut, const ProbeLoad& load) {
    const Timing timing{&probe, cut, load};
    ASSIGN_OR_RETURN(const std::vector<Times> times, times_of(std::span(&timing, 1)));
    return times[0].ns;
  }
  Result<std::unique_ptr<Probe>> probe(const ProbeShare& share) const {
    return Probe::create(model_, *device_.device, share, probing_);
  }
  // Positions that the load's rows read in the probed layer.
  double reads_of(const ProbeLoad& load) const;
  const MeasuredDevice& device() const { return device_; }
  const ModelAxes& axes() const { return axes_; }
  LayerRange layers() const { return layers_; }  // to measure in turn
  bool attends() const { return probing_.attends; }

 private:
  DeviceMeasurer(const Model& model, const MeasuredDevice& device, const MeasureOptions& options, ProbeOptions probing,
                 bool sparing)
      : model_(model),
        axes_(axes_of(model)),
        device_(device),
        options_(options),
        depth_(std::max(1u, device.description.desc.queue_depth)),
        own_memory_(has_own_memory(device.description.desc)),
        any_rows_((device.description.desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0),
        buckets_(probing.buckets),
        probing_(std::move(probing)),
        sparing_(sparing),
        layers_(sparing ? few_layers(model, probing_.attends)
                        : measured_layers(model, device.description.desc.memory_free,
                                          own_memory_ ? kLayersOfOwnMemory : 1)),
        rows_max_(options.rows_max),
        vocabulary_(axes_.vocab) {
    std::vector<uint32_t>& timed = probing_.buckets;  // up to the first that holds all rows that are asked for
    const auto first = std::lower_bound(timed.begin(), timed.end(), options.rows_max);
    if (!any_rows_ && first != timed.end()) timed.erase(std::next(first), timed.end());
  }
  struct Part {
    motley_cut cut;
    CostTable* table;
    uint32_t rows_max;
    std::vector<int64_t> units;
    bool behind_layers = false;  // as in a step
  };
  // How a part is sampled at each visit. A short one takes the layers in turn, and first runs for some rounds: what ran
  // before has taken the caches, and it takes two rounds or more to have them back. A slow one has no time to notice,
  // but keeps a device with memory of its own busy for a while.
  struct Sampling {
    uint32_t turns = 1;     // programs of a round
    bool warms_up = false;  // before its samples
    uint32_t runs = 1;      // of a sample
    int samples = 1;
    double busy_ns = 0;
  };
  Result<Times> take(const Timing& timing, uint32_t runs);
  struct Samples {
    std::vector<double> ns, ffn_ns;
    void add(const Times& times) { ns.push_back(times.ns), ffn_ns.push_back(times.ffn_ns); }
  };
  Result<Sampling> sampling_of(const Timing& timing, Samples* samples);
  Status warm_up(const Timing& timing, const Sampling& plan);
  Status visit(const Timing& timing, const Sampling& plan, Samples* samples);
  // Of one share after another, the last the largest, each on its loads: by turns, or where memory is scarce each by
  // itself. Shared, as that of the whole vocabulary is made once.
  using MakeProbe = std::function<Result<std::shared_ptr<Probe>>(size_t share)>;
  using AddLoads = std::function<void(Probe* probe, std::vector<Timing>* timings)>;
  Result<std::vector<Times>> times_of_shares(size_t shares, const MakeProbe& make, const AddLoads& add);
  Result<std::shared_ptr<Probe>> vocabulary_probe();
  Status measure(const Part& part);
  Status measure_parts(DeviceProfile* profile, CostTable DeviceProfile::*other, const std::vector<int64_t>& units,
                       int64_t ProbeShare::*share);
  Result<uint32_t> brief_rows(Probe& layer);
  Status measure_layer(DeviceProfile* profile);
  double mixed_of(const DeviceProfile& profile, double ns) const;
  Status measure_dense_layer(DeviceProfile* profile);
  Status measure_parts(DeviceProfile* profile);
  // Numbers of rows that are timed.
  std::vector<uint32_t> row_points_of(uint32_t rows_max) const;
  Status measure_head(DeviceProfile* profile);
  Status measure_sampling(DeviceProfile* profile);
  Status measure_wake(DeviceProfile* profile);
  Status measure_copies(DeviceProfile* profile);

  const Model& model_;
  const ModelAxes axes_;
  const MeasuredDevice& device_;
  const MeasureOptions& options_;
  const uint32_t depth_;
  const bool own_memory_, any_rows_;
  const std::vector<uint32_t> buckets_;  // that steps will run
  ProbeOptions probing_;                 // of them those that are timed
  const bool sparing_;
  const LayerRange layers_;
  uint32_t rows_max_;               // of those asked for, as many as are soon done
  std::unique_ptr<Probe> several_;  // the measured layers, whole, as one program
  int64_t vocabulary_;              // rows of embedding and head that are measured at most
  std::shared_ptr<Probe> vocab_;    // of so many; shared with what is timed
  double wait_ns_ = 0;              // as in the profile
  MeasuredWeights weights_;
};

Result<DeviceMeasurer::Times> DeviceMeasurer::take(const Timing& timing, uint32_t runs) {
  if (timing.both) {
    ASSIGN_OR_RETURN(const PartTimes parts, timing.probe->parts_ns(timing.load, runs));
    return Times{parts.attention_ns, parts.ffn_ns};
  }
  if (timing.behind_layers) {
    RETURN_IF_ERROR(several_->time_ns(MOTLEY_CUT_STAGE, {}, 1).error());
  }
  ASSIGN_OR_RETURN(const double ns, timing.probe->time_ns(timing.cut, timing.load, runs));
  return Times{ns, 0};
}

// By a first run, or the least of some, which is a sample itself of what is slow, where there are few.
Result<DeviceMeasurer::Sampling> DeviceMeasurer::sampling_of(const Timing& timing, Samples* samples) {
  if (options_.virtual_time) return Sampling{1, false, 1, kVirtualSamples};  // there all are alike, but for jitter
  ASSIGN_OR_RETURN(Times first, take(timing, 1));
  const bool long_samples = own_memory_ && !options_.brief;
  for (int run = 1; long_samples && run < kOwnFirstRuns && first.sum() < kOwnFirstRunsNs; ++run) {
    ASSIGN_OR_RETURN(const Times next, take(timing, 1));
    if (next.sum() < first.sum()) first = next;
  }
  const double once = first.sum();
  const int samples_of_short = options_.brief ? kBriefSamples : kShortSamples;
  const double busy_ns = long_samples && timing.load.prompt ? kBusyNs : 0;
  if (once > (long_samples ? kOwnSampleNs : kSlowNs)) {
    if (options_.brief) samples->add(first);
    return Sampling{1, false, 1, 1, busy_ns};
  }
  if (timing.behind_layers) return Sampling{1, false, 1, samples_of_short};
  const double enough_ns = long_samples ? kOwnSampleNs : own_memory_ ? kOwnBriefSampleNs : kSampleNs;
  const auto rounds = static_cast<uint32_t>(std::clamp(enough_ns / std::max(once, 1.0), 1.0, double{kRunsMax}));
  if (once > kShortNs) return Sampling{1, true, std::min(rounds, depth_), options_.brief ? kBriefSamples : 1, busy_ns};
  const auto programs = static_cast<uint32_t>(timing.probe->programs(timing.cut));
  const uint32_t turns = std::clamp(programs, 1u, depth_);
  return Sampling{turns, true, std::min(std::max(rounds / turns, 1u) * turns, depth_), samples_of_short};
}

Status DeviceMeasurer::warm_up(const Timing& timing, const Sampling& plan) {
  const int most = plan.warms_up ? options_.brief ? kWarmUps : kWarmUpsMax : 0;
  double last = 0, busy = 0;
  for (int round = 0; round < most || busy < plan.busy_ns; ++round) {
    ASSIGN_OR_RETURN(const Times times, take(timing, plan.turns));
    busy += std::max(1e5, plan.turns * times.sum());
    if (round >= kWarmUps && times.sum() > kFaster * last && busy >= plan.busy_ns) break;
    last = times.sum();
  }
  return ok_status();
}

Status DeviceMeasurer::visit(const Timing& timing, const Sampling& plan, Samples* samples) {
  RETURN_IF_ERROR(warm_up(timing, plan));
  for (int sample = 0; sample < plan.samples; ++sample) {
    ASSIGN_OR_RETURN(const Times times, take(timing, plan.runs));
    samples->add(times);
  }
  return ok_status();
}

Result<std::vector<DeviceMeasurer::Times>> DeviceMeasurer::times_of(std::span<const Timing> timings) {
  std::vector<Sampling> plans;
  std::vector<Samples> samples(timings.size());
  const auto visit_to = [&](size_t i) { return visit(timings[i], plans[i], &samples[i]); };
  for (size_t i = 0; i < timings.size(); ++i) {
    RETURN_IF_ERROR(through(options_.gate, [&]() -> Status {
      ASSIGN_OR_RETURN(const Sampling plan, sampling_of(timings[i], &samples[i]));
      plans.push_back(plan);
      return options_.brief ? visit_to(i) : ok_status();  // at once: passing the gate takes time, too
    }));
  }
  const int rounds = options_.brief ? 0 : options_.virtual_time ? 1 : kVisits;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < timings.size(); ++i) RETURN_IF_ERROR(through(options_.gate, [&] { return visit_to(i); }));
  }
  std::vector<Times> times;
  for (Samples& of : samples) times.push_back({lower_median(std::move(of.ns)), lower_median(std::move(of.ffn_ns))});
  return times;
}

Result<std::vector<DeviceMeasurer::Times>> DeviceMeasurer::times_of_shares(size_t shares, const MakeProbe& make,
                                                                           const AddLoads& add) {
  std::vector<Times> all;
  std::vector<std::shared_ptr<Probe>> probes;
  std::vector<Timing> timings;
  for (size_t share = 0; share < shares; ++share) {
    ASSIGN_OR_RETURN(auto made, make(share));
    add(made.get(), &timings);
    probes.push_back(std::move(made));
    if (share + 1 < shares && !sparing_) continue;
    ASSIGN_OR_RETURN(const std::vector<Times> times, times_of(timings));
    all.insert(all.end(), times.begin(), times.end());
    if (share + 1 == shares) weights_.add(*probes.back());
    probes.clear(), timings.clear();
  }
  return all;
}

// As many rows as there is room for.
Result<std::shared_ptr<Probe>> DeviceMeasurer::vocabulary_probe() {
  for (;;) {
    auto made = probe({.vocab_rows = vocabulary_});
    if (made.ok()) return std::shared_ptr<Probe>(*std::move(made));
    if (made.error().code() != MOTLEY_RESOURCE_EXHAUSTED || !sparing_ || vocabulary_ * kVocabularyParts <= axes_.vocab)
      return made.error();
    vocabulary_ /= 2;
  }
}

Status DeviceMeasurer::measure(const Part& part) {
  if (part.units.empty()) return ok_status();  // the model has none
  CostTable& table = *part.table;
  const std::vector<uint32_t> rows = row_points_of(std::min(part.rows_max, rows_max_));
  table.rows.assign(rows.begin(), rows.end());
  table.units = part.units;
  const auto make = [&](size_t share) -> Result<std::shared_ptr<Probe>> {
    if (part.units[share] == vocabulary_ && vocab_ != nullptr) return vocab_;
    ASSIGN_OR_RETURN(auto made, probe({.vocab_rows = part.units[share]}));
    return std::shared_ptr<Probe>(std::move(made));
  };
  const auto add = [&](Probe* of, std::vector<Timing>* timings) {
    for (const uint32_t r : rows) timings->push_back({of, part.cut, {.rows = r}, false, part.behind_layers});
  };
  ASSIGN_OR_RETURN(const std::vector<Times> times, times_of_shares(part.units.size(), make, add));
  for (size_t u = 0; u < part.units.size(); ++u) {
    std::vector<double>& line = table.ns.emplace_back();
    const double waited_ns = part.behind_layers ? wait_ns_ : 0;
    for (size_t r = 0; r < rows.size(); ++r) line.push_back(std::max(0.0, times[u * rows.size() + r].ns - waited_ns));
  }
  table.make_monotone();
  return ok_status();
}

// Both parts of a split layer, of like shares: attention and what `share` says, which goes to the table `other`. The
// attention's table is filled by the first that is measured with it.
Status DeviceMeasurer::measure_parts(DeviceProfile* profile, CostTable DeviceProfile::*other,
                                     const std::vector<int64_t>& units, int64_t ProbeShare::*share) {
  if (units.empty()) return ok_status();  // the model has none
  const std::vector<int64_t> heads = unit_points(axes_.kv_heads, 1, options_.brief);
  const std::vector<uint32_t> rows = row_points_of(rows_max_);
  const size_t shares = std::max(heads.size(), units.size());
  const auto at = [&](size_t points, size_t i) {
    return points - std::min(points, shares - i);
  };  // the last is the whole
  const auto make = [&](size_t i) -> Result<std::shared_ptr<Probe>> {
    ProbeShare both{.layers = layers_, .kv_heads = heads[at(heads.size(), i)]};
    both.kv_blocks = rows.back() / Probe::kBlockSize + 1;
    both.*share = units[at(units.size(), i)];
    ASSIGN_OR_RETURN(auto made, probe(both));
    if (attends()) RETURN_IF_ERROR(through(options_.gate, [&] { return made->write_kv(rows.back()); }));
    return std::shared_ptr<Probe>(std::move(made));
  };
  const auto add = [&](Probe* of, std::vector<Timing>* timings) {
    for (const uint32_t r : rows) timings->push_back({of, MOTLEY_CUT_FFN_PART, prompt_of(r), true});
  };
  ASSIGN_OR_RETURN(const std::vector<Times> times, times_of_shares(shares, make, add));
  const auto fill = [&](CostTable* table, const std::vector<int64_t>& points, const auto& ns_of) {
    if (!table->empty()) return;
    table->rows.assign(rows.begin(), rows.end());
    table->units = points;
    table->ns.assign(points.size(), std::vector<double>(rows.size()));
    for (size_t i = 0; i < shares; ++i) {  // a larger share overwrites a smaller one of the same units
      for (size_t r = 0; r < rows.size(); ++r)
        table->ns[at(points.size(), i)][r] = ns_of(times[i * rows.size() + r], points[at(points.size(), i)], rows[r]);
    }
    table->make_monotone();
  };
  fill(&profile->attention, heads, [&](const Times& t, int64_t kv_heads, uint32_t r) {
    const double read = profile->chunk_context_ns.value_or(0) * static_cast<double>(kv_heads) * reads_of(prompt_of(r));
    return std::max(0.0, t.ns - read);
  });
  fill(&(profile->*other), units, [](const Times& t, int64_t, uint32_t) { return t.ffn_ns; });
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

// All rows, if a layer is soon done with them, as seen of the lesser of two runs of a few. Else no more than these:
// beyond, tables go on as between their last two points.
Result<uint32_t> DeviceMeasurer::brief_rows(Probe& layer) {
  const uint32_t few = std::min(kTurnRowsMax, rows_max_);
  const auto run = [&] { return layer.time_ns(MOTLEY_CUT_STAGE, prompt_of(few), 1); };
  ASSIGN_OR_RETURN(const double first, through(options_.gate, run));
  ASSIGN_OR_RETURN(const double second, through(options_.gate, run));
  return std::min(first, second) * rows_max_ / few > kBriefRunNs ? few : rows_max_;
}

// A layer among others, as whole programs of several: on rows of a prompt; and what reading the KV pool adds, of one
// sequence's rows and of rows of sequences of their own, by how many there are, and what these take beside as many of a
// prompt.
Status DeviceMeasurer::measure_layer(DeviceProfile* profile) {
  ProbeShare whole{.layers = layers_, .whole = true};
  if (sparing_) whole.kv_blocks = kFewBlocks;
  ASSIGN_OR_RETURN(several_, probe(whole));
  Probe* single = several_.get();
  std::unique_ptr<Probe> first;
  if (!sparing_) {
    whole.layers.count = 1;
    ASSIGN_OR_RETURN(first, probe(whole));
    single = first.get();
  }
  RETURN_IF_ERROR(through(options_.gate, [&]() -> Status {
    RETURN_IF_ERROR(several_->write_kv(kContextReads));
    return single->write_kv(options_.rows_max);
  }));
  if (options_.brief && !options_.virtual_time) {
    ASSIGN_OR_RETURN(rows_max_, brief_rows(*single));
  }
  // Programs that are sent for take long beside a layer, and rows of a prompt may be read to by other kernels.
  std::vector<Timing> timings;
  const auto timing = [&](const ProbeLoad& load) {
    const bool apart = load.rows > kTurnRowsMax && !own_memory_;
    Probe* const of = apart ? single : several_.get();
    timings.push_back({of, MOTLEY_CUT_STAGE, load});
    return timings.size() - 1;
  };
  const std::vector<uint32_t> rows = row_points_of(rows_max_);
  for (const uint32_t r : rows) timing(prompt_of(r));
  const ChunkLoads chunk = chunk_loads(model_, layers_, own_memory_, rows_max_, several_->positions());
  const size_t chunk_near = timing(chunk.near), chunk_far = timing(chunk.far);
  const uint32_t seen = std::min(kMeasuredContext, several_->positions());
  std::vector<std::pair<size_t, size_t>> sequences;  // that see little, and much
  for (const uint32_t r : kContextRows) {
    if (r > rows_max_) break;
    profile->context.rows.push_back(r);
    profile->sequences.rows.push_back(r);
    const size_t near = timing({r, kNear}), far = timing({r, std::min(seen, kContextReads / r)});
    sequences.emplace_back(near, far);
  }
  const bool mixes = own_memory_ && any_rows_ && rows_max_ >= kMixedRows;
  if (mixes) timing(mixed_load());
  ASSIGN_OR_RETURN(const std::vector<Times> times, times_of(timings));
  const double program = profile->embed.ns.back().front(), heads = static_cast<double>(axes_.kv_heads);
  std::vector<double> ns;
  for (size_t i = 0; i < times.size(); ++i)
    ns.push_back(std::max(0.0, times[i].ns - program) / (timings[i].probe == single ? 1 : layers_.count));
  const auto per_read = [&](size_t near, size_t far) {
    const double more = std::max(1.0, reads_of(timings[far].load) - reads_of(timings[near].load));
    return std::max(0.0, ns[far] - ns[near]) / (more * heads);
  };
  double chunk_read = per_read(chunk_near, chunk_far);
  for (size_t i = 0; i < rows.size(); ++i)  // a part of what a prompt's rows take, however those two were disturbed
    if (timings[i].load.prompt && ns[i] > 0)
      chunk_read = std::min(chunk_read, ns[i] / (heads * reads_of(timings[i].load)));
  profile->chunk_context_ns = chunk_read;
  CostTable& table = profile->layer = {{rows.begin(), rows.end()}, {1}, {{}}};
  for (size_t i = 0; i < rows.size(); ++i)
    table.ns[0].push_back(std::max(0.0, ns[i] - chunk_read * heads * reads_of(timings[i].load)));
  table.make_monotone();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto [near, far] = sequences[i];
    const double read = per_read(near, far);
    const double more = ns[near] - heads * read * reads_of(timings[near].load) -
                        table.at(static_cast<double>(profile->context.rows[i]), 1);
    profile->context.values.push_back(read);
    profile->sequences.values.push_back(std::max(0.0, more) / heads);
  }
  if (mixes) profile->mixed = mixed_of(*profile, ns.back());
  return ok_status();
}

// As in the profile, of a layer that took so long.
double DeviceMeasurer::mixed_of(const DeviceProfile& profile, double ns) const {
  const ProbeLoad decoding{.rows = kMixedDecoding, .context = kNear};
  const double reads = profile.chunk_context_ns.value_or(0) * reads_of(prompt_of(kMixedRows - kMixedDecoding)) +
                       profile.context.at(kMixedDecoding) * reads_of(decoding) + profile.sequences.at(kMixedDecoding);
  const double more = ns - profile.layer.at(kMixedRows, 1) - static_cast<double>(axes_.kv_heads) * reads;
  const double part = more / std::max(1.0, profile.layer.at(kMixedDecoding, 1));
  return part < kMixedLeast ? 0 : std::min(part, kMixedMax);
}

// The same of a device that does not attend: the program between two meetings with its partner, waited for.
Status DeviceMeasurer::measure_dense_layer(DeviceProfile* profile) {
  if (layers_.count < 2) return ok_status();  // none lies between two
  ASSIGN_OR_RETURN(several_, probe({.layers = layers_, .whole = true}));
  const std::vector<uint32_t> rows = row_points_of(rows_max_);
  std::vector<Timing> timings;
  for (const uint32_t r : rows) timings.push_back({several_.get(), MOTLEY_CUT_POSTPRE, prompt_of(r)});
  ASSIGN_OR_RETURN(const std::vector<Times> times, times_of(timings));
  CostTable& table = profile->layer;
  table.rows.assign(rows.begin(), rows.end());
  table.units = {1};
  table.ns.emplace_back();
  for (const Times& each : times) table.ns[0].push_back(each.ns);
  table.make_monotone();
  return ok_status();
}

// No 32; 128 where prompts may be read to by other kernels than fewer rows.
std::vector<uint32_t> DeviceMeasurer::row_points_of(uint32_t rows_max) const {
  std::vector<uint32_t> rows;
  const uint32_t most = options_.brief ? kTurnRowsMax : rows_max;
  for (uint32_t r = 1; r < rows_max && r <= most; r *= options_.brief || r == 16 || (r == 64 && !own_memory_) ? 4 : 2)
    rows.push_back(r);
  rows.push_back(rows_max);
  if (any_rows_) return rows;
  const std::vector<uint32_t>& timed = probing_.buckets;
  const auto last = std::lower_bound(timed.begin(), timed.end(), rows_max);
  return {timed.begin(), last == timed.end() ? last : std::next(last)};
}

Status DeviceMeasurer::measure_head(DeviceProfile* profile) {
  RETURN_IF_ERROR(measure_sampling(profile));
  if (sparing_) vocab_.reset();
  const bool behind_layers = attends() && !options_.virtual_time && !sparing_ && !own_memory_;
  return measure({MOTLEY_CUT_HEAD, &profile->head, probing_.logit_rows_max, unit_points(vocabulary_, 1, options_.brief),
                  behind_layers});
}

// What a row adds: the program's own time is that of any.
Status DeviceMeasurer::measure_sampling(DeviceProfile* profile) {
  if (vocab_->programs(MOTLEY_CUT_SAMPLE) == 0) return ok_status();
  const uint32_t rows = std::min(probing_.logit_rows_max, rows_max_);
  ASSIGN_OR_RETURN(const double one, time_ns(*vocab_, MOTLEY_CUT_SAMPLE, {.rows = 1}));
  ASSIGN_OR_RETURN(const double many, time_ns(*vocab_, MOTLEY_CUT_SAMPLE, {.rows = rows}));
  profile->sample_ns = static_cast<int64_t>(std::max(0.0, many - one) / std::max(rows - 1, 1u));
  return ok_status();
}

// What the smallest program takes where it is waited for, and after a pause, beside what it takes behind another.
Status DeviceMeasurer::measure_wake(DeviceProfile* profile) {
  if (options_.virtual_time) return ok_status();  // there nothing falls asleep
  if (vocab_->programs(MOTLEY_CUT_EMBED) == 0) return ok_status();
  ASSIGN_OR_RETURN(const double busy, time_ns(*vocab_, MOTLEY_CUT_EMBED, {}));
  const auto alone = [&](std::chrono::milliseconds pause) -> Result<double> {
    std::vector<double> samples;
    for (int i = 0; i < kWakeSamples; ++i) {
      std::this_thread::sleep_for(pause);
      ASSIGN_OR_RETURN(const double ns, vocab_->time_ns(MOTLEY_CUT_EMBED, {}, 1));
      samples.push_back(ns);
    }
    return std::max(0.0, lower_median(std::move(samples)) - busy);
  };
  ASSIGN_OR_RETURN(wait_ns_, through(options_.gate, [&] { return alone({}); }));
  profile->wait_ns = wait_ns_;
  ASSIGN_OR_RETURN(profile->wake_ns, through(options_.gate, [&] { return alone(kPause); }));
  return ok_status();
}

Status DeviceMeasurer::measure_copies(DeviceProfile* profile) {
  const uint64_t row_bytes = uint64_t{model_.config().hidden} * sizeof(float), most = kCopiedRows * row_bytes;
  ASSIGN_OR_RETURN(CopySide side, CopySide::create(*device_.device, most, options_.virtual_time));
  ASSIGN_OR_RETURN(profile->copy, side.cost(row_bytes, most, options_.virtual_time ? kVirtualSamples : kCopySamples));
  return ok_status();
}

Status DeviceMeasurer::measure_parts(DeviceProfile* profile) {
  RETURN_IF_ERROR(measure_parts(profile, &DeviceProfile::ffn,
                                unit_points(axes_.ffn_columns, kColumnGrain, options_.brief),
                                &ProbeShare::ffn_columns));
  return measure_parts(profile, &DeviceProfile::experts, unit_points(axes_.experts, 1, options_.brief),
                       &ProbeShare::experts);
}

Result<DeviceProfile> DeviceMeasurer::run() {
  const motley_device_desc& desc = device_.description.desc;
  DeviceProfile profile;
  profile.name = device_.description.name;
  profile.kind = kind_name(desc.kind);
  if (desc.memory_group != 0) profile.memory_group = fmt::format("memory {}", desc.memory_group);
  profile.memory_total = desc.memory_total;
  profile.memory_free = desc.memory_free;
  profile.own_memory = own_memory_;
  profile.attends = attends();
  profile.attends_partially = (desc.caps & MOTLEY_CAP_PARTIAL_ATTENTION) != 0;
  profile.holds_vocabulary = any_rows_;
  if (!any_rows_) profile.buckets.assign(buckets_.begin(), buckets_.end());
  if (any_rows_) {
    ASSIGN_OR_RETURN(vocab_, vocabulary_probe());
    RETURN_IF_ERROR(measure({MOTLEY_CUT_EMBED, &profile.embed, options_.rows_max, {vocabulary_}}));
    RETURN_IF_ERROR(measure_wake(&profile));
    if (sparing_) RETURN_IF_ERROR(measure_head(&profile));
  }
  RETURN_IF_ERROR(attends() ? measure_layer(&profile) : measure_dense_layer(&profile));
  if (sparing_) several_.reset();
  RETURN_IF_ERROR(measure_parts(&profile));
  if (any_rows_ && !sparing_) RETURN_IF_ERROR(measure_head(&profile));
  several_.reset();
  RETURN_IF_ERROR(through(options_.gate, [&] { return measure_copies(&profile); }));
  profile.packed_ratio = weights_.ratio(model_);
  profile.format = weights_.text();
  return profile;
}

// Of the program that measure_layer(), or measure_dense_layer(), has timed.
Result<double> DeviceMeasurer::slowdown(const DeviceProfile& known) {
  const double heads = static_cast<double>(axes_.kv_heads);
  if (known.layer.empty() || (!attends() && layers_.count < 2))
    return error(MOTLEY_UNIMPLEMENTED, "{} has no program that tells", known.name);
  uint32_t rows = std::min(kTurnRowsMax, rows_max_);
  if (!any_rows_) {
    rows = *std::lower_bound(probing_.buckets.begin(), std::prev(probing_.buckets.end()), rows);
    probing_.buckets = {rows};
  }
  ASSIGN_OR_RETURN(several_, probe({.layers = layers_, .whole = true}));
  if (attends()) RETURN_IF_ERROR(through(options_.gate, [&] { return several_->write_kv(rows); }));
  const ProbeLoad load = prompt_of(rows);
  double said = known.layer.at(rows, 1);
  if (attends())
    said = layers_.count * (said + known.chunk_context_ns.value_or(0) * heads * reads_of(load)) +
           known.embed.at(1, axes_.vocab);
  ASSIGN_OR_RETURN(const double ns, time_ns(*several_, attends() ? MOTLEY_CUT_STAGE : MOTLEY_CUT_POSTPRE, load));
  return ns / std::max(said, 1.0);
}

template <typename T, typename Work>
Result<T> on_its_cores(const Model& model, const MeasuredDevice& device, const MeasureOptions& options,
                       const Work& work, bool sparing = false) {
  Result<T> answer = T{};
  std::thread driver([&] {
    run_on(device.cores);
    auto measurer = DeviceMeasurer::create(model, device, options, sparing);
    answer = measurer.ok() ? work(**measurer) : Result<T>(measurer.error());
  });
  driver.join();
  if (!answer.ok()) return answer.error().annotate(device.description.name);
  return answer;
}

}  // namespace

Result<DeviceProfile> measure_device(const Model& model, const MeasuredDevice& device, const MeasureOptions& options) {
  const auto run = [](DeviceMeasurer& measurer) { return measurer.run(); };
  return until_all_compile(device.uncompiled, [&] {
    auto profile = on_its_cores<DeviceProfile>(model, device, options, run);
    if (profile.error().code() != MOTLEY_RESOURCE_EXHAUSTED) return profile;
    auto roughly = on_its_cores<DeviceProfile>(model, device, options, run, true);
    if (!roughly.ok()) return roughly;
    roughly->roughly_with = std::max<uint64_t>(device.description.desc.memory_free, 1);
    log_info("{}; it was measured one thing after another, and more roughly", profile.error().message());
    return roughly;
  });
}

Result<double> measure_slowdown(const Model& model, const MeasuredDevice& device, const DeviceProfile& known,
                                const MeasureOptions& options) {
  return on_its_cores<double>(model, device, options,
                              [&](DeviceMeasurer& measurer) { return measurer.slowdown(known); });
}

namespace {

// The devices of one memory, each with its part of the layers: as in a step, all of them move all weights.
class Group {
 public:
  // `rows_max`: of which each device has been timed.
  Group(size_t devices, const MeasureOptions& options, uint32_t rows_max)
      : options_(options),
        own_(options),
        rows_(rows_of(rows_max)),
        readers_(std::min(kTogetherReaders, rows_max)),
        probes_(devices),
        working_(devices) {
    own_.gate = nullptr;  // they go through it together
  }
  // As many as it was made for, before measure().
  Status add(const Model& model, const MeasuredDevice& device) {
    ASSIGN_OR_RETURN(measurers_.emplace_back(), DeviceMeasurer::create(model, device, own_));
    return ok_status();
  }

  // Alone and together by turns: what else slows the machine for a while slows both. Few rows share the memory's rate,
  // many the cores' clock, or the cores themselves where two are one's threads: the factors may rise or fall.
  Status measure(std::span<DeviceProfile> profiles) {
    const size_t loads = rows_.size() + 1;
    std::vector<std::vector<std::vector<double>>> factors(probes_.size(), std::vector<std::vector<double>>(loads));
    for (int round = 0; round < (options_.virtual_time || options_.brief ? 1 : kTogetherRounds); ++round) {
      std::vector<std::vector<double>> alone(probes_.size()), together(probes_.size());
      // In virtual time a device counts as running while it has a queue.
      for (size_t i = 0; i < probes_.size(); ++i) RETURN_IF_ERROR(time_alone(i, loads, &alone[i]));
      for (size_t i = 0; i < probes_.size(); ++i) RETURN_IF_ERROR(open(i));
      for (size_t load = 0; load < loads; ++load)
        RETURN_IF_ERROR(through(options_.gate, [&] { return time_all(load, &together); }));
      for (size_t i = 0; i < probes_.size(); ++i) {
        probes_[i].reset();
        for (size_t load = 0; load < loads; ++load)
          factors[i][load].push_back(together[i][load] / std::max(alone[i][load], 1.0));
      }
    }
    for (size_t i = 0; i < probes_.size(); ++i) {
      std::vector<double> values;
      for (std::vector<double>& of_load : factors[i])
        values.push_back(std::clamp(lower_median(std::move(of_load)), 1.0, kSlowdownMax));
      log(LogLevel::kDebug,
          "{} beside the others of its memory takes, by rows, and to read, so many times as long: {:.2f}",
          profiles[i].name, fmt::join(values, ", "));
      profiles[i].context_together = values.back();
      values.pop_back();
      profiles[i].together = {{rows_.begin(), rows_.end()}, std::move(values)};
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
    const auto part = [&](int64_t units, int64_t grain) {
      const auto each = units / static_cast<int64_t>(probes_.size()) / grain * grain;
      return std::max(each, std::min(units, grain));
    };
    const ProbeShare share{.layers = measurers_[i]->layers(),
                           .kv_heads = part(axes.kv_heads, 1),
                           .ffn_columns = part(axes.ffn_columns, kColumnGrain),
                           .experts = part(axes.experts, 1)};
    ASSIGN_OR_RETURN(probes_[i], measurers_[i]->probe(share));
    if (!measurers_[i]->attends()) return ok_status();
    return through(options_.gate, [&] { return probes_[i]->write_kv(kContextReads); });
  }
  ProbeLoad readers_near() const { return {.rows = readers_, .context = kNear}; }
  ProbeLoad readers_far() const {
    return {.rows = readers_, .context = std::min(kMeasuredContext, kContextReads / readers_)};
  }
  // Loads are the rows, of a prompt each, and last what sequences of their own read.
  Status time(size_t i, size_t load, std::vector<double>* out) {
    const auto timing = [&](const ProbeLoad& of) {
      return DeviceMeasurer::Timing{probes_[i].get(), MOTLEY_CUT_FFN_PART, of, true};
    };
    if (load < rows_.size()) {
      const auto parts = timing(prompt_of(rows_[load]));
      ASSIGN_OR_RETURN(const auto times, measurers_[i]->times_of(std::span(&parts, 1)));
      out->push_back(times[0].sum());
      return ok_status();
    }
    const DeviceMeasurer::Timing ends[] = {timing(readers_near()), timing(readers_far())};
    ASSIGN_OR_RETURN(const auto times, measurers_[i]->times_of(ends));
    // Where reading is little beside the rest, the difference is noise: what is read counts with the rest.
    const double reading = times[1].ns - times[0].ns;
    out->push_back(reading > times[0].ns * kReadingLeast ? reading : times[1].ns);
    return ok_status();
  }
  Status time_alone(size_t i, size_t loads, std::vector<double>* out) {
    Status ended;
    std::thread thread([&] {
      run_on(measurers_[i]->device().cores);
      ended = open(i);
      for (size_t load = 0; load < loads && ended.ok(); ++load)
        ended = through(options_.gate, [&] { return time(i, load, out); });
      probes_[i].reset();
    });
    thread.join();
    return ended;
  }
  // All at the same time: who is done goes on until all are.
  Status time_all(size_t load, std::vector<std::vector<double>>* out) {
    std::vector<Status> ended(probes_.size());
    std::vector<std::thread> threads;
    working_ = probes_.size();
    for (size_t i = 0; i < probes_.size(); ++i) {
      threads.emplace_back([&, i] {
        run_on(measurers_[i]->device().cores);
        ended[i] = time(i, load, &(*out)[i]);
        --working_;
        std::vector<double> ignored;
        while (!options_.virtual_time && working_ > 0 && ended[i].ok()) ended[i] = time(i, load, &ignored);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Status& status : ended) RETURN_IF_ERROR(status);
    return ok_status();
  }

  const MeasureOptions& options_;
  MeasureOptions own_;  // each device's
  const std::vector<uint32_t> rows_;
  const uint32_t readers_;
  std::vector<std::unique_ptr<DeviceMeasurer>> measurers_;
  std::vector<std::unique_ptr<Probe>> probes_;
  std::atomic<size_t> working_;  // devices that are still being timed
};

}  // namespace

Status measure_together(const Model& model, std::span<const MeasuredDevice> devices, const MeasureOptions& options,
                        std::span<DeviceProfile> profiles) {
  if (devices.size() < 2) return ok_status();
  uint32_t rows_max = options.rows_max;
  for (const DeviceProfile& profile : profiles) {
    if (!profile.layer.empty()) rows_max = std::min(rows_max, static_cast<uint32_t>(profile.layer.rows.back()));
  }
  Group group(devices.size(), options, rows_max);
  for (const MeasuredDevice& device : devices) RETURN_IF_ERROR(group.add(model, device));
  return group.measure(profiles);
}

}  // namespace motley
