#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.hpp"

#include <pcre2.h>

#include <string>

#include "text/vocabulary.hpp"

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
constexpr Translation kTranslations[] = {
    {'s', R"([\s\x{85}])", R"(\s\x{85})"},
    {'S', R"([^\s\x{85}])", ""},
    {'w', R"([\p{L}\p{M}\p{Nd}\p{Pc}])", R"(\p{L}\p{M}\p{Nd}\p{Pc})"},
    {'W', R"([^\p{L}\p{M}\p{Nd}\p{Pc}])", ""},
    {'h', "[0-9A-Fa-f]", "0-9A-Fa-f"},
    {'H', "[^0-9A-Fa-f]", ""},
};

// The same expression for PCRE2.
Result<std::string> translated(std::string_view pattern) {
  std::string out;
  bool in_set = false;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c == '\\' && at + 1 < pattern.size()) {
      const char letter = pattern[++at];
      const Translation* known = nullptr;
      for (const Translation& t : kTranslations) known = t.letter == letter ? &t : known;
      if (known != nullptr && in_set && known->in_set.empty()) {
        return invalid_argument("the expression {} has \\{} in a set, which is not supported", quoted(pattern), letter);
      }
      if (known != nullptr) {
        out += in_set ? known->in_set : known->outside;
      } else {
        out += {'\\', letter};
      }
      continue;
    }
    const std::string_view two = pattern.substr(at, 2);
    if (in_set && (two == "&&" || (c == '[' && two != "[:"))) {
      return invalid_argument("the expression {} has a set inside a set, which is not supported", quoted(pattern));
    }
    if (in_set && two == "[:") {
      const size_t end = pattern.find(":]", at);
      if (end == pattern.npos) return invalid_argument("the expression {} has a set without end", quoted(pattern));
      out += pattern.substr(at, end + 2 - at);
      at = end + 1;
      continue;
    }
    if (c == '[' && !in_set) {
      in_set = true;
      // A ']' that comes first stands for itself, to both.
      out += c;
      if (pattern.substr(at + 1).starts_with('^')) out += pattern[++at];
      if (pattern.substr(at + 1).starts_with(']')) out += "\\]", ++at;
      continue;
    }
    if (c == ']') in_set = false;
    out += c;
  }
  return out;
}

}  // namespace

struct Regex::Scratch::Impl {
  int exceeded = 0;
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackBytesMin, kJitStackBytesMax, nullptr);
  Impl() {
    CHECK(match != nullptr && context != nullptr && stack != nullptr, "out of memory");
    pcre2_set_match_limit(context, kMatchStepsMax);
    pcre2_set_depth_limit(context, kBacktracksDepthMax);
    pcre2_set_heap_limit(context, kHeapKilobytesMax);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Impl() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
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
  ASSIGN_OR_RETURN(const std::string ours, translated(pattern));
  auto impl = std::make_unique<Impl>();
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  CHECK(context != nullptr, "out of memory");
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
    return invalid_argument("the expression {} is not one that can be used: {}", quoted(pattern),
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
