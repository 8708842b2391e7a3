#include "text/chat_template.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/clock.hpp"
#include "base/utf8.hpp"
#include "text/chat_template_messages.hpp"
#include "text/jinja/template.hpp"
#include "text/jinja/unicode.hpp"
#include "text/unicode_class.hpp"

namespace motley {
namespace {

using Json = nlohmann::ordered_json;

// transformers' way to find where a message's content ends in the text: it is put behind the content, and the text is
// cut there. The blank shows whether the template trims.
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";

bool is_given(const Json* value) { return value != nullptr && !value->is_null(); }

Status check_objects(const Json* value, std::string_view name) {
  if (!is_given(value)) return ok_status();
  const bool fit =
      value->is_array() && std::all_of(value->begin(), value->end(), [](const Json& item) { return item.is_object(); });
  return fit ? ok_status() : invalid_argument("{} must be an array of objects", name);
}

Status check_input(const ChatInput& input) {
  RETURN_IF_ERROR(check_objects(input.tools, "tools"));
  RETURN_IF_ERROR(check_objects(input.documents, "documents"));
  if (is_given(input.variables)) {
    if (!input.variables->is_object()) return invalid_argument("chat_template_kwargs must be an object");
    if (input.variables->contains("messages")) {
      return invalid_argument("chat_template_kwargs must not contain 'messages'");
    }
  }
  if (input.continue_final_message && input.add_generation_prompt) {
    return invalid_argument("continue_final_message needs add_generation_prompt to be false");
  }
  return ok_status();
}

size_t last_char(std::string_view text) {
  size_t pos = text.size() - 1;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

// As Python's str.strip().
std::string_view stripped(std::string_view text) {
  const auto is_blank_at = [&](size_t pos) { return jinja::is_space(jinja::code_point_at(text, pos)); };
  while (!text.empty() && is_blank_at(0)) text.remove_prefix(jinja::char_length(text, 0));
  while (!text.empty() && is_blank_at(last_char(text))) text = text.substr(0, last_char(text));
  return text;
}

// The text that is continued: the content of the last message, or its last part's.
Result<std::string*> final_text(Json& messages) {
  if (messages.empty()) return invalid_argument("continue_final_message: there is no message");
  const auto content = messages.back().find("content");
  if (content != messages.back().end() && content->is_string()) return content->get_ptr<std::string*>();
  if (content != messages.back().end() && content->is_array() && !content->empty()) {
    return content->back()["text"].get_ptr<std::string*>();
  }
  return invalid_argument("continue_final_message: the last message has no text to go on with");
}

// Drops what lies behind the first `bytes` bytes.
void cut_spans(std::vector<TextSpan>& spans, size_t bytes) {
  size_t kept = 0;
  while (kept < spans.size() && bytes > 0) {
    TextSpan& span = spans[kept++];
    span.text.resize(std::min(span.text.size(), bytes));
    bytes -= span.text.size();
  }
  spans.resize(kept);
}

Status cut_behind_tag(std::vector<TextSpan>& spans, std::string_view continued) {
  const std::string text = ChatTemplate::join(spans);
  const std::string_view whole(text);
  const size_t tag = text.rfind(kContinueTag.substr(0, kContinueTag.size() - 1));
  if (tag == std::string::npos || whole.find(stripped(continued)) == std::string_view::npos) {
    return invalid_argument(
        "continue_final_message: the template does not show the last message's content as it is, so that it cannot be "
        "continued");
  }
  const std::string_view before = whole.substr(0, tag);
  const bool keeps_blanks = whole.substr(tag).starts_with(kContinueTag);
  size_t end = tag;
  if (!keeps_blanks) {
    const std::string_view trimmed = stripped(before);
    end = trimmed.empty() ? 0 : static_cast<size_t>(trimmed.data() - before.data()) + trimmed.size();
  }
  cut_spans(spans, end);
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
    const Place place = cuts[i - 1] > 0 ? Place::kInText : ids.empty() ? Place::kStart : Place::kAfterToken;
    const auto more = tokenizer.encode_more(text.substr(cuts[i - 1], cuts[i] - cuts[i - 1]), place, false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
}

// What is gathered between two tokens, less the white space that goes with either of them.
class PlainText {
 public:
  void add(std::string_view text) {
    while (drops_ && !text.empty()) {
      const Utf8Step step = utf8_step(text);
      if (!is_space(step)) drops_ = false;
      if (drops_) text.remove_prefix(step.bytes);
    }
    text_ += text;
  }
  void drop_trailing_space() {
    while (!text_.empty()) {
      const size_t last = last_char(text_);
      if (!is_space(utf8_step(std::string_view(text_).substr(last)))) break;
      text_.resize(last);
    }
  }
  // Ends this text and begins the next one, behind a token that does or does not take white space with it.
  std::string take(bool drops_leading_space) {
    drops_ = drops_leading_space;
    return std::exchange(text_, {});
  }

 private:
  static bool is_space(const Utf8Step& step) {
    return step.kind == Utf8Step::kCharacter && UnicodeClasses::instance().of(step.code_point) == CharClass::kSpace;
  }
  std::string text_;
  bool drops_ = false;
};

}  // namespace

class ChatTemplate::Impl {
 public:
  struct Program {
    std::unique_ptr<jinja::Template> code;
    bool takes_parts = false;
  };

  Impl(Program standard, Program with_tools, std::string bos_text, std::string eos_text)
      : standard_(std::move(standard)),
        with_tools_(std::move(with_tools)),
        bos_(std::move(bos_text)),
        eos_(std::move(eos_text)) {}

  static Result<Program> compile(std::string_view source) {
    ASSIGN_OR_RETURN(auto code, jinja::Template::create(source));
    const bool takes_parts = code->iterates_over("content");
    return Program{std::move(code), takes_parts};
  }

  Result<std::vector<TextSpan>> render(const ChatInput& input) const {
    RETURN_IF_ERROR(check_input(input));
    const bool tools_given = is_given(input.tools) && !input.tools->empty();
    const Program& program = tools_given && with_tools_.code ? with_tools_ : standard_;
    ASSIGN_OR_RETURN(std::optional<Json> adapted, adapt_messages(input.messages, program.takes_parts));
    std::string continued;
    if (input.continue_final_message) {
      if (!adapted) adapted.emplace(input.messages);
      ASSIGN_OR_RETURN(std::string * text, final_text(*adapted));
      continued = *text;
      *text += kContinueTag;
    }
    ASSIGN_OR_RETURN(auto spans, run(*program.code, adapted ? *adapted : input.messages, input));
    if (input.continue_final_message) RETURN_IF_ERROR(cut_behind_tag(spans, continued));
    return spans;
  }

 private:
  Result<std::vector<TextSpan>> run(const jinja::Template& program, const Json& messages,
                                    const ChatInput& input) const {
    // tools and documents are none, not undefined, unless given: templates ask for them so.
    const Json prompt = input.add_generation_prompt, none;
    const auto or_none = [&](const Json* value) { return is_given(value) && !value->empty() ? value : &none; };
    std::vector<jinja::Variable> variables = {{"messages", &messages},         {"add_generation_prompt", &prompt},
                                              {"tools", or_none(input.tools)}, {"documents", or_none(input.documents)},
                                              {"bos_token", &bos_, true},      {"eos_token", &eos_, true}};
    if (is_given(input.variables)) {
      for (const auto& [name, value] : input.variables->items()) variables.push_back({name, &value});
    }
    ASSIGN_OR_RETURN(jinja::MarkedText text, program.render(variables, unix_time_s()));
    std::vector<TextSpan> spans;
    size_t begin = 0;
    for (const jinja::MarkedText::Run& run : text.runs()) {
      spans.push_back({text.bytes().substr(begin, run.end - begin), run.trusted});
      begin = run.end;
    }
    return spans;
  }

  const Program standard_, with_tools_;  // the latter may have no code
  const Json bos_, eos_;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::create(const ChatTemplateSources& sources, std::string bos_text,
                                                           std::string eos_text) {
  if (sources.empty()) {
    return invalid_argument("the model has no chat template; give one with --chat-template FILE");
  }
  const std::string* standard = sources.find(kDefaultTemplateName);
  if (standard == nullptr) {
    return invalid_argument(
        "none of the model's chat templates ({}) is named \"{}\"; give one with --chat-template FILE", sources.names(),
        kDefaultTemplateName);
  }
  ASSIGN_OR_RETURN(auto program, Impl::compile(*standard));
  Impl::Program with_tools;
  if (const std::string* source = sources.find(kToolTemplateName)) {
    auto made = Impl::compile(*source);
    if (!made.ok()) return made.error().annotate(kToolTemplateName);
    with_tools = *std::move(made);
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(
      std::make_unique<Impl>(std::move(program), std::move(with_tools), std::move(bos_text), std::move(eos_text))));
}

Result<std::vector<TextSpan>> ChatTemplate::render(const ChatInput& input) const { return impl_->render(input); }

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
  PlainText plain;
  size_t run = 0;
  for (size_t i = 0; i < spans.size(); ++i) {
    if (!spans[i].trusted) {
      plain.add(spans[i].text);
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
      plain.add(std::string_view(text).substr(pos, hit - pos));
      if (tokenizer.takes_left(id)) plain.drop_trailing_space();
      encode_untrusted(plain.take(tokenizer.takes_right(id)), steering.phrases, tokenizer, ids);
      ids.push_back(id);
      pos = hit + spelling.size();
    }
    plain.add(std::string_view(text).substr(pos));
  }
  encode_untrusted(plain.take(false), steering.phrases, tokenizer, ids);
  return ids;
}

}  // namespace motley
