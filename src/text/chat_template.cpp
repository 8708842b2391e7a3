#include "text/chat_template.hpp"

#include <algorithm>
#include <cctype>
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

// Trusted spans that follow one another, as one text.
std::string trusted_run(const std::vector<TextSpan>& spans, size_t first) {
  std::string text;
  for (size_t i = first; i < spans.size() && spans[i].trusted; ++i) text += spans[i].text;
  return text;
}

// A literal token like "### Human:", which steers a chat where the template spells it. Words and blanks do not.
bool is_phrase(std::string_view spelling) {
  return spelling.size() > 2 && std::any_of(spelling.begin(), spelling.end(),
                                            [](unsigned char c) { return c > ' ' && c < 0x7F && !std::isalnum(c); });
}

// What the template's own text says in tokens that nobody else may write.
struct Steering {
  std::vector<std::vector<TokenId>> runs;  // by run of trusted spans: its markers and phrases in order
  std::vector<std::string> phrases;        // spellings that the tokenizer would take from anyone
};

Steering steering_of(const std::vector<TextSpan>& spans, const Tokenizer& tokenizer) {
  Steering found;
  for (size_t i = 0; i < spans.size(); ++i) {
    if (!spans[i].trusted || (i > 0 && spans[i - 1].trusted)) continue;
    std::vector<TokenId>& run = found.runs.emplace_back();
    for (const TokenId id : tokenizer.encode(trusted_run(spans, i), false, true)) {
      if (tokenizer.is_marker(id)) {
        run.push_back(id);
      } else if (tokenizer.is_literal(id) && is_phrase(tokenizer.piece(id))) {
        run.push_back(id);
        found.phrases.emplace_back(tokenizer.piece(id));
      }
    }
  }
  std::sort(found.phrases.begin(), found.phrases.end());
  found.phrases.erase(std::unique(found.phrases.begin(), found.phrases.end()), found.phrases.end());
  return found;
}

// No marker and no phrase comes out: where the text spells a phrase, it is cut behind the phrase's first byte.
void encode_untrusted(std::string_view text, const std::vector<std::string>& phrases, const Tokenizer& tokenizer,
                      std::vector<TokenId>& ids) {
  std::vector<size_t> cuts = {0, text.size()};
  for (const std::string& phrase : phrases) {
    for (size_t at = text.find(phrase); at != text.npos; at = text.find(phrase, at + 1)) cuts.push_back(at + 1);
  }
  std::sort(cuts.begin(), cuts.end());
  for (size_t i = 1; i < cuts.size(); ++i) {
    if (cuts[i - 1] == cuts[i]) continue;
    const auto more = tokenizer.encode(text.substr(cuts[i - 1], cuts[i] - cuts[i - 1]), false, false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
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

// Text is cut at the markers and phrases of trusted spans only. What lies between two of them is tokenised in one
// piece, whoever wrote it, so that words across the spans' borders come out as they would of plain text.
std::vector<TokenId> ChatTemplate::encode(const std::vector<TextSpan>& spans, const Tokenizer& tokenizer) {
  const Steering steering = steering_of(spans, tokenizer);
  std::vector<TokenId> ids;
  std::string plain;
  size_t run = 0;
  for (size_t i = 0; i < spans.size(); ++i) {
    if (!spans[i].trusted) {
      plain += spans[i].text;
      continue;
    }
    if (i > 0 && spans[i - 1].trusted) continue;  // in the run already
    const std::string text = trusted_run(spans, i);
    // The tokens come in the text's order, so each is the first occurrence of its spelling from here on.
    size_t pos = 0;
    for (const TokenId id : steering.runs[run++]) {
      const std::string_view spelling = tokenizer.piece(id);
      const size_t hit = spelling.empty() ? std::string::npos : text.find(spelling, pos);
      if (hit == std::string::npos) continue;
      plain.append(text, pos, hit - pos);
      encode_untrusted(plain, steering.phrases, tokenizer, ids);
      plain.clear();
      ids.push_back(id);
      pos = hit + spelling.size();
    }
    plain.append(text, pos);
  }
  encode_untrusted(plain, steering.phrases, tokenizer, ids);
  return ids;
}

}  // namespace motley
