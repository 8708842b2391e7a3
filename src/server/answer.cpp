#include "server/answer.hpp"

#include <algorithm>
#include <iterator>

#include "server/json_input.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLogprobMin = -9999.0;  // stands for minus infinity, which JSON lacks (as vLLM)

double finite_logprob(float value) { return value > kLogprobMin ? static_cast<double>(value) : kLogprobMin; }

// Characters that begin in these bytes: exact even where tokens cut characters.
uint64_t characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

Json byte_list(std::string_view bytes) {
  Json list = Json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

Json chat_logprob(std::string_view bytes, float logprob) {
  return {{"token", token_text(bytes)}, {"logprob", finite_logprob(logprob)}, {"bytes", byte_list(bytes)}};
}

Json head_json(const AnswerHead& head, std::string_view object) {
  return {{"id", head.id}, {"object", object}, {"created", head.created_s}, {"model", head.model}};
}

Json full_choice(CallKind kind, const ChoicePart& part) {
  Json choice = {{"index", part.index}};
  if (kind == CallKind::kChat) {
    choice["message"] = {{"role", "assistant"}, {"content", part.text}, {"refusal", nullptr}};
  } else {
    choice["text"] = part.text;
  }
  choice["logprobs"] = part.logprobs;
  choice["finish_reason"] = part.finish_reason;
  choice["stop_reason"] = part.stop_reason;
  return choice;
}

Json stream_choice(CallKind kind, const ChoicePart& part) {
  Json choice = {{"index", part.index}};
  if (kind == CallKind::kChat) {
    Json delta = Json::object();
    if (part.first) delta["role"] = "assistant";
    if (part.first || !part.text.empty()) delta["content"] = part.text;
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = part.text;
  }
  choice["logprobs"] = part.logprobs;
  choice["finish_reason"] = part.finish_reason;
  if (!part.finish_reason.is_null()) choice["stop_reason"] = part.stop_reason;
  return choice;
}

}  // namespace

std::string dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string token_text(std::string_view bytes) {
  if (utf8_valid_prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string out = "bytes:";
  for (const char c : bytes) fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(c));
  return out;
}

void LogprobsBuilder::add(const SampledToken& token, const Tokenizer& tokenizer) {
  if (top_ < 0) return;
  const std::string bytes = tokenizer.token_bytes(token.id, true);
  const size_t top_count = std::min(token.top.size(), static_cast<size_t>(top_));
  if (kind_ == CallKind::kChat) {
    Json entry = chat_logprob(bytes, token.logprob);
    Json top = Json::array();
    for (size_t i = 0; i < top_count; ++i) {
      top.push_back(chat_logprob(tokenizer.token_bytes(token.top[i].id, true), token.top[i].logprob));
    }
    entry["top_logprobs"] = std::move(top);
    entries_["content"].push_back(std::move(entry));
    return;
  }
  // The chosen token stands among the top ones even when it is none of them (as OpenAI and vLLM do).
  Json top = Json::object();
  top[token_text(bytes)] = finite_logprob(token.logprob);
  for (size_t i = 0; i < top_count; ++i) {
    top[token_text(tokenizer.token_bytes(token.top[i].id, true))] = finite_logprob(token.top[i].logprob);
  }
  entries_["text_offset"].push_back(offset_);
  entries_["token_logprobs"].push_back(finite_logprob(token.logprob));
  entries_["tokens"].push_back(token_text(bytes));
  entries_["top_logprobs"].push_back(std::move(top));
  offset_ += characters(bytes);
}

Json LogprobsBuilder::take() {
  if (top_ < 0 || entries_.empty()) return nullptr;
  return std::exchange(entries_, Json::object());
}

Json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

std::string full_answer(const AnswerHead& head, const std::vector<ChoicePart>& choices, const Usage& usage) {
  Json body = head_json(head, head.kind == CallKind::kChat ? "chat.completion" : "text_completion");
  Json list = Json::array();
  for (const ChoicePart& choice : choices) list.push_back(full_choice(head.kind, choice));
  body["choices"] = std::move(list);
  body["usage"] = usage_json(usage);
  body["system_fingerprint"] = nullptr;
  return dump(body);
}

std::string stream_event(const AnswerHead& head, const ChoicePart* choice, const StreamUsage& usage) {
  Json body = head_json(head, head.kind == CallKind::kChat ? "chat.completion.chunk" : "text_completion");
  body["choices"] = Json::array();
  if (choice) body["choices"].push_back(stream_choice(head.kind, *choice));
  if (usage.present) body["usage"] = usage.value ? usage_json(*usage.value) : Json(nullptr);
  return event_of_json(dump(body));
}

std::string event_of_json(std::string_view json) { return fmt::format("data: {}\n\n", json); }

}  // namespace motley
