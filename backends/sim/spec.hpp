// What a simulated device is: its true rates, its memory, its faults. Presets, and files (README.md has the keys).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "motley/backend.h"

namespace motley::sim {

// Whose arithmetic rate an op has: by its weight's format, attention by itself.
enum WorkClass { kWorkF32, kWorkF16, kWorkQ8, kWorkQ4, kWorkAttention, kWorkClassCount };
WorkClass work_class(int32_t dtype);

// The time model's figures. Rate of a matmul over n rows: gflops * n / (n + half_rows).
struct Rates {
  std::array<double, kWorkClassCount> gflops{};
  std::array<double, kWorkClassCount> half_rows{};
  double bandwidth_gb_s = 0;
  double dispatch_us = 0;  // of each program
  double link_gb_s = 0, link_latency_us = 0;
};

// What a device does not take, as devices of fixed shapes do not. The default takes what the cpu plugin takes.
struct Rules {
  bool dynamic_rows =
      true;  // else only compiled buckets run, and whole: no op whose work depends on the rows' contents
  bool paged_attention = true;
  uint64_t without_ops = 0;        // bit k: motley_op_kind k
  uint64_t weight_formats = 0;     // bit t: motley_dtype t; 0 = any
  bool f16_results = false;        // of each op but ADD: who knows such devices sums residual streams in F32
  bool f16_sums = false;           // of products too, at every 64 columns (sums.hpp)
  uint64_t allocation_bytes = 0;   // the largest buffer, weight or pool; 0 = any
  uint32_t programs_resident = 0;  // at once; 0 = any number
  double reload_us = 0;            // of a program that had to go
  uint64_t program_bytes = 0;      // of memory that each takes, resident or not
  // Seconds to compile a program: compile_s + ops * compile_op_s, at most compile_max_s (0: no bound); from a blob
  // blob_part of that. In wall time they last compile_wall of it.
  double compile_s = 0, compile_op_s = 0, compile_max_s = 0, blob_part = 0.01, compile_wall = 0.0001;
  std::string driver = "1";  // whose blobs are taken
};

struct Fault {
  enum What { kStall, kDeath, kSlow, kCompile, kPack, kMemory, kFormat } what = kSlow;
  uint64_t at_program = 0;  // the n-th enqueued program of the device, from 1; 0 = by at_ns
  int64_t at_ns = -1;       // of virtual time; in wall time since the device was opened
  int64_t for_ns = 0;       // 0 = for ever; of kPack: how long the next weight to be packed keeps its caller
  double factor = 1;        // of kSlow
  uint32_t rows = 0;        // of kCompile: the bucket that fails, 0 = every one
  uint64_t left_bytes = 0;  // of kMemory: what others leave of the memory
};

struct Spec {
  std::string label;       // of a file the end of its name, where that is long
  uint64_t text_hash = 0;  // of a file: of what it holds
  int32_t kind = MOTLEY_KIND_GPU;
  uint64_t memory_bytes = 0;
  uint32_t memory_group = 0;
  double contention = 1;  // with n other devices of the group: bandwidth / (1 + contention * n)
  uint32_t queue_depth = 16;
  double jitter = 0;  // a program lasts 1 +- jitter of its time, evenly drawn
  uint64_t seed = 1;
  Rates rates;            // true ones, known to the simulation alone
  double core_share = 0;  // > 0 (presets): in wall time the compute rates are this part of one measured core
  double declared_gflops = 0, declared_bandwidth_gb_s = 0;  // what the description says: off by up to 2x
  Rules rules;
  std::vector<Fault> faults;
};

constexpr size_t kSpecBytesMax = 64 << 10;
constexpr size_t kFaultsMax = 64;

std::span<const Spec> presets();
// Both throw kit::Error; the text names the file, and of what it holds the line and the key.
std::string read_spec_file(const std::string& path);
Spec parse_spec(std::string_view text, const std::string& path);

}  // namespace motley::sim
