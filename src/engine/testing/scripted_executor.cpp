#include "engine/testing/scripted_executor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.hpp"

namespace motley::testing {
namespace {

constexpr size_t kViolationsMax = 20;  // kept; the first ones tell

uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

ScriptedOptions with_lanes(ScriptedOptions options) {
  if (!options.lanes.empty()) return options;
  options.pools = {{.block_size = options.block_size, .blocks = options.blocks, .memory = options.memory}};
  LaneDescription& lane = options.lanes.emplace_back();
  lane.cost = options.cost;
  lane.rows_max = options.rows_max;
  lane.lookahead = options.lookahead;
  lane.pipeline = options.pipeline;
  return options;
}

}  // namespace

ScriptedExecutor::ScriptedExecutor(ScriptedOptions options, const ScriptedExecutor* before)
    : options_(with_lanes(std::move(options))), slots_(options_.slots) {
  for (const KvPoolDescription& pool : options_.pools)
    cells_.emplace_back(static_cast<size_t>(pool.blocks) * pool.block_size);
  if (before == nullptr) return;
  std::lock_guard lock(before->mutex_);
  seen_ = before->seen_;
  for (size_t i = 0; i < options_.pools.size(); ++i) {
    for (size_t j = 0; j < before->options_.pools.size(); ++j) {
      const KvPoolDescription &now = options_.pools[i], &then = before->options_.pools[j];
      if (!now.memory.empty() && now.memory == then.memory) cells_[i] = before->cells_[j];
    }
  }
}

ScriptedExecutor::~ScriptedExecutor() {
  for (Pending& left : pending_)
    left.promise.set({.epoch = left.plan.epoch,
                      .step = left.plan.step,
                      .status = Status(MOTLEY_CANCELLED, "the executor was destroyed"),
                      .tokens = {},
                      .busy_ns = 0});
}

ExecutorDescription ScriptedExecutor::describe() const {
  ExecutorDescription d;
  d.epoch = options_.epoch;
  d.pools = options_.pools;
  d.lanes = options_.lanes;
  d.vocab_size = options_.vocab_size;
  d.positions_max = options_.positions_max;
  d.slots = options_.slots;
  d.moves_kv = options_.moves_kv;
  return d;
}

Future<StepResult> ScriptedExecutor::submit(StepPlan plan) {
  Promise<StepResult> promise;
  Future<StepResult> future = promise.future();
  StepResult result{.epoch = plan.epoch, .step = plan.step, .status = {}, .tokens = {}, .busy_ns = 0};
  {
    std::lock_guard lock(mutex_);
    const bool sound = check_shape(plan);
    if (sound) {
      check_depths(plan);
      check_writes(plan);
    }
    if (sound && options_.manual) {
      pending_.push_back({std::move(plan), std::move(promise)});
      submitted_.notify_all();
      return future;
    }
    if (sound)
      result = run(plan);
    else
      result.status = Status(MOTLEY_INVALID_ARGUMENT, violations_.back());
  }
  promise.set(std::move(result));
  return future;
}

std::span<ScriptedExecutor::Cell> ScriptedExecutor::cells_of(const KvBlock& block) {
  const uint32_t size = options_.pools.at(block.pool).block_size;
  return std::span(cells_.at(block.pool)).subspan(static_cast<size_t>(block.block) * size, size);
}

// What is saved may be read by steps under way, but not written; what is loaded, neither.
void ScriptedExecutor::check_untouched(const KvBlock& block, bool writes) {
  for (const Pending& step : pending_) {
    if (lane_of(step.plan).pool != block.pool) continue;
    for (const PlanSequence& part : step.plan.sequences) {
      const auto begin = step.plan.blocks.begin() + part.block_begin;
      const bool reads = std::find(begin, begin + part.block_count, block.block) != begin + part.block_count;
      if (writes ? reads : blocks_written(step.plan, part).contains(block.block))
        complain(step.plan, fmt::format("block {} of pool {} moves meanwhile", block.block, block.pool));
    }
  }
}

Result<KvContents> ScriptedExecutor::save_kv(std::vector<KvBlock> blocks) {
  if (options_.saves != nullptr) options_.saves();
  std::lock_guard lock(mutex_);
  if (!options_.moves_kv) return error(MOTLEY_UNIMPLEMENTED, "scripted");
  if (loss_) return *loss_;
  if (saving_) return *saving_;
  KvContents contents;
  contents.block_size = options_.pools.front().block_size;
  contents.blocks.resize(options_.pools.size());
  blocks.resize(std::min(blocks.size(), options_.saved_blocks_max));
  contents.busy_ns = static_cast<int64_t>(blocks.size()) * options_.saved_block_ns;
  for (const KvBlock& block : blocks) contents.blocks.at(block.pool).push_back(block.block);
  for (uint32_t pool = 0; pool < contents.blocks.size(); ++pool) {
    std::sort(contents.blocks[pool].begin(), contents.blocks[pool].end());
    KvSlice& slice = contents.slices.emplace_back();
    slice.place_end = contents.blocks[pool].size();
    slice.pool = pool;
    const size_t each = options_.pools[pool].block_size * sizeof(Cell);
    slice.size = contents.blocks[pool].size() * each;
    slice.bytes = std::make_unique<std::byte[]>(slice.size);
    for (size_t i = 0; i < contents.blocks[pool].size(); ++i) {
      const KvBlock block{pool, contents.blocks[pool][i]};
      check_untouched(block, false);
      std::memcpy(slice.bytes.get() + i * each, cells_of(block).data(), each);
    }
    contents.bytes += slice.size;
  }
  return contents;
}

Result<KvLoaded> ScriptedExecutor::load_kv(std::shared_ptr<const KvContents> contents, std::vector<KvMove> moves) {
  if (options_.loads != nullptr) options_.loads();
  std::lock_guard lock(mutex_);
  if (!options_.moves_kv) return error(MOTLEY_UNIMPLEMENTED, "scripted");
  if (loss_) return *loss_;
  if (loading_) return *std::exchange(loading_, std::nullopt);
  KvLoaded loaded;
  std::set<KvBlock> written;
  for (const KvMove& move : moves) {
    const std::vector<BlockId>& saved = contents->blocks.at(move.from.pool);
    const auto at = std::lower_bound(saved.begin(), saved.end(), move.from.block);
    const size_t each = cells_of(move.to).size_bytes();
    if (at == saved.end() || *at != move.from.block || !written.insert(move.to).second)
      return invalid_argument("scripted: block {} was not saved, or {} is written twice", move.from.block,
                              move.to.block);
    check_untouched(move.to, true);
    std::memcpy(cells_of(move.to).data(),
                contents->slices.at(move.from.pool).bytes.get() + static_cast<size_t>(at - saved.begin()) * each, each);
    loaded.bytes += each;
  }
  return loaded;
}

bool ScriptedExecutor::run_next(std::optional<uint32_t> lane) {
  Promise<StepResult> promise;
  StepResult result;
  {
    std::lock_guard lock(mutex_);
    const auto next = std::find_if(pending_.begin(), pending_.end(),
                                   [&](const Pending& step) { return !lane || step.plan.lane == *lane; });
    if (next == pending_.end()) return false;
    result = run(next->plan);
    promise = std::move(next->promise);
    pending_.erase(next);
  }
  promise.set(std::move(result));
  return true;
}

void ScriptedExecutor::wait_pending(size_t count) {
  std::unique_lock lock(mutex_);
  submitted_.wait(lock, [&] { return pending_.size() >= count; });
}

size_t ScriptedExecutor::pending() const {
  std::lock_guard lock(mutex_);
  return pending_.size();
}

void ScriptedExecutor::forgive() {
  std::lock_guard lock(mutex_);
  failure_.reset();
}

void ScriptedExecutor::fail_next(Status status) {
  std::lock_guard lock(mutex_);
  failure_ = std::move(status);
}

void ScriptedExecutor::lose(Status status) {
  std::lock_guard lock(mutex_);
  loss_ = std::move(status);
}

void ScriptedExecutor::fail_saving(Status status) {
  std::lock_guard lock(mutex_);
  saving_ = std::move(status);
}

void ScriptedExecutor::fail_loading(Status status) {
  std::lock_guard lock(mutex_);
  loading_ = std::move(status);
}

uint64_t ScriptedExecutor::steps_run() const {
  std::lock_guard lock(mutex_);
  return steps_run_;
}

uint64_t ScriptedExecutor::rows_run() const {
  std::lock_guard lock(mutex_);
  return rows_run_;
}

std::vector<std::string> ScriptedExecutor::violations() const {
  std::lock_guard lock(mutex_);
  return violations_;
}

// ---- what a plan must look like

void ScriptedExecutor::complain(const StepPlan& plan, const std::string& what) {
  if (violations_.size() < kViolationsMax) violations_.push_back(fmt::format("step {}: {}", plan.step, what));
}

#define EXPECT_PLAN(condition, ...)             \
  do {                                          \
    if (!(condition)) {                         \
      complain(plan, fmt::format(__VA_ARGS__)); \
      return false;                             \
    }                                           \
  } while (0)

bool ScriptedExecutor::check_shape(const StepPlan& plan) {
  const size_t rows = plan.tokens.size();
  EXPECT_PLAN(plan.epoch == options_.epoch && plan.lane < options_.lanes.size(), "epoch {}, lane {}", plan.epoch,
              plan.lane);
  EXPECT_PLAN(plan.step == last_step_ + 1 || (last_step_ == 0 && plan.step > 0), "follows step {}", last_step_);
  last_step_ = plan.step;
  EXPECT_PLAN(rows > 0 && rows <= lane_of(plan).rows_max, "{} rows", rows);
  EXPECT_PLAN(plan.token_slots.size() == rows && plan.positions.size() == rows && plan.generated.size() == rows,
              "row arrays of {}, {}, {}, {}", rows, plan.token_slots.size(), plan.positions.size(),
              plan.generated.size());
  EXPECT_PLAN(plan.samples.size() == plan.logit_rows.size(), "{} samples for {} logit rows", plan.samples.size(),
              plan.logit_rows.size());
  uint32_t row = 0, logit = 0;
  std::set<uint64_t> sequences;
  for (const PlanSequence& part : plan.sequences) {
    EXPECT_PLAN(sequences.insert(part.sequence).second, "sequence {} stands twice", part.sequence);
    if (!check_sequence(plan, part, row, logit) || !check_role(plan, part)) return false;
    row += part.row_count;
    logit += part.logits_count;
  }
  EXPECT_PLAN(row == rows && logit == plan.logit_rows.size(), "sequences cover {} of {} rows, {} of {} logit rows", row,
              rows, logit, plan.logit_rows.size());
  return true;
}

bool ScriptedExecutor::check_sequence(const StepPlan& plan, const PlanSequence& part, uint32_t row, uint32_t logit) {
  EXPECT_PLAN(part.row_begin == row && part.row_count > 0 && row + part.row_count <= plan.tokens.size(),
              "sequence {} has rows {}+{} after row {}", part.sequence, part.row_begin, part.row_count, row);
  EXPECT_PLAN(part.context >= part.row_count && part.context <= options_.positions_max, "sequence {} has context {}",
              part.sequence, part.context);
  EXPECT_PLAN(static_cast<size_t>(part.block_begin) + part.block_count <= plan.blocks.size() &&
                  static_cast<uint64_t>(part.block_count) * pool_of(plan).block_size >= part.context,
              "sequence {} has blocks {}+{} for context {}", part.sequence, part.block_begin, part.block_count,
              part.context);
  std::set<BlockId> blocks;
  for (uint32_t b = 0; b < part.block_count; ++b) {
    const BlockId id = plan.blocks[part.block_begin + b];
    EXPECT_PLAN(id >= 0 && static_cast<uint32_t>(id) < pool_of(plan).blocks, "block id {}", id);
    EXPECT_PLAN(blocks.insert(id).second, "sequence {} has block {} twice", part.sequence, id);
  }
  for (uint32_t i = 0; i < part.row_count; ++i) {
    const size_t r = row + i;
    EXPECT_PLAN(plan.positions[r] == static_cast<int32_t>(part.context - part.row_count + i), "row {} at position {}",
                r, plan.positions[r]);
    EXPECT_PLAN(plan.token_slots[r] < static_cast<SlotId>(options_.slots), "row {} reads slot {}", r,
                plan.token_slots[r]);
    EXPECT_PLAN(plan.token_slots[r] >= 0 ||
                    (plan.tokens[r] >= 0 && static_cast<uint32_t>(plan.tokens[r]) < options_.vocab_size),
                "row {} has token {}", r, plan.tokens[r]);
    EXPECT_PLAN(i == 0 || plan.generated[r] >= plan.generated[r - 1], "row {} is a prompt row after a generated one",
                r);
  }
  EXPECT_PLAN(part.logits_begin == logit && logit + part.logits_count <= plan.logit_rows.size(),
              "sequence {} has logit rows {}+{}", part.sequence, part.logits_begin, part.logits_count);
  for (uint32_t l = logit; l < logit + part.logits_count; ++l) {
    const auto r = static_cast<uint32_t>(plan.logit_rows[l]);
    EXPECT_PLAN(r >= row && r < row + part.row_count && (l == logit || plan.logit_rows[l] > plan.logit_rows[l - 1]),
                "logit row {} of sequence {}", r, part.sequence);
    EXPECT_PLAN(plan.samples[l].position == static_cast<uint32_t>(plan.positions[r]) + 1,
                "the sample of row {} is for position {}", r, plan.samples[l].position);
    if (!check_sample(plan, part, plan.samples[l])) return false;
  }
  return true;
}

bool ScriptedExecutor::check_sample(const StepPlan& plan, const PlanSequence& part, const motley_sample_row& s) {
  EXPECT_PLAN(s.counts_begin <= s.counts_end && s.counts_end <= plan.counts.size() &&
                  s.pending_begin <= s.pending_end && s.pending_end <= plan.pending.size() &&
                  s.biases_begin <= s.biases_end && s.biases_end <= plan.biases.size(),
              "a sample of sequence {} points outside", part.sequence);
  EXPECT_PLAN(s.out_slot == MOTLEY_NONE || (s.out_slot >= 0 && s.out_slot < static_cast<SlotId>(options_.slots)),
              "out_slot {}", s.out_slot);
  for (uint32_t i = s.biases_begin; i < s.biases_end; ++i) {
    EXPECT_PLAN(i == s.biases_begin || plan.biases[i].id > plan.biases[i - 1].id, "biases of sequence {} do not ascend",
                part.sequence);
    EXPECT_PLAN(plan.biases[i].id >= 0 && static_cast<uint32_t>(plan.biases[i].id) < options_.vocab_size,
                "bias of token {}", plan.biases[i].id);
  }
  for (uint32_t i = s.pending_begin; i < s.pending_end; ++i)
    EXPECT_PLAN(
        plan.pending[i] >= 0 && plan.pending[i] < static_cast<SlotId>(options_.slots) && plan.pending[i] != s.out_slot,
        "pending slot {}", plan.pending[i]);
  return true;
}

// A lane that decodes only gets one generated row of a sequence; one that prefills only gets known text.
bool ScriptedExecutor::check_role(const StepPlan& plan, const PlanSequence& part) {
  const LaneRole role = lane_of(plan).role;
  EXPECT_PLAN(role != LaneRole::kDecode || (part.row_count == 1 && plan.generated[part.row_begin] == 1),
              "sequence {} has {} rows to decode in lane {}", part.sequence, part.row_count, plan.lane);
  for (uint32_t r = part.row_begin; r < part.row_begin + part.row_count; ++r)
    EXPECT_PLAN(role != LaneRole::kPrefill || plan.token_slots[r] < 0, "row {} of lane {} reads slot {}", r, plan.lane,
                plan.token_slots[r]);
  return true;
}

// Lookahead bounds the steps of one sequence under way, pipeline those of disjoint ones; both are a lane's, and a
// sequence is under way in one lane at a time.
void ScriptedExecutor::check_depths(const StepPlan& plan) {
  const LaneDescription& lane = lane_of(plan);
  uint32_t steps = 0;
  std::map<uint64_t, uint32_t> under_way;
  for (const Pending& step : pending_) {
    steps += step.plan.lane == plan.lane ? 1 : 0;
    for (const PlanSequence& part : step.plan.sequences) {
      ++under_way[part.sequence];
      if (step.plan.lane != plan.lane) under_way[part.sequence] += lane.lookahead + 1;
    }
  }
  if (steps >= lane.pipeline + lane.lookahead)
    complain(plan, fmt::format("{} steps of lane {} are under way already", steps, plan.lane));
  for (const PlanSequence& part : plan.sequences)
    if (under_way[part.sequence] > lane.lookahead)
      complain(plan,
               fmt::format("sequence {} has too many steps under way already, or is in another lane", part.sequence));
}

std::set<BlockId> ScriptedExecutor::blocks_written(const StepPlan& plan, const PlanSequence& part) const {
  std::set<BlockId> written;
  for (uint32_t p = part.context - part.row_count; p < part.context; ++p)
    written.insert(plan.blocks[part.block_begin + p / pool_of(plan).block_size]);
  return written;
}

// A block that a step writes belongs to one sequence alone, in this step and in those under way.
void ScriptedExecutor::check_writes(const StepPlan& plan) {
  std::map<BlockId, uint64_t> writer;
  for (const PlanSequence& part : plan.sequences)
    for (const BlockId id : blocks_written(plan, part))
      if (!writer.emplace(id, part.sequence).second) complain(plan, fmt::format("block {} has two writers", id));
  const auto check_readers = [&](const StepPlan& other, const char* where) {
    for (const PlanSequence& part : other.sequences)
      for (uint32_t b = 0; b < part.block_count; ++b) {
        const auto at = writer.find(other.blocks[part.block_begin + b]);
        if (at != writer.end() && at->second != part.sequence)
          complain(plan, fmt::format("sequence {} writes block {}, which sequence {} holds in {}", at->second,
                                     at->first, part.sequence, where));
      }
  };
  check_readers(plan, "this step");
  for (const Pending& step : pending_)
    if (lane_of(step.plan).pool == lane_of(plan).pool) check_readers(step.plan, "a step under way");
}

// ---- running a step

ScriptedExecutor::Cell& ScriptedExecutor::cell(const StepPlan& plan, const PlanSequence& part, uint32_t position) {
  const uint32_t size = pool_of(plan).block_size;
  const auto block = static_cast<size_t>(plan.blocks[part.block_begin + position / size]);
  return cells_[lane_of(plan).pool][block * size + position % size];
}

StepResult ScriptedExecutor::run(const StepPlan& plan) {
  StepResult result{.epoch = plan.epoch, .step = plan.step, .status = {}, .tokens = {}, .busy_ns = options_.busy_ns};
  result.busy_ns += options_.busy_row_ns * static_cast<int64_t>(plan.tokens.size());
  if (!loss_ && steps_run_ >= options_.steps_max) loss_ = Status(MOTLEY_UNAVAILABLE, "the device is lost");
  if (loss_) {
    result.status = *loss_;
    return result;
  }
  ++steps_run_;
  rows_run_ += plan.tokens.size();
  if (failure_) {
    result.status = *std::exchange(failure_, std::nullopt);
    for (const PlanSequence& part : plan.sequences) spoil(plan, part);
    return result;
  }
  for (const PlanSequence& part : plan.sequences)
    if (failed_.contains(part.sequence))
      spoil(plan, part);
    else if (!write_rows(plan, part))
      result.status = Status(MOTLEY_INVALID_ARGUMENT, violations_.back());
  for (const PlanSequence& part : plan.sequences) {
    if (!result.status.ok()) break;
    if (failed_.contains(part.sequence)) {
      result.tokens.resize(result.tokens.size() + part.logits_count);
      continue;
    }
    const auto text = read_text(plan, part);
    if (!text) {
      result.status = Status(MOTLEY_INVALID_ARGUMENT, violations_.back());
    } else if (part.logits_count > 0) {
      result.tokens.push_back(sample(plan, part, *text));
    }
  }
  if (!result.status.ok()) result.tokens.clear();
  return result;
}

// What a failed step leaves behind: whoever reads it later without having written it himself is caught. Further steps
// of its sequences that were under way run on garbage; their tokens mean nothing.
void ScriptedExecutor::spoil(const StepPlan& plan, const PlanSequence& part) {
  failed_.insert(part.sequence);
  for (uint32_t p = part.context - part.row_count; p < part.context; ++p) cell(plan, part, p) = {};
}

bool ScriptedExecutor::write_rows(const StepPlan& plan, const PlanSequence& part) {
  for (uint32_t i = 0; i < part.row_count; ++i) {
    const size_t r = part.row_begin + i;
    const auto position = static_cast<uint32_t>(plan.positions[r]);
    TokenId token = plan.tokens[r];
    if (plan.token_slots[r] >= 0) {
      const Slot& slot = slots_[static_cast<size_t>(plan.token_slots[r])];
      EXPECT_PLAN(slot.sequence == part.sequence && slot.position == plan.positions[r] && slot.lane == plan.lane,
                  "row {} of sequence {} at {} reads slot {}, which holds position {} of sequence {}, drawn in lane {}",
                  r, part.sequence, position, plan.token_slots[r], slot.position, slot.sequence, slot.lane);
      token = slot.token;
    }
    const auto [at, fresh] = seen_[part.sequence].emplace(position, token);
    EXPECT_PLAN(fresh || at->second == token, "sequence {} had token {} at {}, now {}", part.sequence, at->second,
                position, token);
    cell(plan, part, position) = {.token = token, .position = plan.positions[r]};
  }
  return true;
}

std::optional<std::vector<TokenId>> ScriptedExecutor::read_text(const StepPlan& plan, const PlanSequence& part) {
  std::vector<TokenId> text(part.context);
  for (uint32_t p = 0; p < part.context; ++p) {
    const Cell& held = cell(plan, part, p);
    if (held.position != static_cast<int32_t>(p)) {
      complain(plan,
               fmt::format("sequence {} reads position {} where {} was written", part.sequence, p, held.position));
      return std::nullopt;
    }
    text[p] = held.token;
  }
  return text;
}

SampledToken ScriptedExecutor::sample(const StepPlan& plan, const PlanSequence& part, std::span<const TokenId> text) {
  const motley_sample_row& row = plan.samples[part.logits_begin];
  const auto banned = [&](TokenId id) {
    for (uint32_t i = row.biases_begin; i < row.biases_end; ++i)
      if (plan.biases[i].id == id) return plan.biases[i].bias == -INFINITY;
    return false;
  };
  std::vector<TokenId> pending;
  for (uint32_t i = row.pending_begin; i < row.pending_end; ++i) {
    const Slot& slot = slots_[static_cast<size_t>(plan.pending[i])];
    if (slot.sequence != part.sequence || slot.lane != plan.lane)
      complain(plan, fmt::format("pending slot {} is another's", plan.pending[i]));
    pending.push_back(slot.token);
  }
  check_counts(plan, row, text, pending);
  SampledToken token;
  token.id =
      options_.choice ? options_.choice(text, row, banned) : hashed_choice(text, row, options_.vocab_size, banned);
  token.logprob = -1;
  for (int32_t k = 0; k < row.top_logprobs; ++k)
    token.top.push_back(
        {.id = static_cast<TokenId>((static_cast<uint32_t>(token.id) + static_cast<uint32_t>(k)) % options_.vocab_size),
         .logprob = -1.0f - static_cast<float>(k)});
  if (row.out_slot >= 0)
    slots_[static_cast<size_t>(row.out_slot)] = {.token = token.id,
                                                 .position = static_cast<int32_t>(row.position),
                                                 .sequence = part.sequence,
                                                 .lane = plan.lane};
  return token;
}

// Counts and pending tokens must add up to the text, where a penalty asks for them; without one there are none.
void ScriptedExecutor::check_counts(const StepPlan& plan, const motley_sample_row& row, std::span<const TokenId> text,
                                    const std::vector<TokenId>& pending) {
  const bool penalised = row.presence_penalty != 0 || row.frequency_penalty != 0 || row.repetition_penalty != 1;
  std::map<TokenId, std::pair<int32_t, int32_t>> given, right;
  size_t output = pending.size();
  for (const TokenId id : pending) ++given[id].second;
  for (uint32_t i = row.counts_begin; i < row.counts_end; ++i) {
    const motley_token_count& c = plan.counts[i];
    if (i > row.counts_begin && c.id <= plan.counts[i - 1].id) complain(plan, "counts do not ascend");
    given[c.id].first = c.in_prompt;
    given[c.id].second += c.in_output;
    output += static_cast<size_t>(c.in_output);
  }
  if (!penalised) {
    if (!given.empty()) complain(plan, "counts without a penalty");
    return;
  }
  for (size_t p = 0; p < text.size(); ++p) {
    if (p + output < text.size())
      right[text[p]].first = 1;
    else
      ++right[text[p]].second;
  }
  if (given != right || output >= text.size()) complain(plan, "counts and pending tokens are not those of the text");
}

TokenId ScriptedExecutor::hashed_choice(std::span<const TokenId> text, const motley_sample_row& row,
                                        uint32_t vocab_size, const std::function<bool(TokenId)>& banned) {
  uint64_t state = mix(row.seed * 31 + row.choice + 1);
  for (const TokenId token : text) state = mix(state + 0x9e3779b97f4a7c15u + static_cast<uint64_t>(token));
  auto id = static_cast<TokenId>(state % vocab_size);
  for (uint32_t tries = 0; tries < vocab_size && banned && banned(id); ++tries)
    id = static_cast<TokenId>((static_cast<uint32_t>(id) + 1) % vocab_size);
  return id;
}

#undef EXPECT_PLAN

}  // namespace motley::testing
