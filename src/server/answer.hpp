// OpenAI's answer shapes, as its Python package reads them. Thread-safe: pure functions, values.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/executor.hpp"
#include "server/generation_request.hpp"
#include "text/tokenizer.hpp"

namespace motley {

// What every part of one answer repeats.
struct AnswerHead {
  CallKind kind = CallKind::kCompletion;
  std::string id;  // cmpl-... or chatcmpl-...
  std::string model;
  int64_t created_s = 0;
};

struct Usage {
  uint64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};

// One choice, or in a stream what is new of it. Null JSON stands for null.
struct ChoicePart {
  uint32_t index = 0;
  std::string text;
  nlohmann::ordered_json logprobs;  // see LogprobsBuilder
  nlohmann::ordered_json finish_reason;
  nlohmann::ordered_json stop_reason;  // vLLM's: the stop string or id, or null
  bool first = false;                  // chat streams: the part that carries the role
};

// Gathers the logprobs of one choice, in the shape of its kind.
class LogprobsBuilder {
 public:
  LogprobsBuilder(CallKind kind, int32_t top) : kind_(kind), top_(top) {}
  void add(const SampledToken& token, const Tokenizer& tokenizer);
  // What was added since the last take; null if logprobs were not asked for.
  nlohmann::ordered_json take();

 private:
  CallKind kind_;
  int32_t top_;          // -1: not asked for
  uint64_t offset_ = 0;  // characters before the next token
  nlohmann::ordered_json entries_ = nlohmann::ordered_json::object();
};

// A token as text: itself if it is UTF-8, else OpenAI's "bytes:\xe2\x80".
std::string token_text(std::string_view bytes);

nlohmann::ordered_json usage_json(const Usage& usage);
// The whole answer, as a body.
std::string full_answer(const AnswerHead& head, const std::vector<ChoicePart>& choices, const Usage& usage);

// How the `usage` member of a stream's parts stands: absent, null, or a value.
struct StreamUsage {
  bool present = false;
  std::optional<Usage> value = {};
};
// One event ("data: ...\n\n"); without a choice: the last one, that carries the usage alone.
std::string stream_event(const AnswerHead& head, const ChoicePart* choice, const StreamUsage& usage);
std::string event_of_json(std::string_view json);
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

// JSON text; never throws: what is not UTF-8 becomes U+FFFD.
std::string dump(const nlohmann::ordered_json& value);

}  // namespace motley
