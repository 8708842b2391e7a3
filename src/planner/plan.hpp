// The search for a placement.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.hpp"
#include "model/model.hpp"
#include "planner/placement.hpp"

namespace motley {

// What the planner reads of a device: values only.
struct PlanDevice {
  std::string name;
  uint64_t memory_total = 0, memory_free = 0;  // bytes
  uint64_t step_bytes = 0;  // what a step needs beside weights and KV: residual stream, logits, results, workspace
  uint64_t kv_bytes_per_block = 0;  // for this model, block size and KV format, as the device lays it out
  bool own_memory = false;          // nothing else of this machine lives in it
};

struct PlanOptions {
  uint32_t block_size = 16;
  int32_t kv_dtype = 0;
  uint64_t kv_bytes = 0;       // of the pool; 0 = default_pool_bytes
  uint32_t max_model_len = 0;  // asked for; 0 = the model's context, lowered to what the pool holds
};

inline constexpr uint64_t kKvPoolBytesDefaultMax = 2'000'000'000;

// A KV pool where nobody says how large: on a device with memory of its own 7/8 of what is `left` after weights and a
// step, elsewhere kKvPoolBytesDefaultMax or a quarter of what is `free` before them.
uint64_t default_pool_bytes(bool own_memory, uint64_t free, uint64_t left);

// The whole model on one device. RESOURCE_EXHAUSTED when it does not fit, INVALID_ARGUMENT for sizes that contradict
// one another: each with the missing bytes and what would fit.
Result<Placement> plan_single_device(const Model& model, const PlanDevice& device, const PlanOptions& options);

// "1.5 GiB", for messages.
std::string bytes_text(uint64_t bytes);

}  // namespace motley
