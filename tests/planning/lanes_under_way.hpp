// LanesUnderWay: steps that are submitted, and the results of all lanes in the order of their times.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "base/future.hpp"
#include "engine/executor.hpp"

namespace motley::testing {

// Not thread-safe.
class LanesUnderWay {
 public:
  LanesUnderWay(size_t lanes, int64_t now_ns) : lanes_(lanes) {
    for (Lane& lane : lanes_) lane.ended_ns = now_ns;
  }
  void add(uint32_t lane, Future<StepResult> result, int64_t submitted_ns) {
    lanes_[lane].flying.push_back({std::move(result), submitted_ns});
  }
  bool empty() const {
    return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.flying.empty(); });
  }
  // The lane of the first of them to come, and when that is.
  int64_t first_ns() {
    find_first();
    return first_ == nullptr ? INT64_MAX : first_->next_ns;
  }
  std::pair<StepResult, int64_t> take_first() {
    find_first();
    first_->flying.pop_front();
    first_->ended_ns = first_->next_ns;
    return {*std::exchange(first_->next, std::nullopt), first_->ended_ns};
  }

 private:
  void find_first() {
    first_ = nullptr;
    for (Lane& lane : lanes_) {
      if (lane.flying.empty()) continue;
      if (!lane.next) {
        lane.next = lane.flying.front().result.take();
        lane.next_ns = std::max(lane.flying.front().submitted_ns, lane.ended_ns) + lane.next->busy_ns;
      }
      if (first_ == nullptr || lane.next_ns < first_->next_ns) first_ = &lane;
    }
  }
  struct Flying {
    Future<StepResult> result;
    int64_t submitted_ns;
  };
  struct Lane {
    std::deque<Flying> flying;
    std::optional<StepResult> next;  // of the first of them
    int64_t next_ns = 0, ended_ns = 0;
  };
  std::vector<Lane> lanes_;
  Lane* first_ = nullptr;
};

}  // namespace motley::testing
