// StepTrouble: steps of a lane that fail one after another. One that fails takes its requests with it and no more is
// wrong for sure; several on end, and none of the lane that succeeds between them, are told to whoever asks how things
// are, and logged once. Told for a while only: where nobody sends requests any more because of it, nobody would see
// that it is over. Steps of another lane say nothing of it: they run on other devices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/log.hpp"
#include "base/status.hpp"
#include "engine/executor.hpp"

namespace motley {

inline constexpr uint32_t kFailedStepsTold = 3;
inline constexpr int64_t kTroubleToldNs = 30'000'000'000;  // after the last of them

// Not thread-safe.
class StepTrouble {
 public:
  explicit StepTrouble(size_t lanes) : lanes_(lanes) {}

  // Of the executor that takes over. What is known of a lane stays until a step of it succeeds.
  void set_lanes(size_t lanes) { lanes_.resize(lanes); }

  void ended(uint32_t lane, StepId step, const Status& status, int64_t now_ns) {
    Lane& of = lanes_[lane];
    if (status.ok()) {
      if (of.failed >= kFailedStepsTold) log_info("steps{} succeed again, after {} that failed", name(lane), of.failed);
      of.failed = 0;
      return;
    }
    ++of.failed;
    of.last = status;
    of.last_ns = now_ns;
    if (of.failed <= kFailedStepsTold) log_error("step {}{} failed: {}", step, name(lane), status.to_string());
    if (of.failed == kFailedStepsTold)
      log_error("{} steps{} on end have failed; no more of them are logged until one succeeds{}", of.failed, name(lane),
                lanes_.size() > 1 ? ", and requests go elsewhere where they can" : "");
  }
  // OK, or why the steps of a lane fail.
  Status told(int64_t now_ns) const {
    for (uint32_t lane = 0; lane < lanes_.size(); ++lane) {
      const Lane& of = lanes_[lane];
      if (of.failed < kFailedStepsTold || now_ns - of.last_ns >= kTroubleToldNs) continue;
      return of.last.annotate(fmt::format("the last {} steps{} failed", of.failed, name(lane)));
    }
    return ok_status();
  }

 private:
  struct Lane {
    uint32_t failed = 0;  // on end
    Status last;
    int64_t last_ns = 0;
  };
  std::string name(uint32_t lane) const { return lanes_.size() == 1 ? "" : fmt::format(" of lane {}", lane); }

  std::vector<Lane> lanes_;
};

}  // namespace motley
