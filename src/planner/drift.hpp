// Drift: devices that become slower or faster than they were when they were measured. Pure, no clock of its own.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "planner/model_shape.hpp"
#include "planner/placement.hpp"
#include "planner/profile.hpp"

namespace motley {

// What an executor has run of one lane so far.
struct StepsDone {
  double steps = 0, rows = 0;
  double decoding = 0;                // of the rows: those that are their sequence's only one in the step
  double heads = 0;                   // rows whose logits were asked for
  double reads = 0, chunk_reads = 0;  // KV positions seen by rows that decode, and by the others
};
// [k] of the steps of 2^k rows and more, but fewer than 2^(k+1).
using StepsByRows = std::vector<StepsDone>;

// How long a device is busy with steps of a placement's lane, as its tables say.
struct BusyModel {
  std::string device;
  std::vector<double> step_ns;  // [k] of 2^k rows of one prompt, one of whose logits are asked for
  double decoding_ns = 0, head_ns = 0, read_ns = 0, chunk_read_ns = 0;  // more, for each
  double of(const StepsByRows& done) const;
};

// Of each device of the lane, from a few predicted steps of up to `rows_max` rows. Errors as of predict_step_ns().
Result<std::vector<BusyModel>> busy_models(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                                           size_t lane, uint32_t rows_max);

// By device: its times, divided by what they were. Who is not there has not changed.
using DriftFactors = std::map<std::string, double, std::less<>>;

// Of those that have become slower: who waits for a device is not to be less patient because it was fast for a while.
DriftFactors only_slower(DriftFactors factors);

// With every time of these devices multiplied.
PlanInput with_drift(PlanInput input, const DriftFactors& factors);

struct DriftOptions {
  int64_t window_ns = 250'000'000;    // over which busy times are compared
  double busy_ns_least = 50'000'000;  // predicted in a window, else it goes on: little says little
  // A factor's, either way, until something is done about it: more than noise of 15 % makes of two windows (1.15 /
  // 0.85), less than what it leaves of a half (2 * 0.85 / 1.15).
  double changed_least = 1.4;
  uint32_t windows = 4;  // in a row that say so
};

// Compares busy times of windows with those predicted. The first windows of a device say what its tables are off by, if
// that is little: by more, the device has changed since it was measured. They are the measure of the later ones. Not
// thread-safe.
class DriftWatch {
 public:
  explicit DriftWatch(const DriftOptions& options = {}) : options_(options) {}

  // Busy times so far, as counted by the device and as its model says; both only grow, but may begin anew.
  void observe(std::string_view device, int64_t now_ns, double busy_ns, double predicted_ns);
  // Of a device that runs no steps: what it was measured to take, of what its tables say. Whether that differs from
  // what was known of it, by as much as counts.
  bool tell(std::string_view device, double factor);
  // Of the last windows.
  DriftFactors factors() const;
  // Of all windows since plan_is_for(); where there are none, of the last ones.
  DriftFactors averages() const;
  // Some device differs, by enough and for long enough, from what was known when it was last looked at.
  bool changed() const;
  void looked();
  // The same, from what the plan in force was made for.
  bool off_plan() const;
  // Whether averages() say so.
  bool off_plan_on_average() const;
  void plan_is_for(const DriftFactors& factors);
  // What comes now has nothing to do with what was seen of the windows that are open.
  void begin_anew();

 private:
  // How far from a factor, and for how many windows on end.
  struct Since {
    double factor = 1;
    uint32_t windows = 0;
  };
  struct Device {
    int64_t since_ns = 0;
    double busy_ns = 0, predicted_ns = 0;  // at that time
    bool begun = false;
    double usual = 0;  // ratio of the first windows
    uint32_t seen = 0;
    bool told = false;
    bool known() const;  // what is usual
    double factor = 1;
    Since look, plan;
    double busy_sum_ns = 0, predicted_sum_ns = 0;  // since the plan
    double average() const {
      return predicted_sum_ns > 0 && usual > 0 ? busy_sum_ns / predicted_sum_ns / usual : factor;
    }
  };
  void close(Device& device, double busy_ns, double predicted_ns) const;
  void take_usual(Device& device) const;
  bool far(double a, double b) const;
  bool any(Since Device::*since) const;

  const DriftOptions options_;
  std::map<std::string, Device, std::less<>> devices_;
};

}  // namespace motley
