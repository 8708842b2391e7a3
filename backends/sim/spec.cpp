#include "sim/spec.hpp"

#include <algorithm>

namespace motley::sim {
namespace {

// One nominal core, of which the presets are parts; in wall time a measured one takes its place.
constexpr double kCoreGflops[kWorkClassCount] = {40, 40, 80, 60, 20};
constexpr double kCoreHalfRows = 2;
constexpr double kCoreBandwidth_gb_s = 12;

struct PresetRow {
  const char* label;
  double share;  // of the core
  uint64_t memory_bytes;
  uint32_t memory_group;
  uint32_t queue_depth;
  double dispatch_us, link_gb_s, link_latency_us;
  double claimed_gflops, claimed_bandwidth;  // declared / true
};
// The integrated one shares the host's memory bus (group 1, as the cpu plugin says).
constexpr PresetRow kPresets[] = {
    {"gpu-like", 1, uint64_t{4} << 30, 0, 32, 20, 6, 15, 1.8, 0.7},
    {"igpu-like", 0.5, uint64_t{4} << 30, 1, 16, 10, 10, 5, 0.6, 1.6},
    {"slow-gpu-like", 0.25, uint64_t{2} << 30, 0, 8, 40, 3, 30, 1.4, 1.9},
};

Spec make_preset(const PresetRow& row) {
  Spec spec;
  spec.label = row.label;
  spec.memory_bytes = row.memory_bytes;
  spec.memory_group = row.memory_group;
  spec.queue_depth = row.queue_depth;
  spec.core_share = row.share;
  for (size_t c = 0; c < kWorkClassCount; ++c) {
    spec.rates.gflops[c] = kCoreGflops[c] * row.share;
    spec.rates.half_rows[c] = kCoreHalfRows;
  }
  spec.rates.bandwidth_gb_s = kCoreBandwidth_gb_s * row.share;
  spec.rates.dispatch_us = row.dispatch_us;
  spec.rates.link_gb_s = row.link_gb_s, spec.rates.link_latency_us = row.link_latency_us;
  spec.declared_gflops = spec.rates.gflops[kWorkQ8] * row.claimed_gflops;
  spec.declared_bandwidth_gb_s = spec.rates.bandwidth_gb_s * row.claimed_bandwidth;
  return spec;
}

}  // namespace

WorkClass work_class(int32_t dtype) {
  switch (dtype) {
    case MOTLEY_F32: return kWorkF32;
    case MOTLEY_F16:
    case MOTLEY_BF16: return kWorkF16;
    case MOTLEY_Q8_0:
    case MOTLEY_Q6_K:
    case MOTLEY_Q5_0:
    case MOTLEY_Q5_1:
    case MOTLEY_Q5_K: return kWorkQ8;
    default: return kWorkQ4;
  }
}

std::span<const Spec> presets() {
  static const std::vector<Spec> list = [] {
    std::vector<Spec> made;
    std::transform(std::begin(kPresets), std::end(kPresets), std::back_inserter(made), make_preset);
    return made;
  }();
  return list;
}

}  // namespace motley::sim
