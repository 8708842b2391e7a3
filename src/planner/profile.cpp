#include "planner/profile.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "base/quote.hpp"

namespace motley {
namespace {

constexpr double kRatioMax = 64;
constexpr double kLinkNsMax = 1e12;

bool within(double value, double low, double high) { return std::isfinite(value) && value >= low && value <= high; }

Status check_curve(const char* name, const RowCurve& curve, double low, double high) {
  const auto& [rows, values] = curve;
  if (rows.size() != values.size() || rows.size() > kCostPointsMax) {
    return invalid_argument("{}: {} rows, {} values", name, rows.size(), values.size());
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 1 || (i > 0 && rows[i] <= rows[i - 1])) {
      return invalid_argument("{}.rows[{}] = {}: must ascend, from 1", name, i, rows[i]);
    }
    if (!within(values[i], low, high)) {
      return invalid_argument("{}: {} at {} rows: {} to {}", name, values[i], rows[i], low, high);
    }
  }
  return ok_status();
}

Status check_device(const DeviceProfile& device) {
  if (device.memory_free > static_cast<uint64_t>(INT64_MAX) || device.memory_total > static_cast<uint64_t>(INT64_MAX)) {
    return invalid_argument("memory: more bytes than there are");
  }
  if (device.roughly_with > static_cast<uint64_t>(INT64_MAX)) return invalid_argument("roughly_with: too many bytes");
  const std::pair<const char*, const CostTable*> tables[] = {
      {"attention", &device.attention}, {"ffn", &device.ffn},   {"experts", &device.experts},
      {"layer", &device.layer},         {"head", &device.head}, {"embed", &device.embed}};
  for (const auto& [name, table] : tables) {
    if (Status status = table->check(); !status.ok()) return status.annotate(name);
  }
  if (!within(device.wait_ns, 0, kCostNsMax)) return invalid_argument("wait_ns {}", device.wait_ns);
  if (!within(device.wake_ns, 0, kCostNsMax)) return invalid_argument("wake_ns {}", device.wake_ns);
  if (device.chunk_context_ns && !within(*device.chunk_context_ns, 0, kCostNsMax)) {
    return invalid_argument("chunk_context_ns {}", *device.chunk_context_ns);
  }
  if (!within(device.mixed, 0, kMixedMax)) return invalid_argument("mixed {}: 0 to {}", device.mixed, kMixedMax);
  if (!within(device.copy.latency_ns, 0, kLinkNsMax) || !within(device.copy.ns_per_byte, 0, kLinkNsMax)) {
    return invalid_argument("copy: latency_ns {}, ns_per_byte {}: 0 to {}", device.copy.latency_ns,
                            device.copy.ns_per_byte, kLinkNsMax);
  }
  if (device.sample_ns < 0 || static_cast<double>(device.sample_ns) > kCostNsMax) {
    return invalid_argument("sample_ns {}", device.sample_ns);
  }
  if (!within(device.packed_ratio, 1e-3, kRatioMax)) {
    return invalid_argument("packed_ratio {}: 0.001 to {}", device.packed_ratio, kRatioMax);
  }
  for (const auto& [name, rows] : {std::pair{"buckets", &device.buckets}, {"uncompiled", &device.uncompiled}}) {
    if (rows->size() > kCostPointsMax) return invalid_argument("{}: {}", name, rows->size());
    for (size_t i = 0; i < rows->size(); ++i) {
      if ((*rows)[i] < 1 || (*rows)[i] > kCostAxisMax || (i > 0 && (*rows)[i] <= (*rows)[i - 1]))
        return invalid_argument("{}[{}] = {}: must ascend, from 1", name, i, (*rows)[i]);
    }
  }
  RETURN_IF_ERROR(check_curve("context", device.context, 0, kCostNsMax));
  RETURN_IF_ERROR(check_curve("sequences", device.sequences, 0, kCostNsMax));
  if (!within(device.context_together, 1, kSlowdownMax))
    return invalid_argument("context_together {}", device.context_together);
  return check_curve("together", device.together, 1, kSlowdownMax);
}

Status check_link(const LinkProfile& link) {
  if (within(link.latency_ns, 0, kLinkNsMax) && within(link.ns_per_byte, 0, kLinkNsMax)) return ok_status();
  return invalid_argument("the link {} - {}: latency_ns {}, ns_per_byte {}: 0 to {}", in_quotes(link.a),
                          in_quotes(link.b), link.latency_ns, link.ns_per_byte, kLinkNsMax);
}

constexpr double kAlike = 0.03;

bool near(double a, double b) { return std::abs(a - b) <= kAlike * std::max(a, b); }

bool near(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double x, double y) { return near(x, y); });
}

