#include "server/generation_request.hpp"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/limits.hpp"
#include "server/field_reader.hpp"
#include "server/json_input.hpp"
#include "server/unbuilt_fields.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;
constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr double kLogitBiasAbsMax = 100;

// The numbers of TokenSampling: one row each, vLLM's ranges (temperature's upper bound: OpenAI's).
struct NumberField {
  std::string_view name;
  float TokenSampling::*member;
  double min, max;
  bool open_min;
};
constexpr NumberField kNumberFields[] = {
    {"temperature", &TokenSampling::temperature, 0, 2, false},
    {"top_p", &TokenSampling::top_p, 0, 1, true},
    {"min_p", &TokenSampling::min_p, 0, 1, false},
    {"presence_penalty", &TokenSampling::presence_penalty, -2, 2, false},
    {"frequency_penalty", &TokenSampling::frequency_penalty, -2, 2, false},
    {"repetition_penalty", &TokenSampling::repetition_penalty, 0, 100, true},
};

void read_stop(FieldReader& fields, std::vector<std::string>& out) {
  const Json* value = fields.find("stop");
  if (!value) return;
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.size() > limits::kStopStringsMax) {
    return fields.fail(
        bad_request("stop", "stop must hold at most {} strings, not {}", limits::kStopStringsMax, list.size()));
  }
  size_t bytes = 0;
  for (const Json& item : list) {
    if (!item.is_string()) return fields.fail(bad_request("stop", "stop must be a string or an array of strings"));
    const std::string& text = item.get_ref<const std::string&>();
    if (text.empty() || text.size() > limits::kStopStringBytesMax) {
      return fields.fail(bad_request("stop", "stop strings must be 1 to {} bytes long, not {}",
                                     limits::kStopStringBytesMax, text.size()));
    }
    bytes += text.size();
    out.push_back(text);
  }
  if (bytes > kStopBytesMax) {
    fields.fail(
        bad_request("stop", "stop strings must come to at most {} bytes together, not {}", kStopBytesMax, bytes));
  }
}

void read_logit_bias(FieldReader& fields, uint32_t vocab_size, std::vector<motley_token_bias>& out) {
  const Json* value = fields.find("logit_bias");
  if (!value) return;
  if (!value->is_object() || value->size() > limits::kLogitBiasMax) {
    return fields.fail(bad_request("logit_bias", "logit_bias must be an object of at most {} token ids and biases",
                                   limits::kLogitBiasMax));
  }
  for (const auto& [key, bias] : value->items()) {
    uint32_t id = 0;
    const auto [end, ec] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (ec != std::errc() || end != key.data() + key.size() || id >= vocab_size) {
      return fields.fail(
          bad_request("logit_bias", "logit_bias: \"{}\" is no token id in [0, {})", quoted_text(key), vocab_size));
    }
    const double number = bias.is_number() ? bias.get<double>() : 2 * kLogitBiasAbsMax;
    if (!(number >= -kLogitBiasAbsMax && number <= kLogitBiasAbsMax)) {
      return fields.fail(bad_request("logit_bias", "logit_bias[{}] must be a number within [{}, {}]", key,
                                     -kLogitBiasAbsMax, kLogitBiasAbsMax));
    }
    out.push_back({static_cast<TokenId>(id), static_cast<float>(number)});
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  const auto twice =
      std::adjacent_find(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.id == b.id; });
  if (twice != out.end()) fields.fail(bad_request("logit_bias", "logit_bias names token {} twice", twice->id));
}

void read_stream(FieldReader& fields, GenerationCall& call) {
  fields.boolean("stream", call.stream);
  const Json* options = fields.find("stream_options");
  if (!options || fields.failed()) return;
  if (!options->is_object()) return fields.fail(bad_request("stream_options", "stream_options must be an object"));
  if (!call.stream) {
    return fields.fail(bad_request("stream_options", "stream_options needs \"stream\": true"));
  }
  FieldReader inner(*options, "stream_options.");
  inner.boolean("include_usage", call.include_usage);
  inner.boolean("continuous_usage_stats", call.continuous_usage);
  if (inner.failed()) fields.fail(*inner.error());
  call.continuous_usage = call.continuous_usage && call.include_usage;
}

// max_completion_tokens is the newer name of max_tokens in chat.
void read_max_tokens(FieldReader& fields, GenerationCall& call) {
  int64_t number = 0;
  call.has_max_tokens = call.kind == CallKind::kChat && fields.integer("max_completion_tokens", 1, kInt32Max, number);
  if (!call.has_max_tokens) call.has_max_tokens = fields.integer("max_tokens", 1, kInt32Max, number);
  if (call.has_max_tokens) call.params.max_tokens = static_cast<uint32_t>(number);
}

