// generate: one request through the engine, as a blocking call with text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "text/text_stream.hpp"

namespace motley {

struct GenerateResult {
  std::vector<SampledToken> tokens;  // an end token included
  std::string text;                  // without it
  FinishReason finished = FinishReason::kStop;
  Status status;  // with FinishReason::kError
  int64_t first_step_ns = 0, first_token_ns = 0, last_token_ns = 0;
};

// Called on the calling thread with text as it becomes final; false ends the request.
using TextSink = std::function<bool(std::string_view text)>;

// Blocks until the request has ended. INVALID_ARGUMENT and the like when the engine refuses it. `started` (may be null)
// hears the request's id, so that another thread can abort it.
Result<GenerateResult> generate(Engine& engine, const Tokenizer& tokenizer, Request request,
                                const TextStream::Options& text_options, const TextSink& sink,
                                const std::function<void(RequestId)>& started = nullptr,
                                const Clock& clock = system_clock());

}  // namespace motley