bool near(const CostTable& a, const CostTable& b) {
  return a.rows == b.rows && a.units == b.units &&
         std::equal(a.ns.begin(), a.ns.end(), b.ns.begin(), b.ns.end(),
                    [](const auto& x, const auto& y) { return near(x, y); });
}

bool near(const RowCurve& a, const RowCurve& b) { return a.rows == b.rows && near(a.values, b.values); }

bool near(const LinkProfile& a, const LinkProfile& b) {
  return near(a.latency_ns, b.latency_ns) && near(a.ns_per_byte, b.ns_per_byte);
}

bool alone_in_group(const PlanInput& input, size_t device) {
  const std::string& group = input.devices[device].memory_group;
  return group.empty() || std::count_if(input.devices.begin(), input.devices.end(),
                                        [&](const DeviceProfile& other) { return other.memory_group == group; }) == 1;
}

}  // namespace

double RowCurve::at(double count, double otherwise) const {
  if (rows.empty()) return otherwise;
  const auto above =
      static_cast<size_t>(std::upper_bound(rows.begin(), rows.end(), count,
                                           [](double x, int64_t r) { return x < static_cast<double>(r); }) -
                          rows.begin());
  if (above == 0) return values.front();
  if (above == rows.size()) return values.back();
  const auto low = static_cast<double>(rows[above - 1]), high = static_cast<double>(rows[above]);
  return values[above - 1] + (values[above] - values[above - 1]) * (count - low) / (high - low);
}

double DeviceProfile::rows_run(double rows) const {
  const auto bucket = std::lower_bound(buckets.begin(), buckets.end(), rows,
                                       [](int64_t have, double need) { return static_cast<double>(have) < need; });
  return bucket == buckets.end() ? rows : static_cast<double>(*bucket);
}

Status check_plan_input(const PlanInput& input) {
  if (input.devices.empty() || input.devices.size() > kPlanDevicesMax) {
    return invalid_argument("a plan over {} devices: 1 to {}", input.devices.size(), kPlanDevicesMax);
  }
  std::set<std::string_view> names;
  for (const DeviceProfile& device : input.devices) {
    if (device.name.empty() || !names.insert(device.name).second) {
      return invalid_argument("the device {} is there twice, or has no name", in_quotes(device.name));
    }
    if (Status status = check_device(device); !status.ok()) return status.annotate(in_quotes(device.name));
  }
  RETURN_IF_ERROR(check_link(input.host_memory));
  for (const LinkProfile& link : input.links) {
    RETURN_IF_ERROR(check_link(link));
    if (names.count(link.a) == 0 || names.count(link.b) == 0 || link.a == link.b) {
      return invalid_argument("a link between {} and {}: not two of the devices", in_quotes(link.a), in_quotes(link.b));
    }
  }
  for (const auto& [name, bytes] : input.memory_caps) {
    if (names.count(name) == 0) return invalid_argument("a memory limit for {}, which is not listed", in_quotes(name));
  }
  return ok_status();
}

LinkTable::LinkTable(const PlanInput& input)
    : devices_(input.devices.size()), links_(devices_ * devices_, &input.host_memory) {
  std::map<std::string_view, size_t> index;
  for (size_t d = 0; d < devices_; ++d) index[input.devices[d].name] = d;
  for (const LinkProfile& link : input.links) {
    const auto a = index.find(link.a), b = index.find(link.b);
    if (a == index.end() || b == index.end()) continue;
    links_[a->second * devices_ + b->second] = links_[b->second * devices_ + a->second] = &link;
  }
}

