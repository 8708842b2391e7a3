// SmolLM2 against what transformers computes on the de-quantised weights (tests/golden/smollm2_logits.json, made by
// tools/golden/logits.py), with the formats and kernels that `motley serve` picks by default.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/config.hpp"
#include "llm/generate.hpp"
#include "llm/instance.hpp"
#include "model/forward.hpp"

namespace motley {
namespace {

constexpr double kTieLogits = 0.35;  // the numeric contract's epsilon across classes
constexpr size_t kGreedyTokensMin = 40, kGreedyPromptsMin = 8;

std::string model_path() {
  const auto path = environment("MOTLEY_TEST_MODEL");
  EXPECT_TRUE(path.has_value()) << "set MOTLEY_TEST_MODEL to the path that ./quickstart --model-path prints";
  return path.value_or("");
}

const nlohmann::json& golden() {
  static const nlohmann::json parsed = [] {
    std::ifstream file(std::string(MOTLEY_SOURCE_DIR) + "/tests/golden/smollm2_logits.json");
    return nlohmann::json::parse(file);
  }();
  return parsed;
}

const Model& model() {
  static const auto loaded = Model::load(model_path());
  CHECK(loaded.ok(), "{}", loaded.error().message());
  return **loaded;
}

struct Agreement {
  size_t positions = 0, same_best = 0;
  double kl_sum = 0;
  double best_share() const { return static_cast<double>(same_best) / static_cast<double>(positions); }
  double kl_mean() const { return kl_sum / static_cast<double>(positions); }
};

// Log-softmax of one row, in double.
std::vector<double> log_softmax(const float* row, size_t count) {
  const double top = *std::max_element(row, row + count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += std::exp(row[i] - top);
  std::vector<double> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = row[i] - top - std::log(sum);
  return out;
}

// KL(golden || ours) over the golden's best tokens, the rest as one outcome.
double kl_to_golden(const nlohmann::json& ids, const nlohmann::json& logprobs, const std::vector<double>& ours) {
  double kl = 0, golden_rest = 1, our_rest = 1;
  for (size_t k = 0; k < ids.size(); ++k) {
    const double p = std::exp(logprobs[k].get<double>());
    const double log_q = ours[ids[k].get<size_t>()];
    kl += p * (logprobs[k].get<double>() - log_q);
    golden_rest -= p;
    our_rest -= std::exp(log_q);
  }
  golden_rest = std::max(golden_rest, 1e-9);
  our_rest = std::max(our_rest, 1e-9);
  return kl + golden_rest * std::log(golden_rest / our_rest);
}

using TextLogits = std::vector<std::vector<float>>;

TextLogits logits_of_texts(const std::string& device, std::string* kernels = nullptr) {
  testing::ForwardOptions options;
  options.device = device;
  auto forward = testing::Forward::create(model(), options);
  CHECK(forward.ok(), "{}", forward.error().message());
  if (kernels != nullptr) *kernels = (*forward)->kernels();
  TextLogits all;
  for (const auto& text : golden()["texts"]) {
    auto logits = (*forward)->logits(text["ids"].get<std::vector<int32_t>>());
    CHECK(logits.ok(), "{}", logits.error().message());
    all.push_back(*std::move(logits));
  }
  return all;
}

const TextLogits& reference_logits() {
  static const TextLogits logits = logits_of_texts("REF:0");
  return logits;
}

Agreement agreement_with_golden(const TextLogits& logits) {
  Agreement result;
  const size_t vocab = model().config().vocab_size;
  for (size_t t = 0; t < logits.size(); ++t) {
    const auto& text = golden()["texts"][t];
    for (size_t p = 0; p < text["ids"].size(); ++p) {
      const auto ours = log_softmax(logits[t].data() + p * vocab, vocab);
      const auto best = std::max_element(ours.begin(), ours.end()) - ours.begin();
      result.same_best += best == text["top_ids"][p][0].get<std::ptrdiff_t>() ? 1 : 0;
      result.kl_sum += kl_to_golden(text["top_ids"][p], text["top_logprobs"][p], ours);
      ++result.positions;
    }
  }
  return result;
}

TEST(Agreement, ReferenceBackend_MatchesTransformers) {
  const Agreement agreement = agreement_with_golden(reference_logits());
  std::printf("REF:0: %zu positions, top-1 %.4f, mean KL %.6f\n", agreement.positions, agreement.best_share(),
              agreement.kl_mean());
  EXPECT_GE(agreement.positions, 500u);
  EXPECT_GE(agreement.best_share(), 0.995);
  EXPECT_LE(agreement.kl_mean(), 0.001);
}

TEST(Agreement, DefaultBackend_StaysWithinTheBars) {
  std::string kernels;
  const TextLogits logits = logits_of_texts("CPU:0", &kernels);
  const Agreement agreement = agreement_with_golden(logits);
  // KL over the whole vocabulary, against the reference backend's own full distribution.
  double kl_sum = 0;
  size_t positions = 0;
  const size_t vocab = model().config().vocab_size;
  for (size_t t = 0; t < logits.size(); ++t) {
    for (size_t p = 0; p < logits[t].size() / vocab; ++p, ++positions) {
      const auto truth = log_softmax(reference_logits()[t].data() + p * vocab, vocab);
      const auto ours = log_softmax(logits[t].data() + p * vocab, vocab);
      for (size_t v = 0; v < vocab; ++v) kl_sum += std::exp(truth[v]) * (truth[v] - ours[v]);
    }
  }
  const double kl_full = kl_sum / static_cast<double>(positions);
  std::printf("CPU:0 (%s kernels, KV float16): %zu positions, top-1 %.4f, mean KL %.6f, over the vocabulary %.6f\n",
              kernels.c_str(), agreement.positions, agreement.best_share(), agreement.kl_mean(), kl_full);
  EXPECT_GE(agreement.best_share(), 0.98);
  EXPECT_LE(agreement.kl_mean(), 0.005);
  EXPECT_LE(kl_full, 0.005);
}

// Greedy continuation of `prompt`, at most `count` tokens, through the whole engine.
std::vector<TokenId> greedy(Instance& instance, std::vector<TokenId> prompt, size_t count) {
  Request request;
  request.prompt = std::move(prompt);
  request.params.temperature = 0;
  request.params.ignore_eos = true;
  request.params.max_tokens = static_cast<uint32_t>(count);
  const auto made =
      generate(instance.engine(), instance.tokenizer(), std::move(request), {}, [](std::string_view) { return true; });
  CHECK(made.ok(), "{}", made.error().message());
  std::vector<TokenId> ids;
  for (const SampledToken& token : made->tokens) ids.push_back(token.id);
  return ids;
}

// Equal, tie-aware: where the two texts part, the golden's two best logits must be closer than epsilon; from there the
// golden's own text is continued, so that every token of it is judged.
TEST(Agreement, GreedyText_EqualsTransformers) {
  InstanceOptions options;
  options.model = model_path();
  auto instance = Instance::open(options);
  ASSERT_TRUE(instance.ok()) << instance.error().message();
  size_t long_enough = 0;
  for (const auto& entry : golden()["greedy"]) {
    const auto expected = entry["ids"].get<std::vector<TokenId>>();
    auto text = entry["prompt_ids"].get<std::vector<TokenId>>();
    EXPECT_EQ((*instance)->tokenizer().encode(entry["prompt"].get<std::string>(), true, true), text);
    size_t at = 0, ties = 0;
    while (at < expected.size()) {
      for (const TokenId id : greedy(**instance, text, expected.size() - at)) {
        text.push_back(expected[at]);
        if (id == expected[at++]) continue;
        EXPECT_LT(entry["gaps"][at - 1].get<double>(), kTieLogits) << entry["prompt"] << ": token " << at - 1;
        ++ties;
        break;
      }
    }
    std::printf("greedy %-45.45s %zu of %zu tokens equal, %zu ties\n", entry["prompt"].dump().c_str(), at - ties, at,
                ties);
    long_enough += at - ties >= kGreedyTokensMin ? 1 : 0;
  }
  EXPECT_GE(long_enough, kGreedyPromptsMin);
}

}  // namespace
}  // namespace motley
