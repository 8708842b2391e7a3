// SAMPLE: docs/contracts/sampling.md is the specification; section numbers below are its.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "kit/internal.hpp"
#include "kit/noise.hpp"
#include "kit/reference.hpp"

namespace motley::kit {

namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;  // temperatures below count as 0
constexpr int64_t kHeapMax = 512;      // selections up to this size keep a heap, larger ones partition a copy
constexpr int64_t kFirstGuess = 64;    // of how many candidates top_p keeps
constexpr int64_t kGuessGrowth = 8;
constexpr double kLn2 = 0.69314718055994530942;

struct Candidate {
  float value;
  int32_t id;
};
// Better first: higher value, of equals the lower id.
bool better(const Candidate& a, const Candidate& b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }

float clean(float x) { return x <= FLT_MAX ? x : (x > FLT_MAX ? FLT_MAX : kForbidden); }  // +inf; else NaN

// The best k (or all, if fewer) of values[0, count), best first, into `out` (room for count).
int64_t select_best(const float* values, int64_t count, int64_t k, Candidate* out) {
  k = std::min(k, count);
  if (k > kHeapMax) {
    for (int64_t i = 0; i < count; ++i) out[i] = {clean(values[i]), static_cast<int32_t>(i)};
    if (k < count) std::nth_element(out, out + k, out + count, better);
    std::sort(out, out + k, better);
    return k;
  }
  for (int64_t i = 0; i < k; ++i) out[i] = {clean(values[i]), static_cast<int32_t>(i)};
  std::make_heap(out, out + k, better);  // the worst kept one on top
  for (int64_t i = k; i < count; ++i) {
    if (!(values[i] > out[0].value)) continue;  // ids ascend: an equal value is worse
    const Candidate next{clean(values[i]), static_cast<int32_t>(i)};
    if (!better(next, out[0])) continue;
    std::pop_heap(out, out + k, better);
    out[k - 1] = next;
    std::push_heap(out, out + k, better);
  }
  std::sort_heap(out, out + k, better);
  return k;
}

// The largest of values[0, count), NaN left out; -infinity if there is none. Lanes compare without waiting for another.
float largest_of(const float* values, int64_t count) {
  constexpr int64_t kLanes = 32;
  std::array<float, kLanes> most;
  most.fill(kForbidden);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) most[j] = values[i + j] > most[j] ? values[i + j] : most[j];
  }
  for (; i < count; ++i) most[0] = values[i] > most[0] ? values[i] : most[0];
  return *std::max_element(most.begin(), most.end());
}

// By runs: only one with a larger value than all before is looked at again, for the place.
Candidate argmax(const float* values, int64_t count) {
  constexpr int64_t kRun = 1024;
  Candidate best{kForbidden, 0};
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t run = std::min(kRun, count - begin);
    const float largest = std::min(largest_of(values + begin, run), FLT_MAX);
    if (!(largest > best.value)) continue;
    int64_t i = begin;
    while (!(values[i] >= largest)) ++i;
    best = {largest, static_cast<int32_t>(i)};
  }
  return best;
}

// One row on its way through the sections of the contract.
class RowSampler {
 public:
  RowSampler(const OpCall& call, int64_t row)
      : call_(call),
        row_(row),
        spec_(call.batch->samples[row]),
        raw_(call.in[0].f32(row)),
        vocab_(call.in[0].width),
        logits_(raw_),
        changed_(reinterpret_cast<float*>(call.scratch)),
        list_(reinterpret_cast<Candidate*>(call.scratch + ((vocab_ * 4 + 63) & ~int64_t{63}))) {}

  void run() {
    adjust();
    const int32_t id = spec_.temperature < kGreedyBelow ? argmax(logits_, vocab_).id : draw();
    *call_.out[0].i32(row_) = id;
    write_logprobs(id);
  }

