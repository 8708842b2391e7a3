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

// What an executor has run so far. `reads`: KV positions seen by all rows.
struct StepsDone {
  double steps = 0, rows = 0, reads = 0;
};

// How long a device is busy with a placement's steps, as its tables say.
struct BusyModel {
  std::string device;
  double per_step_ns = 0, per_row_ns = 0, per_read_ns = 0;
  double of(const StepsDone& done) const {
    return done.steps * per_step_ns + done.rows * per_row_ns + done.reads * per_read_ns;
  }
};

// Of each device of the placement's first lane, from a few predicted steps of up to `rows_max` rows. Errors as of
// predict_step_ns().
Result<std::vector<BusyModel>> busy_models(const ModelShape& shape, const PlanInput& input, const Placement& placement,
                                           uint32_t rows_max);

// By device: its times, divided by what they were. Who is not there has not changed.
using DriftFactors = std::map<std::string, double, std::less<>>;

// With every time of these devices multiplied.
PlanInput with_drift(PlanInput input, const DriftFactors& factors);

struct DriftOptions {
  int64_t window_ns = 400'000'000;    // over which busy times are compared
  double busy_ns_least = 80'000'000;  // predicted in a window, else it goes on: little says little
  double changed_least = 1.35;        // a factor's, either way, until something is done about it
  uint32_t windows = 4;               // in a row that say so
};

// Compares busy times of windows with those predicted. The first windows of a device say what its tables are off by;
// they are the measure of the later ones. Not thread-safe.
class DriftWatch {
 public:
  explicit DriftWatch(const DriftOptions& options = {}) : options_(options) {}

  // Busy times so far, as counted by the device and as its model says; both only grow, but may begin anew.
  void observe(std::string_view device, int64_t now_ns, double busy_ns, double predicted_ns);
  // Of the last windows.
  DriftFactors factors() const;
  // Some device has changed by enough, and for long enough, since the last accept().
  bool changed() const;
  // What is known now is taken into account.
  void accept();
  // What comes now has nothing to do with what was seen of the windows that are open.
  void begin_anew();

 private:
  struct Device {
    int64_t since_ns = 0;
    double busy_ns = 0, predicted_ns = 0;  // at that time
    bool begun = false;
    double usual = 0;  // ratio of the first windows; 0 = not known
    uint32_t seen = 0;
    double factor = 1, accepted = 1;
    uint32_t windows_changed = 0;
  };
  void close(Device& device, double ratio) const;

  const DriftOptions options_;
  std::map<std::string, Device, std::less<>> devices_;
};

}  // namespace motley