void read_logprobs(FieldReader& fields, GenerationCall& call) {
  int64_t number = 0;
  if (call.kind == CallKind::kCompletion) {
    if (fields.integer("logprobs", 0, limits::kTopLogprobsMax, number))
      call.params.logprobs = static_cast<int32_t>(number);
    return;
  }
  bool wanted = false;
  fields.boolean("logprobs", wanted);
  if (wanted) call.params.logprobs = 0;
  if (!fields.integer("top_logprobs", 0, limits::kTopLogprobsMax, number)) return;
  if (!wanted && number > 0) {
    return fields.fail(bad_request("top_logprobs", "top_logprobs needs \"logprobs\": true"));
  }
  if (wanted) call.params.logprobs = static_cast<int32_t>(number);
}

void read_sampling(FieldReader& fields, const CallLimits& limits, GenerationCall& call) {
  TokenSampling& params = call.params;
  int64_t number = 0;
  for (const NumberField& field : kNumberFields) {
    fields.number(field.name, field.min, field.max, field.open_min, params.*field.member);
  }
  if (fields.integer("top_k", -1, kInt32Max, number)) params.top_k = static_cast<int32_t>(std::max<int64_t>(number, 0));
  if (fields.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), number)) {
    params.seed = static_cast<uint64_t>(number);
    call.has_seed = true;
  }
  if (fields.integer("n", 1, limits::kChoicesMax, number)) call.n = static_cast<uint32_t>(number);
  read_max_tokens(fields, call);
  if (fields.integer("min_tokens", 0, kInt32Max, number)) params.min_tokens = static_cast<uint32_t>(number);
  fields.boolean("ignore_eos", params.ignore_eos);
  fields.token_ids("stop_token_ids", limits::kStopTokensMax, limits.vocab_size, params.stop_token_ids);
  read_logit_bias(fields, limits.vocab_size, params.logit_bias);
  read_logprobs(fields, call);
  if (fields.integer("priority", std::numeric_limits<int32_t>::min(), kInt32Max, number)) {
    call.priority = static_cast<int32_t>(number);
  }
  if (call.priority != 0 && !limits.priority_allowed) {
    fields.fail(bad_request("priority", "priority needs a server started with --scheduling-policy priority"));
  }
}

MaybeError read_prompt(const Json& value, uint32_t vocab_size, std::vector<PromptInput>& out) {
  constexpr std::string_view kShapes =
      "prompt must be a string, an array of strings, an array of token ids, or an array of these arrays";
  if (value.is_string()) {
    out.emplace_back(value.get_ref<const std::string&>());
    return std::nullopt;
  }
  if (!value.is_array()) return bad_request("prompt", "{}", kShapes);
  if (value.empty()) return bad_request("prompt", "prompt must not be empty");
  if (value.front().is_number()) {
    std::vector<TokenId> ids;
    if (MaybeError error = read_token_ids(value, "prompt", vocab_size, ids)) return error;
    out.emplace_back(std::move(ids));
    return std::nullopt;
  }
  if (value.size() > kPromptsMax) {
    return bad_request("prompt", "prompt holds {} prompts; at most {} are taken in one request", value.size(),
                       kPromptsMax);
  }
  for (const Json& item : value) {
    if (item.type() != value.front().type()) return bad_request("prompt", "{}", kShapes);
    if (item.is_string()) {
      out.emplace_back(item.get_ref<const std::string&>());
    } else if (item.is_array()) {
      std::vector<TokenId> ids;
      if (MaybeError error = read_token_ids(item, "prompt", vocab_size, ids)) return error;
      out.emplace_back(std::move(ids));
    } else {
      return bad_request("prompt", "{}", kShapes);
    }
  }
  return std::nullopt;
}

void read_input(FieldReader& fields, uint32_t vocab_size, GenerationCall& call) {
  if (call.kind == CallKind::kCompletion) {
    fields.boolean("echo", call.echo);
    fields.boolean("add_special_tokens", call.add_special_tokens);
    const Json* prompt = fields.find("prompt");
    MaybeError error = prompt ? read_prompt(*prompt, vocab_size, call.prompts)
                              : MaybeError(bad_request("prompt", "prompt is missing"));
    if (error) fields.fail(*std::move(error));
    return;
  }
  read_chat(fields, call.chat);
  if (MaybeError error = check_tool_choice(fields, call.chat)) fields.fail(*std::move(error));
  call.add_special_tokens = false;
  fields.boolean("add_special_tokens", call.add_special_tokens);
  if (call.add_special_tokens) {
    fields.fail(
        bad_request("add_special_tokens", "add_special_tokens is not supported in chat: the template adds its own"));
  }
}

