#include "server/prompt.hpp"

#include <algorithm>

namespace motley {
namespace {

// vLLM's defaults: 16 for completions, the rest of the context for chat.
constexpr uint32_t kCompletionMaxTokens = 16;

constexpr size_t kTokenizeBytesMax = 1u << 20;     // of text: some tenths of a second of work
constexpr size_t kDetokenizeBytesMax = 32u << 20;  // of text that comes out

std::string prompt_field(const GenerationCall& call) { return call.kind == CallKind::kChat ? "messages" : "prompt"; }

ApiError too_long(const std::string& field, uint32_t max_model_len, const std::string& tokens) {
  ApiError error = bad_request(field,
                               "this model's context is {} tokens and the prompt has {}; at least one must be left for "
                               "the answer: shorten the prompt",
                               max_model_len, tokens);
  error.code = "context_length_exceeded";
  return error;
}

MaybeError check_length(const GenerationCall& call, size_t tokens, uint32_t max_model_len) {
  if (tokens == 0) return bad_request(prompt_field(call), "the prompt is empty: it must come to at least one token");
  if (tokens >= max_model_len) return too_long(prompt_field(call), max_model_len, std::to_string(tokens));
  if (call.has_max_tokens && tokens + call.params.max_tokens > max_model_len) {
    ApiError error =
        bad_request("max_tokens",
                    "this model's context is {} tokens; the prompt has {} and max_tokens asks for {}: lower "
                    "either",
                    max_model_len, tokens, call.params.max_tokens);
    error.code = "context_length_exceeded";
    return error;
  }
  return std::nullopt;
}

size_t bytes_of(const std::vector<TextSpan>& spans) {
  size_t bytes = 0;
  for (const TextSpan& span : spans) bytes += span.text.size();
  return bytes;
}

}  // namespace

PromptEncoder::PromptEncoder(const Tokenizer& tokenizer, const ChatTemplate* chat_template,
                             std::string chat_unavailable, uint32_t max_tokens)
    : tokenizer_(tokenizer),
      chat_template_(chat_template),
      chat_unavailable_(std::move(chat_unavailable)),
      max_tokens_(max_tokens),
      token_bytes_max_(1) {
  for (uint32_t id = 0; id < tokenizer.size(); ++id) {
    token_bytes_max_ = std::max(token_bytes_max_, tokenizer.token_bytes(static_cast<TokenId>(id), true).size());
  }
}

// Text of more bytes cannot fit, however it is cut: it is not worth encoding.
MaybeError PromptEncoder::check_bytes(const std::string& field, size_t bytes, uint32_t max_model_len) const {
  if (bytes <= size_t{max_model_len} * token_bytes_max_) return std::nullopt;
  return too_long(field, max_model_len, fmt::format("{} bytes, more than they can hold", bytes));
}

MaybeError PromptEncoder::encode(GenerationCall& call, uint32_t max_model_len,
                                 std::vector<std::vector<TokenId>>& out) const {
  out.clear();
  if (call.kind == CallKind::kChat) {
    std::vector<TextSpan> spans;
    if (MaybeError error = render(call.chat, spans)) return error;
    if (MaybeError error = check_bytes("messages", bytes_of(spans), max_model_len)) return error;
    out.push_back(ChatTemplate::encode(spans, tokenizer_));
  }
  for (const PromptInput& prompt : call.prompts) {
    if (const auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
      out.push_back(*ids);
      continue;
    }
    const std::string& text = std::get<std::string>(prompt);
    if (MaybeError error = check_bytes("prompt", text.size(), max_model_len)) return error;
    out.push_back(tokenizer_.encode(text, call.add_special_tokens, true));
  }
  size_t longest = 0;
  for (const std::vector<TokenId>& tokens : out) {
    if (MaybeError error = check_length(call, tokens.size(), max_model_len)) return error;
    longest = std::max(longest, tokens.size());
  }
  if (!call.has_max_tokens) {
    const auto room = static_cast<uint32_t>(max_model_len - longest);
    call.params.max_tokens = call.kind == CallKind::kChat ? room : std::min(room, kCompletionMaxTokens);
  }
  if (max_tokens_ > 0) call.params.max_tokens = std::min(call.params.max_tokens, max_tokens_);
  return check_min_tokens(call.params);
}

MaybeError PromptEncoder::render(const ChatCall& chat, std::vector<TextSpan>& out) const {
  if (!chat_template_) {
    return bad_request("messages", "{}, or use /v1/completions", chat_unavailable_);
  }
  Result<std::vector<TextSpan>> spans = chat_template_->render({.messages = chat.messages,
                                                                .tools = &chat.tools,
                                                                .documents = &chat.documents,
                                                                .variables = &chat.variables,
                                                                .add_generation_prompt = chat.add_generation_prompt,
                                                                .continue_final_message = chat.continue_final_message});
  // Whether the template or the messages are at fault cannot be told apart: what one template cannot render of these
  // messages, it may render of others.
  if (!spans) {
    const bool said_of_messages = spans.error().code() == MOTLEY_INVALID_ARGUMENT;
    return bad_request("messages", "{}{}", said_of_messages ? "" : "the chat template cannot render these messages: ",
                       spans.error().message());
  }
  out = *std::move(spans);
  return std::nullopt;
}

MaybeError PromptEncoder::encode(const TokenizeCall& call, std::vector<TokenId>& out) const {
  std::vector<TextSpan> spans;
  if (!call.prompt) {
    if (MaybeError error = render(call.chat, spans)) return error;
  }
  const size_t bytes = call.prompt ? call.prompt->size() : bytes_of(spans);
  if (bytes > kTokenizeBytesMax) {
    return bad_request(call.prompt ? "prompt" : "messages",
                       "the text has {} bytes; at most {} are tokenised in one call: cut it", bytes, kTokenizeBytesMax);
  }
  out = call.prompt ? tokenizer_.encode(*call.prompt, call.add_special_tokens, true)
                    : ChatTemplate::encode(spans, tokenizer_);
  return std::nullopt;
}

MaybeError PromptEncoder::decode(const std::vector<TokenId>& tokens, std::string& out) const {
  size_t bytes = 0;
  for (const TokenId id : tokens) bytes += tokenizer_.piece(id).size();
  if (bytes > kDetokenizeBytesMax) {
    return bad_request("tokens", "they spell {} bytes; at most {} are given in one answer: cut them", bytes,
                       kDetokenizeBytesMax);
  }
  out = tokenizer_.decode(tokens, true);
  return std::nullopt;
}

}  // namespace motley