 private:
  // §2 and §3: changes go to a private copy; the raw logits stay for §1.
  float* writable() {
    if (logits_ != changed_) {
      std::memcpy(changed_, raw_, static_cast<size_t>(vocab_) * sizeof(float));
      logits_ = changed_;
    }
    return changed_;
  }
  int32_t pending_token(uint32_t i) const {
    const int32_t id = call_.in[1].data ? *call_.in[1].i32(call_.batch->pending[i]) : -1;
    if (id < 0 || id >= vocab_) {
      call_.fail(MOTLEY_OUT_OF_RANGE, "SAMPLE: a pending slot holds no id of the vocabulary");
      return -1;
    }
    return id;
  }
  int32_t times_pending(int32_t id, uint32_t end) const {
    int32_t times = 0;
    for (uint32_t i = spec_.pending_begin; i < end; ++i) times += pending_token(i) == id;
    return times;
  }
  void penalise(int32_t id, int32_t in_output) {
    float& x = writable()[id];
    if (spec_.repetition_penalty != 1.0f) x = x > 0 ? x / spec_.repetition_penalty : x * spec_.repetition_penalty;
    x -= spec_.frequency_penalty * static_cast<float>(in_output);
    if (in_output > 0) x -= spec_.presence_penalty;
  }
  void adjust() {
    const motley_batch& b = *call_.batch;
    for (uint32_t i = spec_.biases_begin; i < spec_.biases_end; ++i) writable()[b.biases[i].id] += b.biases[i].bias;
    if (spec_.repetition_penalty == 1.0f && spec_.frequency_penalty == 0.0f && spec_.presence_penalty == 0.0f) return;
    for (uint32_t i = spec_.counts_begin; i < spec_.counts_end; ++i) {
      const motley_token_count& c = b.counts[i];
      const int32_t in_output = c.in_output + times_pending(c.id, spec_.pending_end);
      if (c.in_prompt || in_output > 0) penalise(c.id, in_output);
    }
    for (uint32_t i = spec_.pending_begin; i < spec_.pending_end; ++i) {
      const int32_t id = pending_token(i);
      if (id < 0 || times_pending(id, i) > 0 || counted(id)) continue;
      penalise(id, times_pending(id, spec_.pending_end));
    }
  }
  bool counted(int32_t id) const {
    for (uint32_t i = spec_.counts_begin; i < spec_.counts_end; ++i)
      if (call_.batch->counts[i].id == id) return true;
    return false;
  }

  // §4: y = (x - max) / temperature, at most 0.
  float scaled(float x) const { return (clean(x) - largest_) / spec_.temperature; }

  // §5 and §6.
  int32_t draw() {
    const Candidate best = argmax(logits_, vocab_);
    if (best.value == kForbidden) return best.id;
    largest_ = best.value;
    const float floor = spec_.min_p > 0 ? std::log(spec_.min_p) : kForbidden;
    const bool by_k = spec_.top_k > 0 && spec_.top_k < vocab_;
    if (!by_k && spec_.top_p >= 1.0f) return race_all(floor);
    int64_t kept = by_k ? select_best(logits_, vocab_, spec_.top_k, list_) : 0;
    if (by_k) kept = to_scaled(kept, floor);
    if (spec_.top_p < 1.0f) kept = by_k ? nucleus(kept, mass(kept)) : nucleus_of_all(floor);
    Race race(spec_);
    for (int64_t i = 0; i < kept; ++i) race.enter(list_[i].id, list_[i].value);
    return race.winner();
  }
  // list_[0, count): logits, best first, become y; returns how many pass min_p.
  int64_t to_scaled(int64_t count, float floor) {
    int64_t kept = 0;
    while (kept < count && (list_[kept].value = scaled(list_[kept].value)) >= floor && list_[kept].value > kForbidden)
      ++kept;
    return kept;
  }
  double mass(int64_t count) const {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += std::exp(list_[i].value);
    return sum;
  }
  // How many of list_[0, count) top_p keeps, or -1 if it would need more than these to reach its share of `total`.
  int64_t nucleus(int64_t count, double total, bool complete = true) const {
    double before = 0;
    for (int64_t i = 0; i < count; ++i) {
      before += std::exp(list_[i].value);
      if (before >= spec_.top_p * total) return i + 1;
    }
    return complete ? count : -1;
  }
  int64_t nucleus_of_all(float floor) {
    double total = 0;
    for (int64_t i = 0; i < vocab_; ++i) {
      const float y = scaled(logits_[i]);
      if (y >= floor) total += std::exp(y);
    }
    for (int64_t guess = kFirstGuess;; guess *= kGuessGrowth) {
      const int64_t found = select_best(logits_, vocab_, guess, list_);
      const int64_t passed = to_scaled(found, floor);
      const bool complete = found == vocab_ || passed < found;
      const int64_t kept = nucleus(passed, total, complete);
      if (kept >= 0) return kept;
    }
  }