std::vector<size_t> find_twins(const PlanInput& input) {
  const auto figures = [](const DeviceProfile& d) {
    return std::tie(d.attention, d.ffn, d.experts, d.layer, d.head, d.embed, d.context, d.chunk_context_ns, d.sequences,
                    d.mixed, d.sample_ns, d.wait_ns, d.wake_ns, d.copy, d.packed_ratio, d.together, d.context_together,
                    d.attends, d.attends_partially, d.holds_vocabulary, d.buckets);
  };
  std::vector<size_t> twins, distinct;
  for (size_t d = 0; d < input.devices.size(); ++d) {
    const auto same = std::find_if(distinct.begin(), distinct.end(), [&](size_t other) {
      return figures(input.devices[other]) == figures(input.devices[d]);
    });
    twins.push_back(same == distinct.end() ? d : *same);
    if (same == distinct.end()) distinct.push_back(d);
  }
  return twins;
}

const DeviceProfile* find_profile(const PlanInput& input, std::string_view device) {
  const auto found = std::find_if(input.devices.begin(), input.devices.end(),
                                  [&](const DeviceProfile& each) { return each.name == device; });
  return found == input.devices.end() ? nullptr : &*found;
}

PlanInput without_devices(PlanInput input, const std::function<bool(const std::string&)>& gone) {
  std::erase_if(input.devices, [&](const DeviceProfile& device) { return gone(device.name); });
  std::erase_if(input.links, [&](const LinkProfile& link) { return gone(link.a) || gone(link.b); });
  std::erase_if(input.memory_caps, [&](const auto& cap) {
    return std::none_of(input.devices.begin(), input.devices.end(),
                        [&](const DeviceProfile& device) { return device.name == cap.first; });
  });
  return input;
}

uint64_t usable_bytes(const PlanInput& input, size_t device) {
  const DeviceProfile& profile = input.devices[device];
  const auto cap = input.memory_caps.find(profile.name);
  return cap == input.memory_caps.end() ? profile.memory_free : std::min(profile.memory_free, cap->second);
}

bool alike(const PlanInput& input, const LinkTable& links, size_t a, size_t b) {
  const DeviceProfile &x = input.devices[a], &y = input.devices[b];
  const auto bytes_a = static_cast<double>(usable_bytes(input, a)),
             bytes_b = static_cast<double>(usable_bytes(input, b));
  const bool same_group = (x.memory_group == y.memory_group && !x.memory_group.empty()) ||
                          (alone_in_group(input, a) && alone_in_group(input, b));
  if (x.kind != y.kind || x.own_memory != y.own_memory || x.attends != y.attends ||
      x.attends_partially != y.attends_partially || x.holds_vocabulary != y.holds_vocabulary ||
      x.buckets != y.buckets || !same_group || !near(bytes_a, bytes_b) || !near(x.attention, y.attention) ||
      !near(x.ffn, y.ffn) || !near(x.experts, y.experts) || !near(x.head, y.head) || !near(x.embed, y.embed) ||
      !near(x.layer, y.layer) || !near(x.context, y.context) || !near(x.sequences, y.sequences) ||
      !near(x.wait_ns, y.wait_ns) || !near(x.wake_ns, y.wake_ns) ||
      x.chunk_context_ns.has_value() != y.chunk_context_ns.has_value() ||
      !near(x.chunk_context_ns.value_or(0), y.chunk_context_ns.value_or(0)) || !near(x.mixed, y.mixed) ||
      !near(x.copy.latency_ns, y.copy.latency_ns) || !near(x.copy.ns_per_byte, y.copy.ns_per_byte) ||
      !near(x.packed_ratio, y.packed_ratio) ||
      !near(static_cast<double>(x.sample_ns), static_cast<double>(y.sample_ns)) || !near(x.together, y.together) ||
      !near(x.context_together, y.context_together)) {
    return false;
  }
  for (size_t other = 0; other < input.devices.size(); ++other) {
    if (other != a && other != b && !near(links.between(a, other), links.between(b, other))) return false;
  }
  return true;
}

}  // namespace motley
