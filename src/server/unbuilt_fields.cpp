#include "server/unbuilt_fields.hpp"

#include <nlohmann/json.hpp>
#include <string_view>

#include "server/generation_request.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

enum Kinds : unsigned { kCompletions = 1, kChats = 2, kBoth = 3 };

// A field, and the values (beside null) that ask for nothing, as JSON; "" = none.
struct UnbuiltField {
  std::string_view name;
  Kinds kinds;
  std::string_view neutral;
  std::string_view also_neutral = {};
};

constexpr UnbuiltField kUnbuilt[] = {
    {"best_of", kBoth, "1"},
    {"suffix", kCompletions, "\"\""},
    {"prompt_embeds", kBoth, ""},
    {"prompt_logprobs", kBoth, ""},
    {"use_beam_search", kBoth, "false"},
    {"length_penalty", kBoth, "1.0"},
    {"response_format", kBoth, R"({"type":"text"})"},
    {"structured_outputs", kBoth, ""},
    {"structural_tag", kBoth, ""},
    {"guided_json", kBoth, ""},
    {"guided_regex", kBoth, ""},
    {"guided_choice", kBoth, ""},
    {"guided_grammar", kBoth, ""},
    {"guided_decoding_backend", kBoth, ""},
    {"guided_whitespace_pattern", kBoth, ""},
    {"logits_processors", kBoth, "[]"},
    {"bad_words", kBoth, "[]"},
    {"allowed_token_ids", kBoth, ""},
    {"logprob_token_ids", kBoth, ""},
    {"truncate_prompt_tokens", kBoth, ""},
    {"return_token_ids", kBoth, "false"},
    {"return_tokens_as_token_ids", kBoth, "false"},
    {"thinking_token_budget", kBoth, ""},
    {"repetition_detection", kBoth, ""},
    {"cache_salt", kBoth, ""},
    {"kv_transfer_params", kBoth, ""},
    {"vllm_xargs", kBoth, ""},
    {"functions", kChats, "[]"},
    {"function_call", kChats, "\"none\"", "\"auto\""},
    {"audio", kChats, ""},
    {"modalities", kChats, R"(["text"])"},
    {"prediction", kChats, ""},
    {"web_search_options", kChats, ""},
    {"reasoning_effort", kChats, "\"none\""},
    {"mm_processor_kwargs", kChats, ""},
    {"media_io_kwargs", kChats, ""},
    {"echo", kChats, "false"},
};

}  // namespace

MaybeError refuse_unbuilt_fields(CallKind kind, const Json& object) {
  const Kinds bit = kind == CallKind::kCompletion ? kCompletions : kChats;
  for (const UnbuiltField& field : kUnbuilt) {
    if ((field.kinds & bit) == 0) continue;
    const auto it = object.find(field.name);
    if (it == object.end() || it->is_null()) continue;
    const auto is = [&](std::string_view neutral) { return !neutral.empty() && *it == Json::parse(neutral); };
    if (is(field.neutral) || is(field.also_neutral)) continue;
    return bad_request(std::string(field.name), "{} is not supported; leave it out", field.name);
  }
  return std::nullopt;
}

}  // namespace motley
