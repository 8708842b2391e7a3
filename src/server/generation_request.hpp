// The body of /v1/completions and /v1/chat/completions as a validated value. docs/api.md lists the fields.
//
// Unknown fields are ignored; known ones that are not built are refused, by name, unless they ask for nothing.
// Thread-safe: pure functions, values.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/limits.hpp"
#include "engine/request.hpp"
#include "server/api_error.hpp"
#include "server/chat_request.hpp"
#include "text/text_stream.hpp"

namespace motley {

// What one call may ask for, beside the limits that rooms share.
inline constexpr size_t kPromptsMax = 1024;                                // prompts of one call
inline constexpr size_t kSequencesPerCallMax = 2048;                       // prompts * n
inline constexpr size_t kStopBytesMax = 16 * limits::kStopStringBytesMax;  // of all stop strings together

enum class CallKind { kCompletion, kChat };

// What the engine in question allows.
struct CallLimits {
  uint32_t vocab_size = 0;
  uint32_t max_model_len = 0;
  bool priority_allowed = false;
  const TokenSampling* defaults = nullptr;  // what a call leaves out is as here; borrowed; null: TokenSampling's own
};

using PromptInput = std::variant<std::string, std::vector<TokenId>>;

struct GenerationCall {
  CallKind kind = CallKind::kCompletion;
  std::string model;                 // empty: none named
  std::vector<PromptInput> prompts;  // completions
  ChatCall chat;                     // chat
  bool add_special_tokens = true;
  TokenSampling params;  // max_tokens: valid if has_max_tokens
  bool has_max_tokens = false, has_seed = false;
  uint32_t n = 1;
  int32_t priority = 0;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false;
  TextStream::Options text;
};

// min_tokens against max_tokens: as soon as both are known.
MaybeError check_min_tokens(const TokenSampling& params);
MaybeError parse_generation_call(CallKind kind, std::string_view body, const CallLimits& limits, GenerationCall& out);

// Bodies of /tokenize and /detokenize (vLLM's).
struct TokenizeCall {
  std::string model;
  std::optional<std::string> prompt;  // or else chat
  ChatCall chat;
  bool add_special_tokens = true, return_token_strs = false;
};
MaybeError parse_tokenize_call(std::string_view body, TokenizeCall& out);

struct DetokenizeCall {
  std::string model;
  std::vector<TokenId> tokens;
};
MaybeError parse_detokenize_call(std::string_view body, uint32_t vocab_size, DetokenizeCall& out);

// Body of POST /v1/devices: {"add": "NAME"} or {"add": ["NAME", ...]}, at least one.
MaybeError parse_add_devices(std::string_view body, std::vector<std::string>& names);

}  // namespace motley
