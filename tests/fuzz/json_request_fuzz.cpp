// Bytes of a client to a validated call: whatever they are, the answer is a call within the limits or a named 4xx.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.hpp"
#include "base/limits.hpp"
#include "server/generation_request.hpp"

namespace {

constexpr motley::CallLimits kLimits{1000, 512, true};

void check_call(motley::CallKind kind, std::string_view body) {
  motley::GenerationCall call;
  if (const motley::MaybeError error = motley::parse_generation_call(kind, body, kLimits, call)) {
    CHECK(error->status >= 400 && error->status < 500, "{}", error->status);
    CHECK(!error->message.empty());
    CHECK(!motley::error_body(*error).empty());
    return;
  }
  CHECK(call.n >= 1 && call.n <= motley::limits::kChoicesMax, "{}", call.n);
  CHECK(call.params.temperature >= 0 && call.params.top_p > 0 && call.params.top_p <= 1);
  CHECK(call.params.repetition_penalty > 0 && call.params.top_k >= 0);
  CHECK(!call.has_max_tokens || (call.params.max_tokens >= 1 && call.params.max_tokens < kLimits.max_model_len));
  CHECK(call.text.stop.size() <= motley::limits::kStopStringsMax, "{}", call.text.stop.size());
  for (size_t i = 1; i < call.params.logit_bias.size(); ++i) {
    CHECK(call.params.logit_bias[i - 1].id < call.params.logit_bias[i].id);
  }
  for (const motley::PromptInput& prompt : call.prompts) {
    const auto* ids = std::get_if<std::vector<motley::TokenId>>(&prompt);
    for (size_t i = 0; ids && i < ids->size(); ++i) CHECK((*ids)[i] >= 0 && (*ids)[i] < 1000, "{}", (*ids)[i]);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  check_call(motley::CallKind::kCompletion, body);
  check_call(motley::CallKind::kChat, body);
  motley::TokenizeCall tokenize;
  (void)motley::parse_tokenize_call(body, tokenize);
  motley::DetokenizeCall detokenize;
  (void)motley::parse_detokenize_call(body, kLimits.vocab_size, detokenize);
  return 0;
}
