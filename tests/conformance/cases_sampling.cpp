// SAMPLE against a computation of its own: full sorts, double precision, the noise written down a second time
// from docs/contracts/sampling.md.
#include <algorithm>
#include <numeric>
#include <set>

#include "harness.hpp"
#include "tiny_model.hpp"

namespace motley::conformance {

namespace {

constexpr int64_t kH = MOTLEY_DIM_HEAD_ROWS;

uint32_t noise_word(uint64_t seed, uint32_t choice, uint32_t position, uint32_t id) {
  uint32_t c[4] = {id / 4, position, choice, 0}, k0 = static_cast<uint32_t>(seed),
           k1 = static_cast<uint32_t>(seed >> 32);
  for (int i = 0; i < 10; ++i, k0 += 2654435769u, k1 += 3144134277u) {
    const uint64_t p = uint64_t{3528531795u} * c[0], q = uint64_t{3449720151u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(q >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(q),
                              static_cast<uint32_t>(p >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p)};
    std::copy(next, next + 4, c);
  }
  return c[id % 4];
}

double gumbel(const motley_sample_row& s, uint32_t id) {
  const double u = (noise_word(s.seed, s.choice, s.position, id) + 0.5) / 4294967296.0;
  return -std::log(-std::log(u));
}

struct SampleRun {
  std::vector<int32_t> ids, slots, top_ids;
  std::vector<float> logprobs, top_logprobs;
};

GraphBuilder sample_graph(int64_t vocab, int32_t* logits, int32_t* slots, std::vector<int32_t>* outs) {
  GraphBuilder g;
  *logits = g.input(MOTLEY_F32, {kH, vocab});
  *slots = g.input(MOTLEY_I32, {MOTLEY_DIM_SLOTS});
  g.outputs.push_back(*slots);
  *outs = {g.output(MOTLEY_I32, {kH}), g.output(MOTLEY_F32, {kH}), g.output(MOTLEY_I32, {kH, MOTLEY_TOP_MAX}),
           g.output(MOTLEY_F32, {kH, MOTLEY_TOP_MAX})};
  g.op(MOTLEY_OP_SAMPLE, {*logits, *slots}, *outs);
  return g;
}

// Prepares once, samples many batches.
class Sampler {
 public:
  Sampler(Device& device, int64_t vocab) : device_(device), vocab_(vocab) {
    program_ = device.compile(sample_graph(vocab, &logits_, &slots_, &outs_), {512});
  }
  SampleRun run(const std::vector<float>& logits, const std::vector<motley_sample_row>& rows, BatchData lists = {},
                std::vector<int32_t> slot_tokens = {0}) {
    const auto h = static_cast<uint32_t>(rows.size());
    BatchData b = std::move(lists);
    b.add({0, static_cast<int32_t>(h), {}, true}, 16);
    for (uint32_t i = 0; i < h; ++i) b.head_rows.push_back(static_cast<int32_t>(i));
    b.samples = rows;
    b.slot_count = static_cast<uint32_t>(slot_tokens.size());
    const auto r = device_.run(program_, {{logits_, to_bytes(logits)}, {slots_, to_bytes(slot_tokens)}}, b);
    return {from_bytes<int32_t>(r.at(outs_[0])), from_bytes<int32_t>(r.at(slots_)), from_bytes<int32_t>(r.at(outs_[2])),
            from_bytes<float>(r.at(outs_[1])), from_bytes<float>(r.at(outs_[3]))};
  }
  int64_t vocab() const { return vocab_; }

 private:
  Device& device_;
  int64_t vocab_;
  Program program_;
  int32_t logits_ = 0, slots_ = 0;
  std::vector<int32_t> outs_;
};

struct Naive {
  int32_t id;
  double margin;  // how near another answer was; small = do not judge
};

// What the contract says, by the plainest means.
Naive naive_token(std::vector<double> x, const motley_sample_row& s, const BatchData& lists,
                  const std::vector<int32_t>& slot_tokens) {
  for (uint32_t i = s.biases_begin; i < s.biases_end; ++i)
    x[static_cast<size_t>(lists.biases[i].id)] += lists.biases[i].bias;
  std::map<int32_t, std::pair<bool, int>> seen;
  for (uint32_t i = s.counts_begin; i < s.counts_end; ++i) {
    auto& e = seen[lists.counts[i].id];
    e.first |= lists.counts[i].in_prompt != 0, e.second += lists.counts[i].in_output;
  }
  for (uint32_t i = s.pending_begin; i < s.pending_end; ++i)
    seen[slot_tokens[static_cast<size_t>(lists.pending[i])]].second += 1;
  for (const auto& [id, e] : seen) {
    double& v = x[static_cast<size_t>(id)];
    if (!e.first && e.second == 0) continue;
    v = v > 0 ? v / s.repetition_penalty : v * s.repetition_penalty;
    v -= static_cast<double>(s.frequency_penalty) * e.second;
    if (e.second > 0) v -= s.presence_penalty;
  }
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)]; });
  const auto at = [&](int32_t id) { return x[static_cast<size_t>(id)]; };
  if (s.temperature == 0) return {order[0], at(order[0]) - at(order[1])};
  double margin = 1;
  const double best = at(order[0]);
  std::vector<int32_t> kept;
  for (const int32_t id : order) {
    const double p = std::exp((at(id) - best) / s.temperature);
    if (s.min_p > 0) margin = std::min(margin, std::fabs(p / s.min_p - 1));
    if (p >= s.min_p && p > 0 && (s.top_k == 0 || kept.size() < static_cast<size_t>(s.top_k))) kept.push_back(id);
  }
  double total = 0, before = 0;
  for (const int32_t id : kept) total += std::exp((at(id) - best) / s.temperature);
  std::vector<int32_t> nucleus;
  for (const int32_t id : kept) {
    if (s.top_p < 1) margin = std::min(margin, std::fabs(before / total - s.top_p));
    if (nucleus.empty() || s.top_p >= 1 || before < s.top_p * total) nucleus.push_back(id);
    before += std::exp((at(id) - best) / s.temperature);
  }
  double first = -INFINITY, second = -INFINITY;
  int32_t winner = -1;
  for (const int32_t id : nucleus) {
    const double score = (at(id) - best) / s.temperature + gumbel(s, static_cast<uint32_t>(id));
    if (score > first)
      second = first, first = score, winner = id;
    else
      second = std::max(second, score);
  }
  return {winner, std::min(margin, first - second)};
}

