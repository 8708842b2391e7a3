// Real models against what transformers computes on the de-quantised weights (tests/golden/*_logits.json, made by
// tools/golden/logits.py), with the formats and kernels that `motley serve` picks by default.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "llm/generate.hpp"
#include "llm/instance.hpp"
#include "model/forward.hpp"
#include "model/real_models.hpp"

namespace motley {
namespace {

constexpr size_t kPositionsMin = 500, kGreedyTokensMin = 40, kGreedyPromptsMin = 8;

using testing::kRealModels;
using testing::kTieLogits;
using testing::value_of;

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

// KL(truth || ours) over the whole vocabulary.
double kl_of(const std::vector<double>& truth, const std::vector<double>& ours) {
  double kl = 0;
  for (size_t v = 0; v < truth.size(); ++v) kl += std::exp(truth[v]) * (truth[v] - ours[v]);
  return kl;
}

// Adds one position: our log-probabilities against the golden's.
void judge(const nlohmann::json& text, size_t position, const std::vector<double>& ours, Agreement* agreement) {
  const auto best = std::max_element(ours.begin(), ours.end()) - ours.begin();
  agreement->same_best += best == text["top_ids"][position][0].get<std::ptrdiff_t>() ? 1 : 0;
  agreement->kl_sum += kl_to_golden(text["top_ids"][position], text["top_logprobs"][position], ours);
  ++agreement->positions;
}

// Both backends on the golden's texts.
struct Compared {
  Agreement reference, cpu;
  double kl_sum = 0;  // of the CPU against the reference's own distribution, over the whole vocabulary
  std::string kernels;
};

// Text by text: the logits of all of them at once would be gigabytes of a large vocabulary.
Compared compare(const nlohmann::json& golden, const std::string& path) {
  const auto model = value_of(Model::load(path));
  testing::ForwardOptions options;
  options.positions_max = 0;
  for (const auto& text : golden["texts"]) {
    options.positions_max = std::max(options.positions_max, static_cast<uint32_t>(text["ids"].size()));
  }
  const auto cpu = value_of(testing::Forward::create(*model, options));
  options.device = "REF:0";
  const auto reference = value_of(testing::Forward::create(*model, options));
  Compared compared;
  compared.kernels = cpu->kernels();
  const size_t vocab = model->config().vocab_size;
  for (const auto& text : golden["texts"]) {
    const auto ids = text["ids"].get<std::vector<int32_t>>();
    const auto truth = value_of(reference->logits(ids)), ours = value_of(cpu->logits(ids));
    for (size_t p = 0; p < ids.size(); ++p) {
      const auto true_row = log_softmax(truth.data() + p * vocab, vocab);
      const auto our_row = log_softmax(ours.data() + p * vocab, vocab);
      judge(text, p, true_row, &compared.reference);
      judge(text, p, our_row, &compared.cpu);
      compared.kl_sum += kl_of(true_row, our_row);
    }
  }
  return compared;
}

class AgreementOf : public testing::RealModelTest {
 protected:
  // Computed once a model.
  const Compared& compared() const {
    static std::map<std::string, Compared> made;
    const auto found = made.find(path_);
    return found != made.end() ? found->second : made.emplace(path_, compare(golden_, path_)).first->second;
  }
};

TEST_P(AgreementOf, ReferenceBackend_MatchesTransformers) {
  const Agreement& found = compared().reference;
  std::printf("REF:0: %zu positions, top-1 %.4f, mean KL %.6f\n", found.positions, found.best_share(), found.kl_mean());
  EXPECT_GE(found.positions, kPositionsMin);
  EXPECT_GE(found.best_share(), 0.995);
  EXPECT_LE(found.kl_mean(), 0.001);
}

TEST_P(AgreementOf, DefaultBackend_StaysWithinTheBars) {
  const Agreement& found = compared().cpu;
  const double kl_full = compared().kl_sum / static_cast<double>(found.positions);
  std::printf("CPU:0 (%s kernels, KV float16): %zu positions, top-1 %.4f, mean KL %.6f, over the vocabulary %.6f\n",
              compared().kernels.c_str(), found.positions, found.best_share(), found.kl_mean(), kl_full);
  EXPECT_GE(found.positions, kPositionsMin);
  EXPECT_GE(found.best_share(), 0.98);
  EXPECT_LE(found.kl_mean(), 0.005);
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
TEST_P(AgreementOf, GreedyText_EqualsTransformers) {
  InstanceOptions options;
  options.model = path_;
  auto instance = Instance::open(options);
  ASSERT_TRUE(instance.ok()) << instance.error().message();
  size_t long_enough = 0;
  for (const auto& entry : golden_["greedy"]) {
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

INSTANTIATE_TEST_SUITE_P(Models, AgreementOf, ::testing::ValuesIn(kRealModels),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace motley
