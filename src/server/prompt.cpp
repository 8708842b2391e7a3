#include "server/prompt.hpp"

#include <algorithm>

namespace motley {
namespace {

// vLLM's defaults: 16 for completions, the rest of the context for chat.
constexpr uint32_t kCompletionMaxTokens = 16;

std::string prompt_field(const GenerationCall& call) { return call.kind == CallKind::kChat ? "messages" : "prompt"; }

ApiError too_long(const std::string& field, uint32_t max_model_len, const std::string& tokens) {
  ApiError error = bad_request(field,
                               "this model's context is {} tokens and the prompt has {}; at least one must be left for "
                               "the answer: shorten the prompt",
                               max_model_len, tokens);
  error.code = "context_length_exceeded";
  return error;
}

}  // namespace

PromptEncoder::PromptEncoder(const Tokenizer& tokenizer, const ChatTemplate* chat_template, uint32_t max_model_len)
    : tokenizer_(tokenizer), chat_template_(chat_template), max_model_len_(max_model_len), token_bytes_max_(1) {
  for (uint32_t id = 0; id < tokenizer.size(); ++id) {
    token_bytes_max_ = std::max(token_bytes_max_, tokenizer.token_bytes(static_cast<TokenId>(id), true).size());
  }
}

// Spares the work of encoding what cannot fit, however it is cut.
bool PromptEncoder::surely_too_long(size_t bytes) const { return bytes / token_bytes_max_ > max_model_len_; }

MaybeError PromptEncoder::check_length(const GenerationCall& call, size_t tokens) const {
  if (tokens == 0) return bad_request(prompt_field(call), "the prompt is empty: it must come to at least one token");
  if (tokens >= max_model_len_) return too_long(prompt_field(call), max_model_len_, std::to_string(tokens));
  if (call.has_max_tokens && tokens + call.params.max_tokens > max_model_len_) {
    ApiError error =
        bad_request("max_tokens",
                    "this model's context is {} tokens; the prompt has {} and max_tokens asks for {}: lower "
                    "either",
                    max_model_len_, tokens, call.params.max_tokens);
    error.code = "context_length_exceeded";
    return error;
  }
  return std::nullopt;
}

MaybeError PromptEncoder::encode(GenerationCall& call, std::vector<std::vector<TokenId>>& out) const {
  out.clear();
  if (call.kind == CallKind::kChat) {
    out.emplace_back();
    if (MaybeError error = encode_chat(call.chat, true, out.back())) return error;
  }
  for (const PromptInput& prompt : call.prompts) {
    if (const auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
      out.push_back(*ids);
      continue;
    }
    const std::string& text = std::get<std::string>(prompt);
    if (surely_too_long(text.size())) {
      return too_long("prompt", max_model_len_, fmt::format("{} bytes, more than they can hold", text.size()));
    }
    out.push_back(tokenizer_.encode(text, call.add_special_tokens, true));
  }
  size_t longest = 0;
  for (const std::vector<TokenId>& tokens : out) {
    if (MaybeError error = check_length(call, tokens.size())) return error;
    longest = std::max(longest, tokens.size());
  }
  if (!call.has_max_tokens) {
    const auto room = static_cast<uint32_t>(max_model_len_ - longest);
    call.params.max_tokens = call.kind == CallKind::kChat ? room : std::min(room, kCompletionMaxTokens);
  }
  return check_min_tokens(call.params);
}

MaybeError PromptEncoder::encode_chat(const ChatCall& chat, bool bounded, std::vector<TokenId>& out) const {
  if (!chat_template_) {
    return bad_request(
        "messages",
        "this model has no chat template; start the server with --chat-template FILE, or use /v1/completions");
  }
  Result<std::vector<TextSpan>> spans = chat_template_->render({.messages = chat.messages,
                                                                .tools = &chat.tools,
                                                                .documents = &chat.documents,
                                                                .variables = &chat.variables,
                                                                .add_generation_prompt = chat.add_generation_prompt,
                                                                .continue_final_message = chat.continue_final_message});
  if (!spans) {
    ApiError error = error_of_status(spans.error());
    if (error.status == 400) error.param = "messages";
    return error;
  }
  size_t bytes = 0;
  for (const TextSpan& span : *spans) bytes += span.text.size();
  if (bounded && surely_too_long(bytes)) {
    return too_long("messages", max_model_len_, fmt::format("{} bytes, more than they can hold", bytes));
  }
  out = ChatTemplate::encode(*spans, tokenizer_);
  return std::nullopt;
}

MaybeError PromptEncoder::encode(const TokenizeCall& call, std::vector<TokenId>& out) const {
  if (!call.prompt) return encode_chat(call.chat, false, out);
  out = tokenizer_.encode(*call.prompt, call.add_special_tokens, true);
  return std::nullopt;
}

}  // namespace motley
