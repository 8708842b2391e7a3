#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pre_tokenizer.hpp"

#include <gtest/gtest.h>
#include <pcre2.h>

#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "text/pre_tokenize_steps.hpp"
#include "text/unicode_class.hpp"

namespace motley {
namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using CompiledPattern = std::unique_ptr<pcre2_code, FreeCode>;

// PCRE's \s leaves out U+0085, which White_Space and the engines that the expressions were written for include.
std::string pcre_pattern(std::string_view published) {
  std::string pattern;
  bool in_set = false;
  for (size_t i = 0; i < published.size(); ++i) {
    const std::string_view two = published.substr(i, 2);
    if (two == "\\s" || two == "\\S") {
      pattern += in_set ? "\\s\\x{85}" : two == "\\s" ? "[\\s\\x{85}]" : "[^\\s\\x{85}]";
      ++i;
      continue;
    }
    if (published[i] == '[') in_set = true;
    if (published[i] == ']') in_set = false;
    pattern += published[i];
  }
  return pattern;
}

std::vector<std::string> words_by_pcre(const pcre2_code* code, const std::string& text) {
  std::vector<std::string> words;
  pcre2_match_data* match = pcre2_match_data_create_from_pattern(code, nullptr);
  size_t at = 0;
  while (at < text.size()) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, 0, match, nullptr);
    if (found < 0) break;
    const size_t* span = pcre2_get_ovector_pointer(match);
    if (span[0] != at) break;  // the expressions leave nothing out
    words.push_back(text.substr(span[0], span[1] - span[0]));
    at = span[1];
  }
  pcre2_match_data_free(match);
  if (at < text.size()) words.push_back("left over: " + text.substr(at));
  return words;
}

std::vector<std::string> words_by_hand(const PreTokenizer& pre, const std::string& text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = pre.word_end(text, at);
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

// Letters of several scripts and both cases, what contractions are made of, all kinds of numbers, spaces and marks.
constexpr std::string_view kPieces[] = {
    "a",  "s",      "S",      "t",      "re",     "RE",         "ve",     "m",      "M",      "ll",     "lL",
    "d",  "\u017F", "Z",      "\u00E9", "\u0416", "\u4E2D",     "\u0627", "'",      "'",      "'",      "1",
    "23", "4567",   "\u0664", "\u00BD", "\u2167", "\U0001D7D8", " ",      " ",      "  ",     "\t",     "\n",
    "\r", "\r\n",   "\v",     "\f",     "\u0085", "\u00A0",     "\u2003", "\u2028", "\u3000", "\u200B", ".",
    ",",  "!?",     "<|",     "\u00BF", "\u20AC", "\U0001F600", "\u0301", "\u200D", "_",
};

TEST(PreTokenizer, RandomText_ByHandAndByPublishedExpression_SameWords) {
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "llama3", "llama-v3", "qwen2"}) {
    const PreTokenizer* pre = find_pre_tokenizer(name);
    ASSERT_NE(pre, nullptr) << name;
    const std::string pattern = pcre_pattern(pre->patterns.back());
    int problem = 0;
    size_t place = 0;
    const CompiledPattern code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                             PCRE2_UTF | PCRE2_UCP, &problem, &place, nullptr));
    ASSERT_NE(code, nullptr) << pattern << " at " << place;
    std::mt19937_64 random(20240601);
    for (int round = 0; round < 20000; ++round) {
      std::string text;
      for (size_t i = 0, count = random() % 12; i < count; ++i) text += kPieces[random() % std::size(kPieces)];
      ASSERT_EQ(words_by_hand(*pre, text), words_by_pcre(code.get(), text)) << name << " round " << round;
    }
  }
}

TEST(PreTokenizer, AnyBytes_EveryWordHasBytes) {
  std::mt19937_64 random(7);
  for (const char* name : {"gpt-2", "llama-bpe", "qwen2"}) {
    const PreTokenizer* pre = find_pre_tokenizer(name);
    for (int round = 0; round < 3000; ++round) {
      std::string text(random() % 40, '\0');
      for (char& c : text) c = static_cast<char>(random());
      std::string joined;
      for (const std::string& word : words_by_hand(*pre, text)) {
        ASSERT_FALSE(word.empty());
        joined += word;
      }
      ASSERT_EQ(joined, text);
    }
  }
}