void greedy_cases(Judge& judge) {
  Sampler s(judge.device(), 7);
  const float inf = INFINITY, nan = NAN;
  const std::vector<std::pair<std::vector<float>, int32_t>> rows = {{{0, 1, 5, 5, 2, 5, 1}, 2},
                                                                    {{nan, -3, nan, -2, nan, -2, -9}, 3},
                                                                    {{-inf, -inf, -inf, -inf, -inf, -inf, -4}, 6},
                                                                    {{nan, nan, nan, nan, nan, nan, nan}, 0},
                                                                    {{-inf, -inf, -inf, -inf, -inf, -inf, -inf}, 0},
                                                                    {{1, inf, 3, inf, 0, 0, 0}, 1}};
  for (const float temperature : {0.0f, 1.0f}) {
    std::vector<float> logits;
    std::vector<motley_sample_row> specs;
    for (const auto& row : rows) {
      logits.insert(logits.end(), row.first.begin(), row.first.end());
      motley_sample_row spec = greedy_row();
      spec.temperature = temperature;
      spec.seed = 5;
      specs.push_back(spec);
    }
    const SampleRun r = s.run(logits, specs);
    for (size_t i = 0; i < rows.size(); ++i)
      if (temperature == 0)
        judge.check(r.ids[i] == rows[i].second, "greedy row " + std::to_string(i) + " is " + std::to_string(r.ids[i]));
      else
        judge.check(i == 0 || i == 1 ? !std::isnan(rows[i].first[static_cast<size_t>(r.ids[i])])
                                     : r.ids[i] == rows[i].second || i == 5,
                    "a forbidden or NaN logit is never drawn (row " + std::to_string(i) + ")");
  }
}

