#include <algorithm>
#include <cmath>
#include <functional>

#include "base/limits.hpp"
#include "engine/scheduler.hpp"

namespace motley {
namespace {

constexpr size_t kLanesMax = 64;          // of an executor, and its KV pools
constexpr uint32_t kRowsUnchunked = 512;  // of a step of whole prompts; more if one may be longer

uint64_t capacity(const KvPoolDescription& pool) { return static_cast<uint64_t>(pool.blocks) * pool.block_size; }

// Of the pool that holds most: what a sequence may need.
uint64_t largest_capacity(const ExecutorDescription& executor) {
  uint64_t most = 0;
  for (const KvPoolDescription& pool : executor.pools) most = std::max(most, capacity(pool));
  return most;
}

uint32_t largest_rows(const ExecutorDescription& executor) {
  uint32_t most = 0;
  for (const LaneDescription& lane : executor.lanes) most = std::max(most, lane.rows_max);
  return most;
}

// That every lane can take of a prompt at once.
uint32_t least_prompt_rows(const ExecutorDescription& executor) {
  uint32_t least = UINT32_MAX;
  for (const LaneDescription& lane : executor.lanes)
    if (lane.role != LaneRole::kDecode) least = std::min(least, lane.rows_max);
  return least;
}

Status check_lane(const LaneDescription& lane, size_t i, const ExecutorDescription& executor) {
  if (lane.pool >= executor.pools.size())
    return invalid_argument("engine: lane {} has pool {}, of {} pools", i, lane.pool, executor.pools.size());
  const std::vector<uint32_t>& buckets = lane.buckets;
  if (buckets.empty()) return ok_status();
  if (buckets.front() == 0 || buckets.back() != lane.rows_max ||
      std::adjacent_find(buckets.begin(), buckets.end(), std::greater_equal<>()) != buckets.end())
    return invalid_argument("engine: the buckets of lane {} must ascend from at least 1 to its {} rows of a step", i,
                            lane.rows_max);
  return ok_status();
}

Status check_pool(uint32_t pool, const ExecutorDescription& executor) {
  bool prefills = false, decodes = false;
  for (const LaneDescription& lane : executor.lanes) {
    if (lane.pool != pool) continue;
    prefills |= lane.role != LaneRole::kDecode;
    decodes |= lane.role != LaneRole::kPrefill;
  }
  const KvPoolDescription& described = executor.pools[pool];
  std::vector<uint32_t> borders = described.section_begins;
  borders.insert(borders.begin(), 0);
  borders.push_back(described.blocks);
  if (std::adjacent_find(borders.begin(), borders.end(), std::greater_equal<>()) != borders.end())
    return invalid_argument("engine: a section of KV pool {} has none of its {} blocks", pool, described.blocks);
  if (prefills && decodes) return ok_status();
  return invalid_argument("engine: no lane {} in KV pool {}", prefills ? "decodes" : "prefills", pool);
}

Status check_description(const ExecutorDescription& executor) {
  if (executor.lanes.empty() || executor.lanes.size() > kLanesMax || executor.pools.size() > kLanesMax)
    return invalid_argument("engine: the executor describes {} lanes and {} pools; there must be 1 to {} of each",
                            executor.lanes.size(), executor.pools.size(), kLanesMax);
  for (size_t i = 0; i < executor.lanes.size(); ++i) {
    const LaneDescription& lane = executor.lanes[i];
    RETURN_IF_ERROR(check_lane(lane, i, executor));
    const KvPoolDescription& pool = executor.pools[lane.pool];
    if (pool.block_size == 0 || pool.blocks == 0 || lane.rows_max == 0 || executor.vocab_size == 0 ||
        executor.positions_max < 2)
      return invalid_argument(
          "engine: the executor describes block_size {}, blocks {}, rows_max {}, vocab_size {}, positions_max {}: none "
          "may be 0, and positions at least 2",
          pool.block_size, pool.blocks, lane.rows_max, executor.vocab_size, executor.positions_max);
  }
  for (uint32_t pool = 0; pool < executor.pools.size(); ++pool) RETURN_IF_ERROR(check_pool(pool, executor));
  const bool shares = executor.pools[0].share > 0;
  for (const KvPoolDescription& pool : executor.pools) {
    if (!std::isfinite(pool.share) || pool.share < 0 || (pool.share > 0) != shares)
      return invalid_argument("engine: a KV pool has a share of {}: every pool has one above 0, or none has any",
                              pool.share);
  }
  return ok_status();
}

Status resolve_length(EngineOptions& options, const ExecutorDescription& executor) {
  const uint64_t most = largest_capacity(executor);
  if (options.max_model_len == 0)
    options.max_model_len = static_cast<uint32_t>(std::min<uint64_t>(executor.positions_max, most));
  if (options.max_model_len < 2)
    return invalid_argument("max_model_len must be at least 2, got {}", options.max_model_len);
  if (options.max_model_len > executor.positions_max)
    return invalid_argument("max_model_len {} is beyond the model's {} positions; lower it", options.max_model_len,
                            executor.positions_max);
  if (options.max_model_len > most)
    return invalid_argument(
        "max_model_len {} is beyond the {} positions of the {}KV pool; lower it or give the pool "
        "more memory",
        options.max_model_len, most, executor.pools.size() > 1 ? "largest " : "");
  return ok_status();
}

Status resolve_rows(SchedulerConfig& config, const ExecutorDescription& executor) {
  EngineOptions& options = config.options;
  const uint32_t rows_max = largest_rows(executor);
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
  const uint32_t whole = std::min(options.max_num_batched_tokens, least_prompt_rows(executor));
  if (!options.enable_chunked_prefill && whole < options.max_model_len)
    return invalid_argument(
        "without chunked prefill a prompt must fit into one step: max_num_batched_tokens {} is below "
        "max_model_len {}; raise the first, lower the second, or enable chunked prefill",
        whole, options.max_model_len);
  return ok_status();
}

// A sequence has as many slots as its next steps may leave tokens unknown; where there are not that many, none.
void resolve_depths(SchedulerConfig& config, const ExecutorDescription& executor) {
  for (LaneDescription& lane : config.lanes) {
    lane.pipeline = std::max(lane.pipeline, 1u);
    if (executor.slots <= lane.lookahead) lane.lookahead = 0;
    if (lane.lookahead > 0) config.slots_each = std::max(config.slots_each, lane.lookahead + 1);
  }
}

}  // namespace

bool SchedulerConfig::has_planned_steps(const LaneDescription& lane) const {
  return options.enable_chunked_prefill && lane.role == LaneRole::kPrefill && lane.chunk_rows > 0;
}

uint32_t SchedulerConfig::step_rows_max(const LaneDescription& lane) const {
  const uint32_t most = has_planned_steps(lane) ? std::min(lane.rows_max, lane.chunk_rows) : lane.rows_max;
  return chosen_budget ? most : std::min(most, options.max_num_batched_tokens);
}

// Every running sequence must be able to put a row into every step.
uint32_t SchedulerConfig::sequences_max(uint32_t pool) const {
  uint64_t rows = 0;
  for (const LaneDescription& lane : lanes)
    if (lane.pool == pool && lane.role != LaneRole::kPrefill) rows += step_rows_max(lane);
  return static_cast<uint32_t>(std::min<uint64_t>(rows, options.max_num_seqs));
}

Result<SchedulerConfig> resolve_config(const ExecutorDescription& executor, const EngineOptions& options) {
  RETURN_IF_ERROR(check_description(executor));
  SchedulerConfig config;
  config.options = options;
  config.epoch = executor.epoch;
  config.pools = executor.pools;
  config.lanes = executor.lanes;
  config.vocab_size = executor.vocab_size;
  config.moves_kv = executor.moves_kv;
  resolve_depths(config, executor);
  EngineOptions& resolved = config.options;
  if (resolved.max_num_seqs == 0) return invalid_argument("max_num_seqs must be at least 1, got 0");
  if (resolved.max_concurrent_prefills == 0)
    return invalid_argument("max_concurrent_prefills must be at least 1, got 0");
  RETURN_IF_ERROR(resolve_length(resolved, executor));
  RETURN_IF_ERROR(resolve_rows(config, executor));
  uint64_t running = 0;
  for (uint32_t pool = 0; pool < config.pools.size(); ++pool) running += config.sequences_max(pool);
  resolved.max_num_seqs = static_cast<uint32_t>(std::min<uint64_t>(resolved.max_num_seqs, running));
  if (config.slots_each > 0)
    resolved.max_num_seqs = std::min(resolved.max_num_seqs, executor.slots / config.slots_each);
  if (resolved.queue_limit == 0) resolved.queue_limit = limits::kQueuedRequestsMax;
  return config;
}

Result<SchedulerConfig> resolve_replacement(const ExecutorDescription& executor, const EngineOptions& options) {
  RETURN_IF_ERROR(check_description(executor));
  const uint32_t rows_max = largest_rows(executor);
  const auto length_max = static_cast<uint32_t>(std::min<uint64_t>(executor.positions_max, largest_capacity(executor)));
  EngineOptions lowered = options;  // a 0 stays: it is chosen anew
  lowered.max_num_batched_tokens = std::min(options.max_num_batched_tokens, rows_max);
  lowered.max_model_len = std::min(options.max_model_len, length_max);
  if (!options.enable_chunked_prefill) {  // a whole prompt must fit into a step
    uint32_t rows = least_prompt_rows(executor);
    if (lowered.max_num_batched_tokens > 0) rows = std::min(rows, lowered.max_num_batched_tokens);
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