// What single fields cannot show.
MaybeError check_combinations(const CallLimits& limits, const GenerationCall& call) {
  const TokenSampling& params = call.params;
  if (call.has_max_tokens && params.max_tokens >= limits.max_model_len) {
    return bad_request("max_tokens", "max_tokens must be below the context of {} tokens, not {}", limits.max_model_len,
                       params.max_tokens);
  }
  if (call.has_max_tokens) {
    if (MaybeError error = check_min_tokens(params)) return error;
  }
  if (call.echo && params.logprobs >= 0) {
    return bad_request("echo", "echo together with logprobs is not supported");
  }
  const size_t prompts = call.kind == CallKind::kChat ? 1 : call.prompts.size();
  if (prompts * call.n > kSequencesPerCallMax) {
    return bad_request("n", "prompts times n must be at most {}, not {}", kSequencesPerCallMax, prompts * call.n);
  }
  return std::nullopt;
}

}  // namespace

MaybeError check_min_tokens(const TokenSampling& params) {
  if (params.min_tokens <= params.max_tokens) return std::nullopt;
  return bad_request("min_tokens", "min_tokens ({}) must not exceed max_tokens ({})", params.min_tokens,
                     params.max_tokens);
}

MaybeError parse_generation_call(CallKind kind, std::string_view body, const CallLimits& limits, GenerationCall& out) {
  Json object;
  const JsonKeeper keeper(object);
  if (MaybeError error = parse_json_object(body, object)) return error;
  out.kind = kind;
  if (limits.defaults) out.params = *limits.defaults;
  FieldReader fields(object);
  fields.string("model", out.model);
  if (fields.failed()) return fields.error();
  if (MaybeError error = refuse_unbuilt_fields(kind, object)) return error;
  read_input(fields, limits.vocab_size, out);
  read_sampling(fields, limits, out);
  read_stop(fields, out.text.stop);
  fields.boolean("include_stop_str_in_output", out.text.include_stop_in_output);
  fields.boolean("skip_special_tokens", out.text.skip_special_tokens);
  read_stream(fields, out);
  if (fields.failed()) return fields.error();
  return check_combinations(limits, out);
}

MaybeError parse_tokenize_call(std::string_view body, TokenizeCall& out) {
  Json object;
  const JsonKeeper keeper(object);
  if (MaybeError error = parse_json_object(body, object)) return error;
  FieldReader fields(object);
  fields.string("model", out.model);
  fields.boolean("return_token_strs", out.return_token_strs);
  if (fields.find("messages")) {
    if (fields.find("prompt")) return bad_request("prompt", "give prompt or messages, not both");
    out.add_special_tokens = false;
    read_chat(fields, out.chat);
  } else if (std::string text; fields.string("prompt", text)) {
    out.prompt = std::move(text);
  } else if (!fields.failed()) {
    return bad_request("prompt", "prompt (a string) or messages is missing");
  }
  fields.boolean("add_special_tokens", out.add_special_tokens);
  if (!out.prompt && out.add_special_tokens) {
    fields.fail(bad_request("add_special_tokens",
                            "add_special_tokens is not supported with messages: the template adds its own"));
  }
  return fields.error();
}

MaybeError parse_detokenize_call(std::string_view body, uint32_t vocab_size, DetokenizeCall& out) {
  Json object;
  const JsonKeeper keeper(object);
  if (MaybeError error = parse_json_object(body, object)) return error;
  FieldReader fields(object);
  fields.string("model", out.model);
  if (!fields.token_ids("tokens", kJsonValuesMax, vocab_size, out.tokens) && !fields.failed()) {
    return bad_request("tokens", "tokens is missing");
  }
  return fields.error();
}

MaybeError parse_add_devices(std::string_view body, std::vector<std::string>& names) {
  Json object;
  const JsonKeeper keeper(object);
  if (MaybeError error = parse_json_object(body, object)) return error;
  const Json* add = FieldReader(object).find("add");
  if (add == nullptr) return bad_request("add", "add is missing; give the name of a device, or a list of names");
  const bool one = add->is_string();
  for (size_t i = 0; i < (one ? 1 : add->size()) && (one || add->is_array()); ++i) {
    const Json& name = one ? *add : (*add)[i];
    if (!name.is_string()) return bad_request("add", "add must hold the names of devices as strings");
    names.push_back(name.get<std::string>());
  }
  if (names.empty()) return bad_request("add", "add must be the name of a device, or a list of names");
  return std::nullopt;
}

}  // namespace motley