std::vector<std::string> words_by_steps(const PreTokenizeSteps& steps, const std::string& text) {
  PreTokenizeStep::Scratch scratch;
  steps.apply(text, Place::kStart, scratch);
  std::vector<std::string> words;
  for (const TextPiece& piece : scratch.pieces) words.emplace_back(piece.text);
  return words;
}

TEST(PreTokenizer, ExpressionsByPcre_KnownWords) {
  using Words = std::vector<std::string>;
  const std::tuple<const char*, std::string, Words> cases[] = {
      {"gpt-4o",
       "HTMLParser's I'm don'T 12345 x/\n//",
       {"HTMLParser's", " I'm", " don'T", " ", "123", "45", " x", "/\n//"}},
      {"tekken", "HTMLParser's 123", {"HTMLParser", "'s", " ", "1", "2", "3"}},
      {"qwen35", "e\u0301a 12\n\n x", {"e\u0301a", " ", "1", "2", "\n\n", " x"}},
      {"deepseek-llm",
       "Hello, w\u00F6rld 2024\n\u4E2D\u6587",
       {"Hello", ",", " w", "\u00F6", "rld", " ", "2024", "\n", "\u4E2D\u6587"}},
      {"deepseek-coder", "a+b 12 \u4E2D", {"a", "+", "b", " ", "1", "2", " ", "\u4E2D"}},
      {"deepseek-v3", "x = 12345;foo \u4E2Da", {"x", " =", " ", "123", "45", ";foo", " ", "\u4E2D", "a"}},
      {"falcon", "a==b 12345`", {"a", "==", "b", " ", "123", "45", "`"}},
      {"default", "a==b 12345 `", {"a", "==", "b", " ", "123", "45", " `"}},
  };
  for (const auto& [name, text, words] : cases) {
    const PreTokenizer* pre = find_pre_tokenizer(name);
    ASSERT_NE(pre, nullptr) << name;
    ASSERT_EQ(pre->next_word, nullptr) << name;
    const auto steps = PreTokenizeSteps::create(pre->patterns);
    ASSERT_TRUE(steps.ok()) << name << ": " << steps.error().message();
    EXPECT_EQ(words_by_steps(*steps, text), words) << name;
    std::mt19937_64 random(7);
    for (int round = 0; round < 500; ++round) {
      std::string bytes(random() % 40, '\0'), joined;
      for (char& c : bytes) c = static_cast<char>(random());
      for (const std::string& word : words_by_steps(*steps, bytes)) joined += word;
      ASSERT_EQ(joined, bytes) << name;
    }
  }
}

TEST(PreTokenizer, UnknownName_IsNotFound) {
  EXPECT_EQ(find_pre_tokenizer("bloom"), nullptr);
  EXPECT_EQ(find_pre_tokenizer(""), nullptr);
}

TEST(UnicodeClasses, KnownCharacters_HaveTheirClass) {
  const UnicodeClasses& classes = UnicodeClasses::instance();
  const std::pair<char32_t, CharClass> cases[] = {
      {U'a', CharClass::kLetter},    {U'0', CharClass::kNumber},   {U' ', CharClass::kSpace},
      {U'_', CharClass::kOther},     {0x85, CharClass::kSpace},    {0xA0, CharClass::kSpace},
      {0x200B, CharClass::kOther},   {0x2167, CharClass::kNumber}, {0x0301, CharClass::kOther},
      {0x3000, CharClass::kSpace},   {0xFFFF, CharClass::kOther},  {0x10FFFF, CharClass::kOther},
      {0x323AF, CharClass::kLetter}, {0x323B0, CharClass::kOther}, {0x110000, CharClass::kOther},
  };
  for (const auto& [code_point, expected] : cases)
    EXPECT_EQ(classes.of(code_point), expected) << static_cast<uint32_t>(code_point);
}

}  // namespace
}  // namespace motley
