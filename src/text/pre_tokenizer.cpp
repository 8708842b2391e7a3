#include "text/pre_tokenizer.hpp"

#include "text/unicode_class.hpp"
#include "text/utf8.hpp"

namespace motley {
namespace {

struct Character {
  char32_t code_point = 0;
  CharClass char_class = CharClass::kOther;
  size_t bytes = 0;  // 0: the end of the text
};

constexpr CharClass kLetter = CharClass::kLetter, kNumber = CharClass::kNumber, kSpace = CharClass::kSpace,
                    kOther = CharClass::kOther;

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text), classes_(UnicodeClasses::instance()) {}

  Character read(size_t at) const {
    if (at >= text_.size()) return {};
    const auto byte = static_cast<uint8_t>(text_[at]);
    if (byte < 0x80) return {byte, classes_.of(byte), 1};
    const Utf8Step step = utf8_step(text_.substr(at));
    if (step.kind != Utf8Step::kCharacter) return {0xFFFD, kOther, 1};
    return {step.code_point, classes_.of(step.code_point), step.bytes};
  }
  bool is(size_t at, CharClass wanted) const {
    const Character c = read(at);
    return c.bytes != 0 && c.char_class == wanted;
  }
  // The end of the run of `wanted` from `at`, of at most `count_max` characters (0 = no limit).
  size_t run(size_t at, CharClass wanted, size_t count_max = 0) const {
    for (size_t count = 0; count_max == 0 || count < count_max; ++count) {
      const Character c = read(at);
      if (c.bytes == 0 || c.char_class != wanted) break;
      at += c.bytes;
    }
    return at;
  }
  char at(size_t position) const { return position < text_.size() ? text_[position] : '\0'; }
  bool newline(size_t position) const { return at(position) == '\n' || at(position) == '\r'; }

  // \s+(?!\S)|\s+ : the run of spaces at `at`, less its last one if a word follows and something is left.
  size_t spaces(size_t at) const {
    size_t end = at, last = at;
    for (Character c = read(at); c.bytes != 0 && c.char_class == kSpace; c = read(end)) {
      last = end;
      end += c.bytes;
    }
    return end == text_.size() || last == at ? end : last;
  }

  // 's 't 're 've 'm 'll 'd: the end of the contraction at `at`, or `at`. Folding case also lets U+017F stand for s.
  size_t contraction(size_t at, bool any_case) const {
    if (this->at(at) != '\'') return at;
    const auto low = [&](size_t position) {
      const char c = this->at(position);
      return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    };
    const char first = low(at + 1), second = first == '\0' ? '\0' : low(at + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l'))
      return at + 3;
    if (any_case && text_.substr(at + 1).starts_with("\u017F")) return at + 3;
    return at;
  }

 private:
  std::string_view text_;
  const UnicodeClasses& classes_;
};

// GPT-2.
size_t gpt2_word(std::string_view text, size_t at, size_t /*digits_max*/) {
  const Reader reader(text);
  if (const size_t end = reader.contraction(at, false); end != at) return end;
  const size_t start = reader.at(at) == ' ' ? at + 1 : at;
  const Character c = reader.read(start);
  if (c.bytes != 0 && c.char_class != kSpace) return reader.run(start + c.bytes, c.char_class);
  return reader.spaces(at);
}

// OpenAI's cl100k as Llama 3 and Qwen 2 wrote it.
size_t cl100k_word(std::string_view text, size_t at, size_t digits_max) {
  const Reader reader(text);
  if (const size_t end = reader.contraction(at, true); end != at) return end;
  const Character c = reader.read(at);
  if (c.char_class == kLetter) return reader.run(at + c.bytes, kLetter);
  if (c.char_class == kNumber) return reader.run(at, kNumber, digits_max);
  if (!reader.newline(at) && reader.is(at + c.bytes, kLetter)) return reader.run(at + c.bytes, kLetter);
  const size_t start = reader.at(at) == ' ' ? at + 1 : at;
  if (reader.is(start, kOther)) {
    size_t end = reader.run(start, kOther);
    while (reader.newline(end)) ++end;
    return end;
  }
  // \s*[\r\n]+ : up to the last line break of the run of spaces.
  size_t after_break = at;
  for (size_t p = at; p < text.size();) {
    const Character space = reader.read(p);
    if (space.char_class != kSpace) break;
    p += space.bytes;
    if (space.code_point == '\n' || space.code_point == '\r') after_break = p;
  }
  return after_break != at ? after_break : reader.spaces(at);
}

#define MOTLEY_CL100K_(digits)                                       \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" digits \
  R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"
constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 = MOTLEY_CL100K_(R"(\p{N}{1,3})");
constexpr std::string_view kQwen2 = MOTLEY_CL100K_(R"(\p{N})");
#undef MOTLEY_CL100K_

// Sources: GPT-2's encoder.py; the tokenizer.json files of SmolLM2, Llama 3 and Qwen 2; llama.cpp's list of names.
constexpr PreTokenizer kPreTokenizers[] = {
    // name, pattern, cutter, digits_max, digits_apart, ignore_merges, nfc, add_bos
    {"gpt-2", kGpt2, gpt2_word, 0, false, false, false, false},
    {"default", kGpt2, gpt2_word, 0, false, false, false, false},
    {"smollm", kGpt2, gpt2_word, 0, true, false, false, false},
    {"llama-bpe", kLlama3, cl100k_word, 3, false, true, false, true},
    {"llama-v3", kLlama3, cl100k_word, 3, false, true, false, true},
    {"llama3", kLlama3, cl100k_word, 3, false, true, false, true},
    {"qwen2", kQwen2, cl100k_word, 1, false, false, true, false},
};

}  // namespace

const PreTokenizer* find_pre_tokenizer(std::string_view name) {
  for (const PreTokenizer& known : kPreTokenizers) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

std::string known_pre_tokenizers() {
  std::string names;
  for (const PreTokenizer& known : kPreTokenizers) names += (names.empty() ? "" : ", ") + std::string(known.name);
  return names;
}

}  // namespace motley