void logprob_cases(Judge& judge) {
  Random random(judge.options().seed + 21);
  for (const int64_t vocab : {13, 5000, 32768}) {
    Sampler s(judge.device(), vocab);
    const auto logits = random.normals(static_cast<size_t>(vocab), 4);
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<double>(x));
    for (const int32_t k : {-1, 0, 1, 5, 20}) {
      BatchData lists;
      lists.biases = {{order[0], -INFINITY}, {0, 0}};
      std::sort(lists.biases.begin(), lists.biases.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
      if (order[0] == 0) lists.biases = {{0, -INFINITY}};
      motley_sample_row spec = greedy_row();
      spec.top_logprobs = k;
      spec.biases_end = static_cast<uint32_t>(lists.biases.size());
      const SampleRun r = s.run(logits, {spec}, lists);
      judge.check(r.ids[0] == order[1], "a bias of -inf forbids the best token");
      if (k >= 0)
        judge.check(std::fabs(r.logprobs[0] - (logits[static_cast<size_t>(order[1])] - std::log(sum))) < 1e-4,
                    "the log-probability is of the raw logits");
      bool right = true;
      for (int32_t i = 0; i < MOTLEY_TOP_MAX; ++i) {
        const auto at = static_cast<size_t>(i);
        if (i < k && i < vocab)
          right &= r.top_ids[at] == order[at] &&
                   std::fabs(r.top_logprobs[at] - (logits[static_cast<size_t>(order[at])] - std::log(sum))) < 1e-4;
        else
          right &= r.top_ids[at] == MOTLEY_NONE && r.top_logprobs[at] == -INFINITY;
      }
      judge.check(right, "the " + std::to_string(k) + " best of " + std::to_string(vocab));
    }
  }
}

void random_cases(Judge& judge) {
  Random random(judge.options().seed + 22);
  for (const int64_t vocab : {5, 130, 1003, 20011}) {
    Sampler s(judge.device(), vocab);
    constexpr size_t kRows = 60;
    BatchData lists;
    std::vector<motley_sample_row> specs;
    std::vector<float> logits;
    const std::vector<int32_t> slot_tokens = {1, 4, 2, 1};
    for (size_t i = 0; i < kRows; ++i) {
      const auto row = random.normals(static_cast<size_t>(vocab), 1 + 4 * static_cast<float>(random.uniform()));
      logits.insert(logits.end(), row.begin(), row.end());
      motley_sample_row spec = greedy_row(i < 4 ? static_cast<int32_t>(i) : MOTLEY_NONE);
      spec.seed = random.bits(), spec.choice = random.below(3), spec.position = random.below(5000);
      const float temperatures[] = {0, 0.3f, 1, 2};
      spec.temperature = temperatures[random.below(4)];
      if (random.below(2)) spec.top_p = 0.1f + 0.89f * static_cast<float>(random.uniform());
      if (random.below(3) == 0) spec.min_p = 0.001f + 0.2f * static_cast<float>(random.uniform());
      if (random.below(2)) spec.top_k = static_cast<int32_t>(1 + random.below(static_cast<uint32_t>(vocab) + 10));
      if (random.below(2)) spec.presence_penalty = 1.5f, spec.frequency_penalty = 0.4f;
      if (random.below(2)) spec.repetition_penalty = 1.3f;
      spec.counts_begin = static_cast<uint32_t>(lists.counts.size());
      for (int32_t id = 0; id < 5; ++id)
        if (random.below(2))
          lists.counts.push_back({id, static_cast<int32_t>(random.below(2)), static_cast<int32_t>(random.below(4))});
      spec.counts_end = static_cast<uint32_t>(lists.counts.size());
      spec.pending_begin = static_cast<uint32_t>(lists.pending.size());
      for (int32_t slot = 0; slot < 4; ++slot)
        if (random.below(3) == 0) lists.pending.push_back(slot);
      spec.pending_end = static_cast<uint32_t>(lists.pending.size());
      spec.biases_begin = static_cast<uint32_t>(lists.biases.size());
      for (int32_t id = 0; id < 5; ++id)
        if (random.below(4) == 0) lists.biases.push_back({id, id == 3 ? -INFINITY : random.normal() * 3});
      spec.biases_end = static_cast<uint32_t>(lists.biases.size());
      specs.push_back(spec);
    }
    const SampleRun r = s.run(logits, specs, lists, slot_tokens);
    for (size_t i = 0; i < kRows; ++i) {
      const auto begin = logits.begin() + static_cast<long>(i) * vocab;
      const Naive wanted = naive_token({begin, begin + vocab}, specs[i], lists, slot_tokens);
      judge.check(r.ids[i] == wanted.id || wanted.margin < 1e-5,
                  "SAMPLE row " + std::to_string(i) + " of vocabulary " + std::to_string(vocab) + ": " +
                      std::to_string(r.ids[i]) + ", wanted " + std::to_string(wanted.id));
    }
    for (size_t i = 0; i < 4; ++i) judge.check(r.slots[i] == r.ids[i], "a slot receives its row's id");
    // A row alone, in another place of the batch, draws the same.
    for (const size_t i : {size_t{7}, size_t{33}}) {
      const auto begin = logits.begin() + static_cast<long>(i) * vocab;
      const SampleRun alone = s.run({begin, begin + vocab}, {specs[i]}, lists, slot_tokens);
      judge.check(alone.ids[0] == r.ids[i], "a row drawn alone is the row drawn in a batch");
    }
  }
}

