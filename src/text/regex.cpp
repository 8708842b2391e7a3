#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.hpp"

#include <pcre2.h>

#include <algorithm>
#include <new>
#include <string>

#include "base/quote.hpp"

namespace motley {
namespace {

constexpr size_t kPatternBytesMax = 1 << 14;
constexpr uint32_t kNestingMax = 50;  // of parentheses
constexpr uint32_t kMatchStepsMax = 1'000'000, kBacktracksDepthMax = 10'000;
constexpr int kExceededMax = 8;  // searches of one Scratch that may exceed a limit; then it finds nothing more
constexpr size_t kHeapKilobytesMax = 16 << 10;
constexpr size_t kJitStackBytesMin = 32 << 10, kJitStackBytesMax = 1 << 20;

struct Translation {
  char letter;
  std::string_view outside, in_set;  // "" in_set: not to be had there
};
// White_Space: PCRE2's own \s lacks U+0085 and has U+180E.
#define MOTLEY_SPACE_ R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"
// Oniguruma's \w: letters, marks, decimal digits and connectors, what else is alphabetic, and Latin-1's other numbers.
#define MOTLEY_WORD_                                                                          \
  R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}\x{24B6}-\x{24E9}\x{1F130}-)" \
  R"(\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})"
constexpr Translation kTranslations[] = {
    {'s', "[" MOTLEY_SPACE_ "]", MOTLEY_SPACE_}, {'S', "[^" MOTLEY_SPACE_ "]", ""},
    {'w', "[" MOTLEY_WORD_ "]", MOTLEY_WORD_},   {'W', "[^" MOTLEY_WORD_ "]", ""},
    {'h', "[0-9A-Fa-f]", "0-9A-Fa-f"},           {'H', "[^0-9A-Fa-f]", ""},
};
#undef MOTLEY_WORD_
#undef MOTLEY_SPACE_

// The same expression for PCRE2.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    while (at_ < pattern_.size()) {
      if (pattern_[at_] == '\\' && at_ + 1 < pattern_.size()) {
        RETURN_IF_ERROR(escape());
      } else {
        RETURN_IF_ERROR(in_set_ ? set_item() : item());
      }
    }
    return std::move(out_);
  }

 private:
  std::string_view rest() const { return pattern_.substr(at_); }
  void copy(size_t count) {
    out_ += rest().substr(0, count);
    at_ += std::min(count, rest().size());
  }
  Status unsupported(std::string_view what) const {
    return invalid_argument("the expression {} has {}, which is not supported", in_quotes(pattern_), what);
  }

  Status escape() {
    const char letter = pattern_[at_ + 1];
    for (const Translation& t : kTranslations) {
      if (t.letter != letter) continue;
      if (in_set_ && t.in_set.empty()) return unsupported(fmt::format("\\{} in a set", letter));
      out_ += in_set_ ? t.in_set : t.outside;
      at_ += 2;
      return ok_status();
    }
    copy(2);
    // \p{L}, \x{85}: what is in braces is no repetition.
    if (std::string_view("pPxkg").find(letter) != std::string_view::npos && rest().starts_with('{')) {
      copy(std::min(rest().find('}'), rest().size()) + 1);
    }
    return ok_status();
  }

  Status set_item() {
    if (rest().starts_with("[:")) {
      const size_t end = rest().find(":]");
      if (end == std::string_view::npos) return unsupported("a set without end");
      copy(end + 2);
      return ok_status();
    }
    if (rest().starts_with('[') || rest().starts_with("&&")) return unsupported("a set inside a set");
    in_set_ = !rest().starts_with(']');
    copy(1);
    return ok_status();
  }

  Status item() {
    if (rest().starts_with('[')) {
      in_set_ = true;
      copy(rest().starts_with("[^") ? 2 : 1);
      if (rest().starts_with(']')) {  // one that comes first stands for itself, to both
        out_ += '\\';
        copy(1);
      }
    } else if (rest().starts_with("(?m") || rest().starts_with("(?-m")) {
      return unsupported("the option m");
    } else if (rest().starts_with('{')) {
      return repetition();
    } else {
      copy(1);
    }
    return ok_status();
  }

  // {,n} is {0,n}; {1,n}+ is not possessive but the repetition of a repetition, and so +.
  Status repetition() {
    const size_t end = rest().find('}');
    const std::string_view body = end == std::string_view::npos ? "" : rest().substr(1, end - 1);
    if (body.empty() || body.find_first_not_of("0123456789,") != std::string_view::npos) {
      copy(1);
      return ok_status();
    }
    at_ += end + 1;
    if (!rest().starts_with('+')) {
      out_ += fmt::format("{{{}{}}}", body.starts_with(',') ? "0" : "", body);
      return ok_status();
    }
    if (!body.starts_with("1,")) return unsupported("a + behind a repetition that does not begin with 1");
    copy(1);
    return ok_status();
  }

  const std::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
  bool in_set_ = false;
};

}  // namespace

struct Regex::Scratch::Impl {
  int exceeded = 0;
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackBytesMin, kJitStackBytesMax, nullptr);
  Impl() {
    if (match == nullptr || context == nullptr || stack == nullptr) {
      free();
      throw std::bad_alloc();
    }
    pcre2_set_match_limit(context, kMatchStepsMax);
    pcre2_set_depth_limit(context, kBacktracksDepthMax);
    pcre2_set_heap_limit(context, kHeapKilobytesMax);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Impl() { free(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  void free() {  // what is null is none
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
};

Regex::Scratch::Scratch() = default;
Regex::Scratch::~Scratch() = default;

struct Regex::Impl {
  pcre2_code* code = nullptr;
  Impl() = default;
  ~Impl() { pcre2_code_free(code); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
};

Regex::Regex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Regex::~Regex() = default;

Result<std::unique_ptr<Regex>> Regex::create(std::string_view pattern) {
  if (pattern.size() > kPatternBytesMax) {
    return invalid_argument("a regular expression has {} bytes; the limit is {}", pattern.size(), kPatternBytesMax);
  }
  ASSIGN_OR_RETURN(const std::string ours, Translator(pattern).run());
  auto impl = std::make_unique<Impl>();
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (context == nullptr) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kNestingMax);
  int problem = 0;
  size_t place = 0;
  impl->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(ours.data()), ours.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                    &problem, &place, context.get());
  if (impl->code == nullptr) {
    PCRE2_UCHAR text[128] = {};
    pcre2_get_error_message(problem, text, sizeof text);
    return invalid_argument("the expression {} is not one that can be used: {}", in_quotes(pattern),
                            reinterpret_cast<const char*>(text));
  }
  (void)pcre2_jit_compile(impl->code, PCRE2_JIT_COMPLETE);  // without it the same matches come, slower
  return std::unique_ptr<Regex>(new Regex(std::move(impl)));
}

std::optional<std::pair<size_t, size_t>> Regex::find(std::string_view text, size_t from, Scratch& scratch) const {
  if (!scratch.impl_) scratch.impl_ = std::make_unique<Scratch::Impl>();
  Scratch::Impl& s = *scratch.impl_;
  if (s.exceeded == kExceededMax) return std::nullopt;
  const int found =
      pcre2_match(impl_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, 0, s.match, s.context);
  if (found < 0) {
    s.exceeded += found == PCRE2_ERROR_NOMATCH ? 0 : 1;
    return std::nullopt;
  }
  const size_t* span = pcre2_get_ovector_pointer(s.match);
  if (span[1] < span[0] || span[0] < from) return std::nullopt;  // \K may turn a match around
  return std::pair(span[0], span[1]);
}

}  // namespace motley