  // §6: the smallest arrival time -ln(u) / exp(y) wins; of equals the lower id.
  class Race {
   public:
    explicit Race(const motley_sample_row& spec) : noise_(spec.seed, spec.choice, spec.position, kNoiseToken) {}
    void enter(int32_t id, float y) { enter(id, y, noise_.word(static_cast<uint32_t>(id))); }
    void enter(int32_t id, float y, uint32_t word) {
      // -ln(u) >= 1 - u > 2^-(leading ones + 1): an entrant whose bound already loses needs no logarithm.
      if (y + log_time_ < -kLn2 * (std::countl_one(word) + 1)) return;
      const double time = -std::log(noise_uniform(word)) * std::exp(-static_cast<double>(y));
      if (time < time_ || (time == time_ && id < id_)) {
        time_ = time, id_ = id;
        log_time_ = std::log(time) + 1e-9;  // rounded up: a bound may let too many through, never too few
      }
    }
    int32_t winner() const { return id_; }
    const Noise& noise() const { return noise_; }

   private:
    Noise noise_;
    double time_ = std::numeric_limits<double>::infinity(), log_time_ = time_;
    int32_t id_ = std::numeric_limits<int32_t>::max();
  };
  int32_t race_all(float floor) const {
    Race race(spec_);
    for (int64_t id = 0; id < vocab_; id += 4) {
      const std::array<uint32_t, 4> words = race.noise().words(static_cast<uint32_t>(id / 4));
      const int64_t end = std::min<int64_t>(4, vocab_ - id);
      for (int64_t j = 0; j < end; ++j) {
        const float y = scaled(logits_[id + j]);
        if (y > kForbidden && y >= floor) race.enter(static_cast<int32_t>(id + j), y, words[static_cast<size_t>(j)]);
      }
    }
    return race.winner();
  }

  // §1.
  void write_logprobs(int32_t id) {
    const int64_t want = std::min<int64_t>(spec_.top_logprobs, vocab_);
    for (int64_t i = 0; i < MOTLEY_TOP_MAX; ++i) {
      if (call_.out[2].data) call_.out[2].i32(row_)[i] = MOTLEY_NONE;
      if (call_.out[3].data) call_.out[3].f32(row_)[i] = kForbidden;
    }
    if (call_.out[1].data) *call_.out[1].f32(row_) = 0;
    if (want < 0) return;
    const float largest = argmax(raw_, vocab_).value;
    double sum = 0;
    for (int64_t i = 0; largest > kForbidden && i < vocab_; ++i) sum += std::exp(clean(raw_[i]) - largest);
    const double log_sum = largest > kForbidden ? largest + std::log(sum) : 0.0;
    const auto logprob = [&](float x) { return static_cast<float>(clean(x) - log_sum); };
    if (call_.out[1].data) *call_.out[1].f32(row_) = logprob(raw_[id]);
    if (want == 0) return;
    const int64_t found = select_best(raw_, vocab_, want, list_);
    for (int64_t i = 0; i < found; ++i) {
      if (call_.out[2].data) call_.out[2].i32(row_)[i] = list_[i].id;
      if (call_.out[3].data) call_.out[3].f32(row_)[i] = logprob(list_[i].value);
    }
  }

  const OpCall& call_;
  const int64_t row_;
  const motley_sample_row& spec_;
  const float* raw_;
  const int64_t vocab_;
  const float* logits_;  // raw_ or changed_
  float* changed_;
  Candidate* list_;
  float largest_ = 0;
};

}  // namespace

void sample(const OpCall& call) {
  const Range rows = call.part(call.in[0].rows);
  for (int64_t h = rows.begin; h < rows.end; ++h) RowSampler(call, h).run();
  call.barrier();  // §7: every pending slot is read before any slot is written
  for (int64_t h = rows.begin; h < rows.end; ++h) {
    const int32_t slot = call.batch->samples[h].out_slot;
    if (slot < 0) continue;
    if (call.in[1].data)
      *call.in[1].i32(slot) = *call.out[0].i32(h);
    else
      call.fail(MOTLEY_INVALID_ARGUMENT, "SAMPLE: a row names a slot, but the op has no slots");
  }
}

int64_t sample_scratch(const Plan& plan, const PlanOp& op) {
  const int64_t vocab = plan.values[static_cast<size_t>(op.in[0])].width;
  return vocab * static_cast<int64_t>(sizeof(float) + sizeof(Candidate)) + 64;
}

}  // namespace motley::kit
