// What was measured of the devices and the links between them: the planner's input. Values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/route.hpp"
#include "base/status.hpp"
#include "planner/cost_table.hpp"

namespace motley {

inline constexpr size_t kPlanDevicesMax = 256;
inline constexpr double kSlowdownMax = 1000;  // of `together` and `context_together`
inline constexpr double kMixedMax = 2;        // of `mixed`

// A figure by rows.
struct RowCurve {
  std::vector<int64_t> rows;   // ascending, from 1; at most kCostPointsMax
  std::vector<double> values;  // [row]
  // Linear between points, constant beyond them; `otherwise` where there are none.
  double at(double count, double otherwise = 0) const;
  bool operator==(const RowCurve&) const = default;
};

// One way of a value of a step that others need; nothing where the host sees the device's memory.
struct CopyCost {
  double latency_ns = 0, ns_per_byte = 0;
  double at(double bytes) const { return latency_ns + bytes * ns_per_byte; }
  bool operator==(const CopyCost&) const = default;
};

struct DeviceProfile {
  std::string name;                            // as listed: "CPU:0/cores=0-3"
  std::string kind;                            // "cpu", "gpu", "npu"
  std::string memory_group;                    // devices of one name share memory and its bus; empty: its own
  std::string format;                          // what it packs weights to, for people; empty: as in the file
  uint64_t memory_total = 0, memory_free = 0;  // bytes; within a group each says what the group has
  uint64_t roughly_with = 0;                   // bytes that were free when they did not hold at once what is measured,
                                               // which was measured more roughly; 0 = they did
  bool own_memory = false;                     // nothing else of the machine lives in it
  bool attends = true;                         // keeps KV; else a partner must, and `attention` is without
  bool attends_partially = true;               // also to a part of a sequence's KV, where others keep the rest
  bool holds_vocabulary = true;                // else `head` and `embed` are empty
  std::vector<int64_t> buckets;                // row counts that it computes, ascending; empty: any
  std::vector<int64_t> uncompiled;             // that it would compute if they compiled, likewise
  CostTable attention;  // one layer's attention part of one sequence's rows, without what it reads of the KV
                        // pool, between two meetings with others: the host waits for it; units = KV heads
  CostTable ffn;        // one layer's dense (or shared) FFN, likewise; units = columns
  CostTable experts;    // one layer's routed experts, likewise; units = experts held; empty if the model is dense
  CostTable head;       // norm and logits; units = vocabulary rows; rows = rows whose logits are asked for
  CostTable embed;      // units = vocabulary rows held
  CostTable layer;      // one whole layer (as the middle one) among others of one program; units = 1; empty:
                        // what its parts take, less a program each
  RowCurve context;     // ns per KV head and position read, of one layer; rows = so many, each of a sequence of
                        // its own
  std::optional<double> chunk_context_ns;  // the same where the rows are one sequence's; none: as one row's
  RowCurve sequences;           // ns per KV head of one layer, of rows of sequences of their own, beside what as many
                                // rows of one take
  double mixed = 0;             // a step of rows that decode and a prompt's takes this part of what the former take
                                // alone, beside what as many rows of one kind do: each kind reads the weights by itself
  int64_t sample_ns = 0;        // of one row, beside the program's own time
  double wait_ns = 0;           // of a program that the host waits for, beside its time behind another, which is what
                                // `head` and `embed` say
  double wake_ns = 0;           // the same after a pause
  CopyCost copy;                // between the device's memory and the host's
  double packed_ratio = 1;      // bytes that weights take here / bytes in the file
  RowCurve together;            // time while every other device of the memory group runs the same, divided by the time
                                // alone; at least 1; empty: 1
  double context_together = 1;  // the same of what rows that decode read of the KV pool

  // What so many rows are computed as.
  double rows_run(double rows) const;
};

// A sum over two devices of what lies in the host's memory already: for no data, and per byte.
struct LinkProfile {
  std::string a, b;
  double latency_ns = 0, ns_per_byte = 0;
  Route route = Route::kSharedMemory;  // that the figures are of, and that the two take
};

struct PlanInput {
  std::vector<DeviceProfile> devices;
  std::vector<LinkProfile> links;
  LinkProfile host_memory{"", "", 5'000, 0.1};  // of pairs without a link: through memory that both see
  std::map<std::string, uint64_t> memory_caps;  // by device: use no more bytes than this
};

// By name; null = none.
const DeviceProfile* find_profile(const PlanInput& input, std::string_view device);

// The times of a device are made monotone where they are read; everything here assumes that.
// INVALID_ARGUMENT naming the device and the field.
Status check_plan_input(const PlanInput& input);

// The link of each pair, or the host's memory; made once, looked up often. The input outlives it.
class LinkTable {
 public:
  explicit LinkTable(const PlanInput& input);
  const LinkProfile& between(size_t a, size_t b) const { return *links_[a * devices_ + b]; }

 private:
  size_t devices_;
  std::vector<const LinkProfile*> links_;
};

// [device] the first device of the same figures: a copy costs no measuring, and no computing, of its own. Name and
// memory may differ.
std::vector<size_t> find_twins(const PlanInput& input);

// Without some devices (by name), their links and their memory limits; nor limits of devices that are not there.
PlanInput without_devices(PlanInput input, const std::function<bool(const std::string&)>& gone);

// Bytes that the device may use: what is free, less where a cap says so.
uint64_t usable_bytes(const PlanInput& input, size_t device);

// Within 3 % of each other in everything that decides a plan, in the same memory group or each alone in its own.
bool alike(const PlanInput& input, const LinkTable& links, size_t a, size_t b);

}  // namespace motley
