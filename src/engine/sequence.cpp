#include "engine/sequence.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace motley {

Sequence::Sequence(Request from, uint32_t max_output, uint64_t arrival_rank, int64_t now_ns)
    : request(std::move(from)),
      tokens(std::move(request.prompt)),
      arrival(arrival_rank),
      output_room(max_output),
      prompt_length_(static_cast<uint32_t>(tokens.size())),
      max_output_(max_output) {
  times.arrival_ns = now_ns;
  build_biases();
  if (penalised()) build_counts();
}

bool Sequence::is_end(TokenId token) const {
  const auto among = [&](const std::vector<TokenId>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return (!request.params.ignore_eos && among(request.end_tokens)) || among(request.params.stop_token_ids);
}

bool Sequence::penalised() const {
  const TokenSampling& p = request.params;
  return p.presence_penalty != 0 || p.frequency_penalty != 0 || p.repetition_penalty != 1;
}

void Sequence::build_counts() {
  std::vector<TokenId> sorted = tokens;
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  counts_.reserve(sorted.size() + 16);
  for (const TokenId id : sorted) counts_.push_back({.id = id, .in_prompt = 1, .in_output = 0});
}

// As vLLM: below min_tokens, end tokens are forbidden even where ignore_eos is set.
void Sequence::build_biases() {
  const auto by_id = [](const motley_token_bias& a, const motley_token_bias& b) { return a.id < b.id; };
  const auto same_id = [](const motley_token_bias& a, const motley_token_bias& b) { return a.id == b.id; };
  biases_ = request.params.logit_bias;
  std::sort(biases_.begin(), biases_.end(), by_id);
  if (request.params.min_tokens == 0) return;
  for (const auto* ids : {&request.end_tokens, &request.params.stop_token_ids})
    for (const TokenId id : *ids) early_biases_.push_back({.id = id, .bias = -INFINITY});
  early_biases_.insert(early_biases_.end(), biases_.begin(), biases_.end());
  std::stable_sort(early_biases_.begin(), early_biases_.end(), by_id);  // a ban stands before, so unique keeps it
  early_biases_.erase(std::unique(early_biases_.begin(), early_biases_.end(), same_id), early_biases_.end());
}

void Sequence::forget_progress() {
  blocks.clear();
  next_blocks.clear();
  slot_base = MOTLEY_NONE;
  pool = lane = 0;
  computed = committed = published = 0;
  chain = kChainRoot;
  prefilling = broken = false;
  state = State::kWaiting;
}

void Sequence::learn(TokenId token) {
  tokens.push_back(token);
  --unknown;
  if (!penalised()) return;
  auto at = std::lower_bound(counts_.begin(), counts_.end(), token,
                             [](const motley_token_count& c, TokenId id) { return c.id < id; });
  if (at == counts_.end() || at->id != token) at = counts_.insert(at, {.id = token, .in_prompt = 0, .in_output = 0});
  ++at->in_output;
}

SlotId Sequence::slot_of(uint32_t output, uint32_t slots_each) const {
  return slots_each == 0 ? MOTLEY_NONE : slot_base + static_cast<SlotId>(output % slots_each);
}

bool Sequence::append_rows(StepPlan& plan, uint32_t count, uint32_t block_size, uint32_t slots_each) {
  PlanSequence part;
  part.sequence = id();
  part.row_begin = static_cast<uint32_t>(plan.tokens.size());
  part.row_count = count;
  part.context = computed + count;
  part.block_begin = static_cast<uint32_t>(plan.blocks.size());
  part.block_count = (part.context + block_size - 1) / block_size;
  part.logits_begin = static_cast<uint32_t>(plan.logit_rows.size());
  for (uint32_t position = computed; position < part.context; ++position) {
    const bool known = position < tokens.size();
    plan.tokens.push_back(known ? tokens[position] : 0);
    plan.token_slots.push_back(known ? MOTLEY_NONE : slot_of(position - prompt_length_, slots_each));
    plan.positions.push_back(static_cast<int32_t>(position));
    plan.generated.push_back(position >= prompt_length_ ? 1 : 0);
  }
  plan.blocks.insert(plan.blocks.end(), blocks.begin(), blocks.begin() + part.block_count);
  computed = part.context;
  const bool draws = computed == total();
  if (draws) {
    part.logits_count = 1;
    plan.logit_rows.push_back(static_cast<int32_t>(part.row_begin + count - 1));
    append_sample(plan, slots_each);
    ++unknown;
  }
  plan.sequences.push_back(part);
  return draws;
}

void Sequence::append_sample(StepPlan& plan, uint32_t slots_each) {
  const TokenSampling& p = request.params;
  const uint32_t output = total() - prompt_length_;
  motley_sample_row row{};
  row.seed = p.seed;
  row.choice = p.choice;
  row.position = total();
  row.temperature = p.temperature;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.top_k = std::max(p.top_k, 0);
  row.presence_penalty = p.presence_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.repetition_penalty = p.repetition_penalty;
  row.top_logprobs = p.logprobs;
  row.out_slot = slot_of(output, slots_each);
  row.counts_begin = static_cast<uint32_t>(plan.counts.size());
  row.pending_begin = static_cast<uint32_t>(plan.pending.size());
  if (penalised()) {
    plan.counts.insert(plan.counts.end(), counts_.begin(), counts_.end());
    for (uint32_t k = known_output(); k < output; ++k) plan.pending.push_back(slot_of(k, slots_each));
  }
  row.counts_end = static_cast<uint32_t>(plan.counts.size());
  row.pending_end = static_cast<uint32_t>(plan.pending.size());
  const auto& biases = output < p.min_tokens ? early_biases_ : biases_;
  row.biases_begin = static_cast<uint32_t>(plan.biases.size());
  plan.biases.insert(plan.biases.end(), biases.begin(), biases.end());
  row.biases_end = static_cast<uint32_t>(plan.biases.size());
  plan.samples.push_back(row);
}

}  // namespace motley
