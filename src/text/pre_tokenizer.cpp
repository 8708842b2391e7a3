#include "text/pre_tokenizer.hpp"

#include "base/utf8.hpp"
#include "text/unicode_class.hpp"

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

#define MOTLEY_CONTRACTION_ R"((?i:'s|'t|'re|'ve|'m|'ll|'d))"
#define MOTLEY_SPACES_ R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define MOTLEY_CL100K_(digits) \
  MOTLEY_CONTRACTION_ R"(|[^\r\n\p{L}\p{N}]?\p{L}+|)" digits R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)" MOTLEY_SPACES_
// Words of capitals, then small letters; `tail` behind each.
#define MOTLEY_CASED_(tail, digits)                                                                  \
  R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)" tail             \
  R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)" tail "|" digits \
  R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*)" MOTLEY_SPACES_

constexpr std::string_view kGpt2Words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt2[] = {kGpt2Words};
constexpr std::string_view kDigitsThenGpt2[] = {R"(\p{N})", kGpt2Words};
constexpr std::string_view kLlama3[] = {MOTLEY_CL100K_(R"(\p{N}{1,3})")};
constexpr std::string_view kQwen2[] = {MOTLEY_CL100K_(R"(\p{N})")};
constexpr std::string_view kQwen35[] = {
    MOTLEY_CONTRACTION_ R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)" MOTLEY_SPACES_};
constexpr std::string_view kO200k[] = {MOTLEY_CASED_(MOTLEY_CONTRACTION_ "?", R"(\p{N}{1,3})")};
constexpr std::string_view kTekken[] = {MOTLEY_CASED_("", R"(\p{N})")};
constexpr std::string_view kDeepseekLlm[] = {
    R"([\r\n])",
    R"(\s?)"
    R"([A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF})"
    R"(\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1})"
    R"(\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5})"
    R"(\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77})"
    R"(\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D})"
    R"(\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE})"
    R"(\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC})"
    R"(\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124})"
    R"(\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E})"
    R"(\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D})"
    R"(\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF})"
    R"(\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F})"
    R"(\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF})"
    R"(\x{1E900}-\x{1E943}])"
    R"(+)",
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)",
    R"(\s+$)",
    R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)",
    R"(\p{N}+)"};
constexpr std::string_view kDeepseekCoder[] = {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)",
                                               R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)", R"(\p{N})"};
constexpr std::string_view kDeepseekV3[] = {
    R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*)" MOTLEY_SPACES_};
constexpr std::string_view kDefault[] = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Words, R"(\p{N}+)", "[0-9][0-9][0-9]"};
constexpr std::string_view kFalcon[] = {R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2Words, "[0-9][0-9][0-9]"};
#undef MOTLEY_CASED_
#undef MOTLEY_CL100K_
#undef MOTLEY_SPACES_
#undef MOTLEY_CONTRACTION_

// Sources: GPT-2's encoder.py; tiktoken (cl100k, o200k); the tokenizer.json files of SmolLM2, Llama 3, Qwen 2 and 3.5,
// Mistral Nemo, DeepSeek (LLM, Coder, V3), Falcon, GPT-NeoX, StableLM 2 and Command R (form C); llama.cpp's list of
// names and its `default`.
constexpr PreTokenizer kPreTokenizers[] = {
    // name, patterns, cutter, digits_max, digits_apart, ignore_merges, nfc, add_bos
    {"gpt-2", kGpt2, gpt2_word, 0, false, false, false, false},
    {"default", kDefault, nullptr, 0, false, false, false, false},
    {"phi-2", kGpt2, gpt2_word, 0, false, false, false, false},
    {"mpt", kGpt2, gpt2_word, 0, false, false, true, false},
    {"olmo", kGpt2, gpt2_word, 0, false, false, true, false},
    {"smollm", kDigitsThenGpt2, gpt2_word, 0, true, false, false, false},
    {"starcoder", kDigitsThenGpt2, gpt2_word, 0, true, false, false, false},
    {"refact", kDigitsThenGpt2, gpt2_word, 0, true, false, false, false},
    {"command-r", kDigitsThenGpt2, gpt2_word, 0, true, false, true, false},
    {"codeshell", kDigitsThenGpt2, gpt2_word, 0, true, false, false, false},
    {"exaone", kDigitsThenGpt2, gpt2_word, 0, true, false, false, false},
    {"llama-bpe", kLlama3, cl100k_word, 3, false, true, false, true},
    {"llama-v3", kLlama3, cl100k_word, 3, false, true, false, true},
    {"llama3", kLlama3, cl100k_word, 3, false, true, false, true},
    {"falcon3", kLlama3, cl100k_word, 3, false, true, false, true},
    {"pixtral", kLlama3, cl100k_word, 3, false, true, false, true},
    {"dbrx", kLlama3, cl100k_word, 3, false, false, false, false},
    {"smaug-bpe", kLlama3, cl100k_word, 3, false, false, false, false},
    {"glm4", kLlama3, cl100k_word, 3, false, false, false, false},
    {"chatglm-bpe", kLlama3, cl100k_word, 3, false, false, false, false},
    {"qwen2", kQwen2, cl100k_word, 1, false, false, true, false},
    {"deepseek-r1-qwen", kQwen2, cl100k_word, 1, false, false, true, false},
    {"stablelm2", kQwen2, cl100k_word, 1, false, false, true, false},
    {"qwen35", kQwen35, nullptr, 0, false, false, true, false},
    {"gpt-4o", kO200k, nullptr, 0, false, false, false, false},
    {"llama4", kO200k, nullptr, 0, false, false, false, false},
    {"tekken", kTekken, nullptr, 0, false, true, false, true},
    {"deepseek-llm", kDeepseekLlm, nullptr, 0, false, false, false, false},
    {"deepseek-coder", kDeepseekCoder, nullptr, 0, false, false, false, false},
    {"deepseek-v3", kDeepseekV3, nullptr, 0, false, false, false, false},
    {"falcon", kFalcon, nullptr, 0, false, false, false, false},
};

}  // namespace

const PreTokenizer* find_pre_tokenizer(std::string_view name) {
  for (const PreTokenizer& known : kPreTokenizers) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

const PreTokenizer* find_pre_tokenizer_of(std::string_view pattern) {
  for (const PreTokenizer& known : kPreTokenizers) {
    if (known.next_word != nullptr && known.patterns.size() == 1 && known.patterns[0] == pattern) return &known;
  }
  return nullptr;
}

std::string known_pre_tokenizers() {
  std::string names;
  for (const PreTokenizer& known : kPreTokenizers) names += (names.empty() ? "" : ", ") + std::string(known.name);
  return names;
}

}  // namespace motley
