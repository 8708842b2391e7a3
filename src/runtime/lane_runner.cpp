#include "runtime/lane_runner.hpp"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "base/affinity.hpp"
#include "runtime/buckets.hpp"

namespace motley {
namespace {

constexpr size_t kWaysWithPartners = 2;

// Each device of the lane has some, and no two the same one.
bool have_own_cores(const std::vector<LanePart>& parts, std::span<const NamedDevice> devices) {
  std::vector<std::span<const int>> cores;
  for (const NamedDevice& device : devices) {
    if (std::any_of(parts.begin(), parts.end(), [&](const LanePart& part) { return part.device == device.name; }))
      cores.push_back(device.cores);
  }
  return distinct_cores(cores);
}

// Whether somebody computes on it, or attends, layer by layer: then whole stages are programs of a layer each there,
// too, so that no exchange of values waits for a step.
bool by_layers(const Placement& placement, const std::string& device) {
  for (const Lane& lane : placement.lanes) {
    for (const Stage& stage : lane.stages) {
      for (const Shard& shard : stage.shards)
        for (const Attendant& attendant : attendants_of(lane, shard))
          if (shard.device == device || attendant.device == device) return true;
    }
  }
  return false;
}

Result<ShardGraph> graph_of(const Model& model, const Placement& placement, const Lane& lane, const LanePart& part) {
  const auto programs = by_layers(placement, part.device) ? LayerPrograms::kEach : LayerPrograms::kTogether;
  return shard_graph(model, lane, part.stage, part.shard, part.role, part.section, programs);
}

bool contains(const std::vector<uint32_t>& all, uint32_t rows) {
  return std::find(all.begin(), all.end(), rows) != all.end();
}

std::string text_of(const std::vector<motley_range>& ranges) {
  std::string text;
  for (const motley_range& range : ranges) text += fmt::format("{}-{} ", range.begin, range.end);
  return text;
}

// What the device compiles for the placement: what several lanes have alike, the same of the same weights, once.
Result<std::vector<std::unique_ptr<Segment>>> segments_on(const Model& model, const Placement& placement,
                                                          const std::string& device) {
  std::vector<std::unique_ptr<Segment>> all;
  std::set<std::string> known;
  for (const Lane& lane : placement.lanes) {
    for (const LanePart& part : lane_parts(lane)) {
      if (part.device != device) continue;
      ASSIGN_OR_RETURN(const ShardGraph graph, graph_of(model, placement, lane, part));
      for (auto& segment : segments_of(graph)) {
        if (segment == nullptr) continue;
        std::string key = fmt::format("{:x}", segment->view().hash);
        for (const int32_t id : segment->graph_weights()) {
          const ShardWeight& weight = graph.weights[static_cast<size_t>(id)];
          key += fmt::format(" {} of {}by {}of {}", weight.source, text_of(weight.rows), text_of(weight.cols),
                             text_of(weight.experts));
        }
        if (known.insert(std::move(key)).second) all.push_back(std::move(segment));
      }
    }
  }
  return all;
}

// As many of those that it was measured with (else of those for one lane of all layers) as the limits allow of the
// whole placement.
Result<std::vector<uint32_t>> buckets_on(const Model& model, const Placement& placement, const NamedDevice& device,
                                         const RuntimeOptions& options) {
  if (device.any_rows) return std::vector{options.rows_max};
  BucketOptions limits{.any_rows = false,
                       .rows_max = options.rows_max,
                       .compile_seconds_max = options.compile_seconds_max,
                       .program_bytes_max = device.program_bytes_max,
                       .without = rows_of(device.uncompiled),
                       .load = options.load};
  if (const auto measured = options.row_counts.find(device.name); measured != options.row_counts.end()) {
    limits.of = measured->second;
  } else {
    ASSIGN_OR_RETURN(Buckets one, buckets_of(model, *device.device, limits));
    limits.of = std::move(one.rows);
  }
  ASSIGN_OR_RETURN(const auto segments, segments_on(model, placement, device.name));
  auto found = buckets_of(segments, *device.device, limits);
  if (found.error().code() == MOTLEY_RESOURCE_EXHAUSTED)  // no matter of what is free now
    return error(MOTLEY_UNIMPLEMENTED, "in all lanes of the plan: {}", found.error().message());
  RETURN_IF_ERROR(found.error());
  return std::move(found->rows);
}

PartOptions part_options(const Placement& placement, const Lane& lane, const LanePart& part, const NamedDevice& device,
                         const RuntimeOptions& options) {
  PartOptions held;
  held.pool = lane.pool;
  held.stop = options.stop;
  const uint32_t blocks = part.section == 0 ? lane.kv_blocks : lane.sections[part.section - 1].blocks;
  held.kv = {blocks, placement.block_size, placement.kv_dtype};
  for (uint32_t before = 0; before < part.section; ++before)
    held.block_begin += before == 0 ? lane.kv_blocks : lane.sections[before - 1].blocks;
  if (!device.any_rows) {
    held.shares_programs = true;
    held.uncompiled = device.uncompiled;
    held.cache = options.programs;
    held.identity = device.identity;
  }
  return held;
}

// Where none of its row counts compiles, of others of those that the device was measured with.
Result<std::shared_ptr<const DevicePart>> made_part(const Model& model, const Placement& placement, size_t lane,
                                                    const LanePart& part, const NamedDevice& device,
                                                    const RuntimeOptions& options, Holdings* holdings) {
  PartOptions held = part_options(placement, placement.lanes[lane], part, device, options);
  const auto measured = options.row_counts.find(device.name);
  for (;;) {
    ASSIGN_OR_RETURN(held.buckets, buckets_on(model, placement, device, options));
    const std::vector<uint32_t> known = rows_of(device.uncompiled);
    held.others = measured != options.row_counts.end() &&
                  std::any_of(measured->second.begin(), measured->second.end(),
                              [&](uint32_t rows) { return !contains(held.buckets, rows) && !contains(known, rows); });
    ASSIGN_OR_RETURN(ShardGraph graph, graph_of(model, placement, placement.lanes[lane], part));
    if (!placement.lanes[lane].sections.empty() && !graph.kv_layers.empty() && !device.attends_partially)
      return error(MOTLEY_UNIMPLEMENTED, "it cannot attend to a part of a sequence, and the plan wants it to");
    auto created = DevicePart::create(model, *device.device, std::move(graph), held, holdings);
    if (created.ok() || rows_of(device.uncompiled).size() == known.size()) return created;
  }
}

DriverOptions driver_options(const NamedDevice& device, bool others, const RuntimeOptions& options,
                             uint32_t lookahead) {
  DriverOptions made;
  made.name = device.name;
  made.cores = device.cores;
  made.logit_rows_max = options.logit_rows_max;
  made.slots = kTokenSlots;
  made.steps_ahead = lookahead;
  made.queue_depth = device.queue_depth;
  made.virtual_time = options.virtual_time;
  made.simulated = device.simulated;
  made.replaceable = others;
  made.trace = options.trace;
  made.busy = device.busy;
  return made;
}

}  // namespace

Result<std::map<std::string, double>> compile_seconds(const Model& model, const Placement& placement,
                                                      std::span<const NamedDevice> devices,
                                                      const RuntimeOptions& options, std::string* failed) {
  std::map<std::string, double> seconds;
  for (const std::string& name : devices_of(placement)) {
    const NamedDevice* device = find_device(devices, name);
    if (device == nullptr) return invalid_argument("the plan names device {}, which is not opened", name);
    if (device->any_rows) continue;
    const auto buckets = buckets_on(model, placement, *device, options);
    if (!buckets.ok()) {
      if (failed != nullptr) *failed = name;
      return buckets.error().annotate(name);
    }
    ASSIGN_OR_RETURN(const auto segments, segments_on(model, placement, name));
    for (const auto& segment : segments) {
      if (options.programs != nullptr && options.programs->holds(device->identity, segment->view(), *buckets)) continue;
      ASSIGN_OR_RETURN(const QueryResult asked, device->device->query(segment->view(), *buckets));
      if (asked.compile_ns > 0) seconds[name] += static_cast<double>(asked.compile_ns) / 1e9;
    }
  }
  return seconds;
}

// A pipeline keeps as many steps under way as its lane says, else as it has stages, of sequences that differ; one stage
// runs the same sequence's next step behind this one, because the token it needs is there by then. Where somebody
// attends for another, two steps of sequences that differ run side by side, so that both have work, unless the lane
// says that one is faster.
Result<std::unique_ptr<LaneRunner>> LaneRunner::create(const Model& model, const Placement& placement, size_t index,
                                                       std::span<const NamedDevice> devices,
                                                       const RuntimeOptions& options, Holdings* holdings,
                                                       const Clock& clock) {
  const Lane& lane = placement.lanes[index];
  std::unique_ptr<LaneRunner> runner(new LaneRunner);
  runner->parts_ = lane_parts(lane);
  const auto attends = [](const LanePart& part) { return part.role == ShardRole::kAttention; };
  const bool partners = std::any_of(runner->parts_.begin(), runner->parts_.end(), attends);
  runner->ways_.resize(partners ? kWaysWithPartners : 1);
  const auto stages = static_cast<uint32_t>(lane.stages.size()), ways = static_cast<uint32_t>(runner->ways_.size());
  runner->lookahead_ = stages == 1 && ways == 1 ? 1 : 0;
  runner->pipeline_ = lane.micro_batches == 0 ? stages * ways : lane.micro_batches;
  if (stages == 1) runner->pipeline_ = std::min(runner->pipeline_, ways);
  std::vector<std::shared_ptr<const DevicePart>> made;
  for (const LanePart& part : runner->parts_) {
    const NamedDevice* device = find_device(devices, part.device);
    if (device == nullptr) return invalid_argument("the plan names device {}, which is not opened", part.device);
    auto created = made_part(model, placement, index, part, *device, options, holdings);
    if (!created.ok()) {
      if (options.part_failed) options.part_failed(part.device);
      return created.error().annotate(part.device);
    }
    made.push_back(*std::move(created));
    runner->take_rows(*made.back(), device->any_rows);
  }
  RETURN_IF_ERROR(runner->make_drivers(model, lane, devices, options, made, clock));
  return runner;
}

// A step is no larger than any part may run.
void LaneRunner::take_rows(const DevicePart& part, bool any_rows) {
  const std::vector<uint32_t>& counts = part.options().buckets;
  if (!any_rows) buckets_ = buckets_.empty() ? counts : common_row_counts(buckets_, counts);
  rows_max_ = std::min(rows_max_, part.rows_max());
}

// Links and drivers for each way.
Status LaneRunner::make_drivers(const Model& model, const Lane& lane, std::span<const NamedDevice> devices,
                                const RuntimeOptions& options,
                                const std::vector<std::shared_ptr<const DevicePart>>& made, const Clock& clock) {
  const bool own_cores = ways_.size() == 1 && have_own_cores(parts_, devices);
  for (auto& way : ways_) {
    ASSIGN_OR_RETURN(std::vector<DriverLinks> links,
                     make_lane_links(lane, model.config(), options.virtual_link, own_cores));
    for (size_t i = 0; i < parts_.size(); ++i) {
      const NamedDevice& device = *find_device(devices, parts_[i].device);
      auto driver = Driver::create(made[i], std::move(links[i]),
                                   driver_options(device, devices.size() > 1, options, lookahead_), clock);
      if (!driver.ok()) return driver.error().annotate(device.name);
      way.push_back(*std::move(driver));
    }
  }
  return ok_status();
}

// A device with several parts of a step counts it once.
TotalsByDevice LaneRunner::totals() const {
  TotalsByDevice totals;
  for (const auto& way : ways_) {
    std::set<std::string_view> counted;
    for (const auto& driver : way) {
      if (counted.insert(driver->name()).second) add(driver->totals(), &totals[driver->name()]);
    }
  }
  return totals;
}

void LaneRunner::start(const Driver::Events& events, std::function<void(Flight&)> hand_in) {
  hand_in_ = std::move(hand_in);
  each_driver([&](Driver& driver) {
    Driver::Events own = events;
    own.finished = [this](Flight& flight) { ended(flight); };
    driver.start(std::move(own));
  });
}

void LaneRunner::push(std::shared_ptr<Flight> flight) {
  const auto& way = ways_[std::exchange(next_way_, (next_way_ + 1) % ways_.size())];
  flight->drivers = static_cast<uint32_t>(way.size());
  {
    std::lock_guard lock(mutex_);
    flights_.push_back(flight);
  }
  for (const auto& driver : way) driver->push(flight);
}

// Steps on other ways may have been overtaken: who hands in does so for all whose turn it is.
void LaneRunner::ended(Flight& flight) {
  std::unique_lock lock(mutex_);
  flight.ended = true;
  if (std::exchange(handing_in_, true)) return;
  while (!flights_.empty() && flights_.front()->ended) {
    const std::shared_ptr<Flight> next = std::move(flights_.front());
    flights_.pop_front();
    lock.unlock();
    hand_in_(*next);
    lock.lock();
  }
  handing_in_ = false;
}

}  // namespace motley
