#include "sim/spec.hpp"

#include <algorithm>

namespace motley::sim {
namespace {

// One nominal core, of which the presets are parts; in wall time a measured one takes its place.
constexpr double kCoreGflops[kWorkClassCount] = {40, 40, 80, 60, 20};
constexpr double kCoreHalfRows = 2;
constexpr double kCoreBandwidth_gb_s = 12;

constexpr uint32_t kHostGroup = 1;  // as the cpu plugin says

struct PresetRow {
  const char* label;
  double share;  // of the core
  uint64_t memory_bytes;
  uint32_t memory_group;
  uint32_t queue_depth;
  double dispatch_us, link_gb_s, link_latency_us;
  double claimed_gflops, claimed_bandwidth;  // declared / true
};
// The integrated one shares the host's memory bus (group kHostGroup).
constexpr PresetRow kPresets[] = {
    {"gpu-like", 1, uint64_t{4} << 30, 0, 32, 20, 6, 15, 1.8, 0.7},
    {"igpu-like", 0.5, uint64_t{4} << 30, kHostGroup, 16, 10, 10, 5, 0.6, 1.6},
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

// Devices of large rates, of which wall time takes a part of a core as for the others.
struct NpuRow {
  const char* label;
  double share;  // of the core, in wall time
  double f16_gflops, bandwidth_gb_s, dispatch_us, link_gb_s, link_latency_us, half_rows;
  uint64_t memory_bytes;
  uint32_t memory_group, queue_depth;
  double claimed_gflops, claimed_bandwidth;  // declared / true
  double compile_s, compile_op_s, compile_max_s;
  uint64_t program_bytes, allocation_bytes;
  uint32_t programs_resident;
  double reload_us;
  bool dynamic = false;
};
constexpr NpuRow kNpus[] = {
    {"intel-npu-like",
     1,
     10e3,
     58,
     200,
     20,
     20,
     16,
     uint64_t{16} << 30,
     kHostGroup,
     4,
     1.3,
     1.2,
     5,
     0.5,
     60,
     1 << 20,
     uint64_t{4} << 30,
     256,
     500},
    {"xdna-like", 1,  10e3, 58,  1400, 20,  20, 16,      uint64_t{16} << 30,
     kHostGroup,  4,  1.6,  1.2, 5,    0.5, 60, 1 << 20, uint64_t{4} << 30,
     256,         500},
    {"hexagon-like",    0.5, 8e3, 50, 300, 15, 30, 16, uint64_t{7} << 29, kHostGroup, 4, 1.5, 1.3, 2, 0.2, 30, 1 << 20,
     uint64_t{2} << 30, 128, 500},
    // Any rows, paged attention and bf16 weights of its own; its memory alone bounds a buffer and the programs.
    {"ascend-like", 1,  200e3,   1600, 20, 25, 10,  64, uint64_t{32} << 30, 0, 32, 1.5, 0.8, 1,
     0.05,          10, 1 << 20, 0,    0,  0,  true},
};
constexpr uint64_t bit(int index) { return uint64_t{1} << index; }

Spec make_npu(const NpuRow& row) {
  Spec spec;
  spec.label = row.label;
  spec.kind = MOTLEY_KIND_NPU;
  spec.memory_bytes = row.memory_bytes, spec.memory_group = row.memory_group;
  spec.queue_depth = row.queue_depth;
  spec.core_share = row.share;
  spec.rates.gflops.fill(row.f16_gflops);
  spec.rates.half_rows.fill(row.half_rows);
  spec.rates.bandwidth_gb_s = row.bandwidth_gb_s, spec.rates.dispatch_us = row.dispatch_us;
  spec.rates.link_gb_s = row.link_gb_s, spec.rates.link_latency_us = row.link_latency_us;
  spec.declared_gflops = row.f16_gflops * row.claimed_gflops;
  spec.declared_bandwidth_gb_s = row.bandwidth_gb_s * row.claimed_bandwidth;
  Rules& rules = spec.rules;
  rules.weight_formats = bit(MOTLEY_F16) | bit(MOTLEY_Q8_0) | bit(MOTLEY_Q4_0);
  rules.compile_s = row.compile_s, rules.compile_op_s = row.compile_op_s, rules.compile_max_s = row.compile_max_s;
  rules.program_bytes = row.program_bytes, rules.allocation_bytes = row.allocation_bytes;
  rules.programs_resident = row.programs_resident, rules.reload_us = row.reload_us;
  rules.dynamic_rows = rules.paged_attention = row.dynamic;
  rules.f16_results = true;
  if (row.dynamic) rules.weight_formats |= bit(MOTLEY_BF16);
  if (spec.label == "hexagon-like") rules.without_ops = bit(MOTLEY_OP_EMBED) | bit(MOTLEY_OP_SELECT_ROWS);
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
    std::transform(std::begin(kNpus), std::end(kNpus), std::back_inserter(made), make_npu);
    return made;
  }();
  return list;
}

}  // namespace motley::sim
