#include "text/chat_template.hpp"

#include <nlohmann/json.hpp>

#include "base/clock.hpp"
#include "text/jinja/template.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

// One string of all text parts, a line each, for templates that know strings only.
Json joined_parts(const Json& parts) {
  std::string text;
  for (const Json& part : parts) {
    if (!text.empty()) text += '\n';
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

Status check_content(const Json& content, size_t index) {
  if (content.is_null() || content.is_string()) return ok_status();
  if (!content.is_array()) return invalid_argument("messages[{}].content must be a string or an array of parts", index);
  for (const Json& part : content) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text";
    if (!is_text || !part.contains("text") || !part["text"].is_string()) {
      return invalid_argument("messages[{}].content: every part must be {{\"type\": \"text\", \"text\": \"...\"}}",
                              index);
    }
  }
  return ok_status();
}

Status check_messages(const Json& messages) {
  if (!messages.is_array()) return invalid_argument("messages must be an array");
  for (size_t i = 0; i < messages.size(); ++i) {
    const Json& message = messages[i];
    if (!message.is_object()) return invalid_argument("messages[{}] must be an object", i);
    if (!message.contains("role") || !message["role"].is_string()) {
      return invalid_argument("messages[{}].role must be a string", i);
    }
    if (message.contains("content")) RETURN_IF_ERROR(check_content(message["content"], i));
  }
  return ok_status();
}

void append_ids(std::vector<TokenId>& ids, const std::vector<TokenId>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

}  // namespace

class ChatTemplate::Impl {
 public:
  Impl(std::unique_ptr<jinja::Template> program, std::string bos_text, std::string eos_text)
      : program_(std::move(program)),
        bos_(std::move(bos_text)),
        eos_(std::move(eos_text)),
        takes_parts_(program_->iterates_over("content")) {}

  Result<std::vector<TextSpan>> render(const Json& messages, bool add_generation_prompt, const Json& extra) const {
    RETURN_IF_ERROR(check_messages(messages));
    if (!extra.is_null() && !extra.is_object()) return invalid_argument("chat_template_kwargs must be an object");
    Json adapted;
    const Json* given = &messages;
    if (!takes_parts_ && has_parts(messages)) {
      adapted = messages;
      for (Json& message : adapted) {
        if (message.contains("content") && message["content"].is_array())
          message["content"] = joined_parts(message["content"]);
      }
      given = &adapted;
    }
    // tools and documents are none, not undefined, unless given: templates ask for them so.
    const Json prompt = add_generation_prompt, none;
    std::vector<jinja::Variable> variables = {{"messages", given},        {"add_generation_prompt", &prompt},
                                              {"tools", &none},           {"documents", &none},
                                              {"bos_token", &bos_, true}, {"eos_token", &eos_, true}};
    if (extra.is_object()) {
      for (const auto& [name, value] : extra.items()) {
        if (name == "messages") return invalid_argument("chat_template_kwargs must not contain 'messages'");
        variables.push_back({name, &value});
      }
    }
    ASSIGN_OR_RETURN(jinja::MarkedText text, program_->render(variables, unix_time_s()));
    std::vector<TextSpan> spans;
    size_t begin = 0;
    for (const jinja::MarkedText::Run& run : text.runs()) {
      spans.push_back({text.bytes().substr(begin, run.end - begin), run.trusted});
      begin = run.end;
    }
    return spans;
  }

 private:
  static bool has_parts(const Json& messages) {
    for (const Json& message : messages) {
      if (message.contains("content") && message["content"].is_array()) return true;
    }
    return false;
  }

  const std::unique_ptr<jinja::Template> program_;
  const Json bos_, eos_;
  const bool takes_parts_;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::create(std::string_view source, std::string bos_text,
                                                           std::string eos_text) {
  if (source.empty()) {
    return invalid_argument("the model has no chat template; give one with --chat-template FILE");
  }
  ASSIGN_OR_RETURN(auto program, jinja::Template::create(source));
  return std::unique_ptr<ChatTemplate>(
      new ChatTemplate(std::make_unique<Impl>(std::move(program), std::move(bos_text), std::move(eos_text))));
}

Result<std::vector<TextSpan>> ChatTemplate::render(const Json& messages, bool add_generation_prompt,
                                                   const Json& extra) const {
  return impl_->render(messages, add_generation_prompt, extra);
}

std::string ChatTemplate::join(const std::vector<TextSpan>& spans) {
  std::string text;
  for (const TextSpan& span : spans) text += span.text;
  return text;
}

// Text is cut at the control tokens of trusted spans only. What lies between two of them is tokenised in one piece,
// whoever wrote it, so that words across the spans' borders come out as they would of plain text.
std::vector<TokenId> ChatTemplate::encode(const std::vector<TextSpan>& spans, const Tokenizer& tokenizer) {
  std::vector<TokenId> ids;
  std::string plain;
  auto flush = [&] {
    if (!plain.empty()) append_ids(ids, tokenizer.encode(plain, false, false));
    plain.clear();
  };
  for (size_t i = 0; i < spans.size();) {
    if (!spans[i].trusted) {
      plain += spans[i++].text;
      continue;
    }
    std::string text;
    for (; i < spans.size() && spans[i].trusted; ++i) text += spans[i].text;
    // The control tokens come in the text's order, so each is the first occurrence of its spelling from here on.
    size_t pos = 0;
    for (TokenId id : tokenizer.encode(text, false, true)) {
      if (!tokenizer.is_control(id)) continue;
      const std::string spelling = tokenizer.token_bytes(id, true);
      const size_t hit = spelling.empty() ? std::string::npos : text.find(spelling, pos);
      if (hit == std::string::npos) continue;
      plain.append(text, pos, hit - pos);
      flush();
      ids.push_back(id);
      pos = hit + spelling.size();
    }
    plain.append(text, pos);
  }
  flush();
  return ids;
}

}  // namespace motley
