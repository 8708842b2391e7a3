// What a caller asks of the engine and what it hears back.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/status.hpp"
#include "engine/executor.hpp"

namespace motley {

// vLLM's names, meanings and defaults. Text-level parameters (stop strings) live above the engine: it sees tokens only.
struct TokenSampling {
  float temperature = 1.0f;                                 // 0 = greedy
  float top_p = 1.0f;                                       // (0, 1]
  int32_t top_k = 0;                                        // 0 or -1 = off
  float min_p = 0.0f;                                       // [0, 1]
  float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // [-2, 2]
  float repetition_penalty = 1.0f;                          // > 0
  uint64_t seed = 0;                                        // the caller draws one where the user gave none
  uint32_t choice = 0;                                      // index among the choices of one call
  uint32_t max_tokens = 16;
  uint32_t min_tokens = 0;  // until then end and stop tokens are forbidden
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;
  std::vector<motley_token_bias> logit_bias;
  int32_t logprobs = -1;  // as motley_sample_row.top_logprobs
};

// Everything wrong with the parameters, as INVALID_ARGUMENT naming the field; OK otherwise.
Status validate(const TokenSampling& params, uint32_t vocab_size);

enum class FinishReason { kStop, kLength, kAborted, kError };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", "abort", "error"

// One step's news of one request.
struct RequestUpdate {
  RequestId id = 0;
  std::vector<SampledToken> tokens;      // new since the last update, in order; an end token is among them
  std::optional<FinishReason> finished;  // set in the last update, and only there
  std::optional<TokenId> stop_token;     // the end or stop token that ended it
  Status status;                         // with kError
  uint32_t cached_tokens = 0;            // prompt tokens served from the prefix cache; valid from the first token on
  int64_t first_scheduled_ns = 0;        // when the request's first row was put into a step
};

struct Request {
  RequestId id = 0;             // chosen by Engine::submit
  std::vector<TokenId> prompt;  // at least one token
  TokenSampling params;
  std::vector<TokenId> end_tokens;  // the model's end-of-generation ids
  int32_t priority = 0;             // lower runs first (policy `priority`)
  bool use_prefix_cache = true;
  // Called on the engine's thread, in order, until `finished` is set. Must not block nor call back into the engine;
  // hand the update to your own thread.
  std::function<void(RequestUpdate)> on_update;
};

}  // namespace motley
