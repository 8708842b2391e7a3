// LaneRunner: the drivers of one lane. Steps that are pushed run in their order on each of its ways, which they take in
// turn; results are handed in in the order of the pushes, though a step on one way may overtake one on another.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"
#include "runtime/device_part.hpp"
#include "runtime/driver.hpp"
#include "runtime/flight.hpp"
#include "runtime/lane_links.hpp"
#include "runtime/runtime_options.hpp"
#include "runtime/step_totals.hpp"

namespace motley {

// Seconds that devices of fixed rows expect to compile their parts of the placement; of those that expect none,
// nothing. Errors as of LaneRunner::create(); `failed` is told the device where its limits leave it no row count.
Result<std::map<std::string, double>> compile_seconds(const Model& model, const Placement& placement,
                                                      std::span<const NamedDevice> devices,
                                                      const RuntimeOptions& options, std::string* failed = nullptr);

class LaneRunner {
 public:
  // Packs what `holdings` does not have, compiles, makes the drivers. INVALID_ARGUMENT for a lane that does not fit the
  // model or names a device that is not there. All but the placement are borrowed.
  static Result<std::unique_ptr<LaneRunner>> create(const Model& model, const Placement& placement, size_t lane,
                                                    std::span<const NamedDevice> devices, const RuntimeOptions& options,
                                                    Holdings* holdings, const Clock& clock);

  // Further steps of the same sequence that may be under way; steps of sequences that differ.
  uint32_t lookahead() const { return lookahead_; }
  uint32_t pipeline() const { return pipeline_; }
  uint32_t rows_max() const { return rows_max_; }  // of a step
  // Row counts that cost no padding; empty = any.
  const std::vector<uint32_t>& buckets() const { return buckets_; }
  // Of each device's parts of steps. Any thread.
  TotalsByDevice totals() const;
  size_t drivers() const { return ways_.size() * ways_[0].size(); }

  // `hand_in` gets each step once, when it and all before it have ended; on some driver's thread, one at a time.
  void start(const Driver::Events& events, std::function<void(Flight&)> hand_in);
  // By one thread.
  void push(std::shared_ptr<Flight> flight);

  // Before start() and after all threads have ended, or of what Driver says is for any thread.
  template <typename Visit>
  void each_driver(const Visit& visit) const {
    for (const auto& way : ways_) {
      for (const auto& driver : way) visit(*driver);
    }
  }

 private:
  LaneRunner() = default;
  Status make_drivers(const Model& model, const Lane& lane, std::span<const NamedDevice> devices,
                      const RuntimeOptions& options, const std::vector<std::shared_ptr<const DevicePart>>& made,
                      const Clock& clock);
  void take_rows(const DevicePart& part, bool any_rows);
  void ended(Flight& flight);

  uint32_t lookahead_ = 0, pipeline_ = 1, rows_max_ = UINT32_MAX;
  std::vector<uint32_t> buckets_;
  std::vector<LanePart> parts_;
  std::function<void(Flight&)> hand_in_;
  std::mutex mutex_;                             // guards the two below
  std::deque<std::shared_ptr<Flight>> flights_;  // pushed, not handed in
  bool handing_in_ = false;                      // a thread is at that
  size_t next_way_ = 0;                          // the pushing thread's
  // Drivers of all parts, by way; their threads use the above.
  std::vector<std::vector<std::unique_ptr<Driver>>> ways_;
};

}  // namespace motley
