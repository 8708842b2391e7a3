#include <algorithm>

#include "base/limits.hpp"
#include "engine/scheduler.hpp"

namespace motley {
namespace {

constexpr uint32_t kRowsUnchunked = 512;  // of a step of whole prompts; more if one may be longer

Status check_description(const ExecutorDescription& executor) {
  if (executor.lanes.size() != 1)
    return error(MOTLEY_UNIMPLEMENTED, "engine: the executor offers {} lanes; this engine drives exactly one",
                 executor.lanes.size());
  const LaneDescription& lane = executor.lanes.front();
  if (lane.pool >= executor.pools.size())
    return invalid_argument("engine: a lane has pool {} of {}", lane.pool, executor.pools.size());
  const KvPoolDescription& pool = executor.pools[lane.pool];
  if (pool.block_size == 0 || pool.blocks == 0 || lane.rows_max == 0 || executor.vocab_size == 0 ||
      executor.positions_max < 2)
    return invalid_argument(
        "engine: the executor describes block_size {}, blocks {}, rows_max {}, vocab_size {}, positions_max {}: none "
        "may be 0, and positions at least 2",
        pool.block_size, pool.blocks, lane.rows_max, executor.vocab_size, executor.positions_max);
  return ok_status();
}

Status resolve_length(EngineOptions& options, const ExecutorDescription& executor) {
  const KvPoolDescription& pool = executor.pools[executor.lanes.front().pool];
  const uint64_t capacity = static_cast<uint64_t>(pool.blocks) * pool.block_size;
  if (options.max_model_len == 0) {
    options.max_model_len = static_cast<uint32_t>(std::min<uint64_t>(executor.positions_max, capacity));
  }
  if (options.max_model_len < 2)
    return invalid_argument("max_model_len must be at least 2, got {}", options.max_model_len);
  if (options.max_model_len > executor.positions_max)
    return invalid_argument("max_model_len {} is beyond the model's {} positions; lower it", options.max_model_len,
                            executor.positions_max);
  if (options.max_model_len > capacity)
    return invalid_argument(
        "max_model_len {} is beyond the {} positions of the KV pool; lower it or give the pool more "
        "memory",
        options.max_model_len, capacity);
  return ok_status();
}

Status resolve_rows(SchedulerConfig& config) {
  EngineOptions& options = config.options;
  const uint32_t rows_max = config.lane.rows_max;
  if (options.max_num_batched_tokens > rows_max)
    return invalid_argument("max_num_batched_tokens {} is beyond the executor's {} rows of a step; lower it",
                            options.max_num_batched_tokens, rows_max);
  config.chosen_budget = options.max_num_batched_tokens == 0;
  if (config.chosen_budget) {
    options.max_num_batched_tokens = std::min(rows_max, kBudgetRowsMax);
    if (!options.enable_chunked_prefill) {  // then a whole prompt is the least that a step must hold
      config.chosen_budget = false;
      options.max_num_batched_tokens = std::min(rows_max, std::max(kRowsUnchunked, options.max_model_len));
    }
  }
  if (!options.enable_chunked_prefill && options.max_num_batched_tokens < options.max_model_len)
    return invalid_argument(
        "without chunked prefill a prompt must fit into one step: max_num_batched_tokens {} is below "
        "max_model_len {}; raise the first, lower the second, or enable chunked prefill",
        options.max_num_batched_tokens, options.max_model_len);
  return ok_status();
}

}  // namespace

Result<SchedulerConfig> resolve_config(const ExecutorDescription& executor, const EngineOptions& options) {
  RETURN_IF_ERROR(check_description(executor));
  SchedulerConfig config;
  config.options = options;
  config.epoch = executor.epoch;
  config.lane = executor.lanes.front();
  config.vocab_size = executor.vocab_size;
  config.pool = executor.pools[config.lane.pool];
  config.pipeline = std::max(config.lane.pipeline, 1u);
  config.lookahead = executor.slots > config.lane.lookahead ? config.lane.lookahead : 0;
  config.slots_each = config.lookahead > 0 ? config.lookahead + 1 : 0;
  config.steps_max = config.pipeline + config.lookahead;
  EngineOptions& resolved = config.options;
  if (resolved.max_num_seqs == 0) return invalid_argument("max_num_seqs must be at least 1, got 0");
  if (resolved.max_concurrent_prefills == 0)
    return invalid_argument("max_concurrent_prefills must be at least 1, got 0");
  RETURN_IF_ERROR(resolve_length(resolved, executor));
  RETURN_IF_ERROR(resolve_rows(config));
  // Every running sequence must be able to put a row into every step.
  resolved.max_num_seqs =
      std::min(resolved.max_num_seqs, config.chosen_budget ? config.lane.rows_max : resolved.max_num_batched_tokens);
  if (config.slots_each > 0)
    resolved.max_num_seqs = std::min(resolved.max_num_seqs, executor.slots / config.slots_each);
  if (resolved.queue_limit == 0) resolved.queue_limit = limits::kQueuedRequestsMax;
  return config;
}

Result<SchedulerConfig> resolve_replacement(const ExecutorDescription& executor, const EngineOptions& options) {
  RETURN_IF_ERROR(check_description(executor));
  const LaneDescription& lane = executor.lanes.front();
  const KvPoolDescription& pool = executor.pools[lane.pool];
  const uint64_t capacity = static_cast<uint64_t>(pool.blocks) * pool.block_size;
  const auto length_max = static_cast<uint32_t>(std::min<uint64_t>(executor.positions_max, capacity));
  EngineOptions lowered = options;  // a 0 stays: it is chosen anew
  lowered.max_num_batched_tokens = std::min(options.max_num_batched_tokens, lane.rows_max);
  lowered.max_model_len = std::min(options.max_model_len, length_max);
  if (!options.enable_chunked_prefill) {  // a whole prompt must fit into a step
    const uint32_t rows = lowered.max_num_batched_tokens == 0 ? lane.rows_max : lowered.max_num_batched_tokens;
    lowered.max_model_len = std::min(lowered.max_model_len == 0 ? length_max : lowered.max_model_len, rows);
  }
  return resolve_config(executor, lowered);
}

Status check_request(const SchedulerConfig& config, const Request& request) {
  const auto known = [&](TokenId id) { return id >= 0 && static_cast<uint32_t>(id) < config.vocab_size; };
  const uint32_t longest = config.options.max_model_len - 1;
  if (!request.on_update) return invalid_argument("on_update must be set");
  if (request.prompt.empty()) return invalid_argument("the prompt must hold at least one token");
  if (request.prompt.size() > longest)
    return invalid_argument(
        "the prompt holds {} tokens, but the maximum model length of {} leaves room for at most {} "
        "and one generated token; shorten it",
        request.prompt.size(), config.options.max_model_len, longest);
  for (const TokenId id : request.prompt)
    if (!known(id)) return invalid_argument("prompt token ids must be in [0, {}), got {}", config.vocab_size, id);
  for (const TokenId id : request.end_tokens)
    if (!known(id)) return invalid_argument("end_tokens must be in [0, {}), got {}", config.vocab_size, id);
  return validate(request.params, config.vocab_size);
}

}  // namespace motley
