#include "planner/workload.hpp"

#include <cmath>

#include "motley/types.h"

namespace motley {
namespace {

constexpr uint32_t kConcurrencyMax = 1u << 16;
constexpr uint32_t kTokensMax = 1u << 24;

uint64_t sequence_tokens(const ModelShape& shape, const PlanRequest& request) {
  uint64_t tokens = uint64_t{request.prompt_len} + request.output_len;
  if (shape.context_length > 0) tokens = std::min(tokens, static_cast<uint64_t>(shape.context_length));
  if (request.kv.max_model_len > 0) tokens = std::min<uint64_t>(tokens, request.kv.max_model_len);
  return tokens;
}

}  // namespace

uint64_t result_bytes(const StepBuffers& buffers) {
  return sizeof(int32_t) * uint64_t{buffers.logit_rows} * (2 + 2 * MOTLEY_TOP_MAX);
}

uint64_t step_bytes(const StepBuffers& buffers, int64_t hidden, int64_t vocab) {
  const uint64_t floats = uint64_t{buffers.rows} * static_cast<uint64_t>(hidden) +
                          uint64_t{buffers.logit_rows} * static_cast<uint64_t>(vocab);
  return buffers.workspace_bytes + sizeof(float) * floats + sizeof(int32_t) * buffers.slots + 2 * result_bytes(buffers);
}

SteadyLoad steady_load(const PlanRequest& request, uint32_t concurrency, uint32_t micro_batches, Chunks chunks) {
  const double prompt = request.prompt_len, output = request.output_len, parts = micro_batches;
  SteadyLoad load;
  load.chunks = std::ceil(prompt / request.chunk_rows);
  if (chunks == Chunks::kEven && concurrency > micro_batches) {
    // D n / N = M with D = C N / (N + n): n = M N / (C - M).
    const double even = std::floor(parts * output / (static_cast<double>(concurrency) - parts));
    load.chunks = std::clamp(even, load.chunks, prompt);
  }
  load.decoding = concurrency * output / (output + load.chunks);
  load.chunk_share = load.decoding * load.chunks / output / parts;
  if (load.chunk_share > 1) {
    load.chunk_share = 1;
    load.decoding = parts * output / load.chunks;
  }
  load.decode.decode_rows = load.decode.head_rows = std::max(1.0, load.decoding / parts);
  load.decode.context = prompt + output / 2;
  load.mixed = load.decode;
  load.mixed.chunk_rows = prompt / load.chunks;
  load.mixed.chunk_context = prompt / 2;
  load.mixed.head_rows += 1 / load.chunks;
  return load;
}

SteadyLoad lone_load(const PlanRequest& request) {
  SteadyLoad load = steady_load(request, 1, 1, Chunks::kWhole);
  load.mixed.decode_rows = 0;
  load.mixed.head_rows = 1;
  return load;
}

uint64_t least_kv_tokens(const ModelShape& shape, const PlanRequest& request) {
  if (request.kv.any_room) return request.kv.block_size;
  const uint64_t tokens = request.kv.max_model_len > 0 ? request.kv.max_model_len : sequence_tokens(shape, request);
  const uint64_t block = request.kv.block_size;
  return (tokens + block - 1) / block * block;
}

uint64_t load_kv_tokens(const ModelShape& shape, const PlanRequest& request) {
  const uint64_t block = request.kv.block_size;
  const uint64_t one = (sequence_tokens(shape, request) + block - 1) / block * block;
  return std::max(least_kv_tokens(shape, request), one * request.concurrency);
}

std::vector<uint32_t> concurrencies(const PlanRequest& request) {
  std::vector<uint32_t> tried;
  for (uint32_t c = 1; c < request.concurrency; c += std::max(1u, c / 8)) tried.push_back(c);
  tried.push_back(request.concurrency);
  return tried;
}

uint32_t held_concurrency(const ModelShape& shape, const PlanRequest& request, uint64_t kv_tokens) {
  const uint64_t block = request.kv.block_size;
  const uint64_t one = (sequence_tokens(shape, request) + block - 1) / block * block;
  uint32_t held = 1;
  for (const uint32_t c : concurrencies(request)) {
    if (one * c <= kv_tokens) held = c;
  }
  return held;
}

std::vector<uint32_t> micro_batches(uint32_t concurrency) {
  std::vector<uint32_t> tried;
  const uint32_t most = std::min(concurrency, 256u);
  for (uint32_t m = 1; m < most; m += std::max(1u, m / 4)) tried.push_back(m);
  tried.push_back(most);
  return tried;
}

Status check_request(const PlanRequest& request) {
  const auto between = [](const char* name, uint32_t value, uint32_t most) {
    return value >= 1 && value <= most ? ok_status() : invalid_argument("{} {}: 1 to {}", name, value, most);
  };
  RETURN_IF_ERROR(between("concurrency", request.concurrency, kConcurrencyMax));
  RETURN_IF_ERROR(between("prompt length", request.prompt_len, kTokensMax));
  RETURN_IF_ERROR(between("output length", request.output_len, kTokensMax));
  RETURN_IF_ERROR(between("chunk rows", request.chunk_rows, kTokensMax));
  RETURN_IF_ERROR(between("KV block size", request.kv.block_size, 65536));
  if (!(request.kv.element_bytes > 0 && request.kv.element_bytes <= 16)) {
    return invalid_argument("KV elements of {} bytes", request.kv.element_bytes);
  }
  if (!(request.ttft_ms_max >= 0) || !(request.tpot_ms_max >= 0)) {
    return invalid_argument("limits of {} ms to the first token and {} ms a token: not negative", request.ttft_ms_max,
                            request.tpot_ms_max);
  }
  return ok_status();
}

}  // namespace motley
