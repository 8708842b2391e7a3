#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/limits.hpp"
#include "engine/request.hpp"

namespace motley {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kVocab = 100;

TEST(TokenSampling, Defaults_AreValid) { EXPECT_TRUE(validate({}, kVocab).ok()); }

TEST(TokenSampling, Bounds_AreValid) {
  TokenSampling p;
  p.temperature = 0;
  p.top_p = 1;
  p.top_k = -1;
  p.min_p = 1;
  p.presence_penalty = -2;
  p.frequency_penalty = 2;
  p.repetition_penalty = 0.01f;
  p.min_tokens = p.max_tokens = 1;
  p.logprobs = 20;
  p.stop_token_ids = {0, 99};
  p.logit_bias = {{99, -INFINITY}, {0, 100}};
  EXPECT_TRUE(validate(p, kVocab).ok()) << validate(p, kVocab).to_string();
}

TEST(TokenSampling, OutOfRange_IsRefusedNamingTheField) {
  struct Case {
    const char* field;
    std::function<void(TokenSampling&)> change;
  };
  const Case cases[] = {
      {"temperature", [](auto& p) { p.temperature = -0.1f; }},
      {"temperature", [](auto& p) { p.temperature = NAN; }},
      {"temperature", [](auto& p) { p.temperature = INFINITY; }},
      {"top_p", [](auto& p) { p.top_p = 0; }},
      {"top_p", [](auto& p) { p.top_p = 1.01f; }},
      {"top_k", [](auto& p) { p.top_k = -2; }},
      {"min_p", [](auto& p) { p.min_p = -0.1f; }},
      {"min_p", [](auto& p) { p.min_p = 1.1f; }},
      {"presence_penalty", [](auto& p) { p.presence_penalty = 2.1f; }},
      {"frequency_penalty", [](auto& p) { p.frequency_penalty = -2.1f; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 0; }},
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }},
      {"min_tokens", [](auto& p) { p.min_tokens = p.max_tokens + 1; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = {static_cast<TokenId>(kVocab)}; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids.assign(limits::kStopTokensMax + 1, 1); }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{-1, 0}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, NAN}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, INFINITY}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, 1}, {2, 0}, {1, 1}};
       }},
      {"logprobs", [](auto& p) { p.logprobs = 21; }},
      {"logprobs", [](auto& p) { p.logprobs = -2; }},
      {"choice", [](auto& p) { p.choice = limits::kChoicesMax; }},
  };
  for (const Case& c : cases) {
    TokenSampling p;
    c.change(p);
    const Status status = validate(p, kVocab);
    EXPECT_EQ(status.code(), MOTLEY_INVALID_ARGUMENT) << c.field;
    EXPECT_THAT(status.message(), HasSubstr(c.field));
  }
}

TEST(FinishReason, Names) {
  EXPECT_EQ(finish_reason_name(FinishReason::kStop), "stop");
  EXPECT_EQ(finish_reason_name(FinishReason::kLength), "length");
  EXPECT_EQ(finish_reason_name(FinishReason::kAborted), "abort");
  EXPECT_EQ(finish_reason_name(FinishReason::kError), "error");
}

}  // namespace
}  // namespace motley