// 99.99 % quantile of chi-square, Wilson-Hilferty.
double chi_square_limit(double degrees) {
  const double a = 2 / (9 * degrees), z = 3.719;
  return degrees * std::pow(1 - a + z * std::sqrt(a), 3);
}

}  // namespace

void judge_sampling(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_SAMPLE})) return judge.skip("SAMPLE");
  greedy_cases(judge);
  logprob_cases(judge);
  random_cases(judge);
}

// Frequencies of drawn tokens over positions, choices and seeds match the softmax.
void judge_noise(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_SAMPLE})) return judge.skip("SAMPLE");
  Random random(judge.options().seed + 30);
  constexpr int64_t kVocab = 23;
  constexpr uint32_t kRows = 500, kSteps = 40;
  const auto logits = random.normals(kVocab, 1);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  Sampler s(judge.device(), kVocab);
  std::vector<float> all;
  for (uint32_t i = 0; i < kRows; ++i) all.insert(all.end(), logits.begin(), logits.end());
  for (const char* axis : {"position", "choice", "seed"}) {
    std::vector<double> drawn(kVocab, 0);
    double repeats = 0;
    int32_t last = -1;
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<motley_sample_row> specs(kRows, greedy_row());
      for (uint32_t i = 0; i < kRows; ++i) {
        const uint32_t n = step * kRows + i;
        specs[i].temperature = 1;
        specs[i].seed = *axis == 's' ? n : 42;
        specs[i].choice = *axis == 'c' ? n : 1;
        specs[i].position = *axis == 'p' ? n : 9;
      }
      for (const int32_t id : s.run(all, specs).ids) {
        if (id < 0 || id >= kVocab) throw Stop{"an id beyond the vocabulary"};
        drawn[static_cast<size_t>(id)] += 1;
        repeats += id == last;
        last = id;
      }
    }
    double chi = 0, same = 0;
    const double total = double{kRows} * kSteps;
    for (size_t i = 0; i < kVocab; ++i) {
      const double p = std::exp(static_cast<double>(logits[i])) / sum;
      chi += (drawn[i] - total * p) * (drawn[i] - total * p) / (total * p);
      same += p * p;
    }
    judge.check(chi < chi_square_limit(kVocab - 1),
                std::string("chi-square over ") + axis + " is " + std::to_string(chi));
    const double spread = std::sqrt(total * same * (1 - same));
    judge.check(std::fabs(repeats - total * same) < 5 * spread, std::string("neighbours are independent over ") + axis);
  }
}

}  // namespace motley::conformance
