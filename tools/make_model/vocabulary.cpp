#include "make_model/vocabulary.hpp"

#include <array>
#include <string_view>

namespace motley::make_model {
namespace {

constexpr int32_t kNormal = 1;
constexpr int32_t kControl = 3;

// By rank; each part is a byte's character or the result of an earlier pair. "_" stands for the character of a space.
constexpr std::array<std::string_view, 36> kMerges = {
    "_ t", "h e",  "_ a", "i n", "_t he", "r e", "o n",  "e r",  "_ s", "a t", "_ w",   "_ o",
    "e n", "_ c",  "i t", "i s", "a n",   "o r", "e s",  "_ b",  "e d", "_ f", "in g",  "_ p",
    "o u", "_a n", "a l", "a r", "_t o",  "_ m", "_o f", "_ in", "_ d", "_ h", "_an d", "_ is"};

constexpr std::string_view kChatTemplate =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

std::string utf8(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// GPT-2's alphabet: a byte that is a printable Latin-1 character stands for itself; the others take the characters from
// U+0100 on, in order.
std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> characters;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    characters[byte] = utf8(printable ? byte : next++);
  }
  return characters;
}

}  // namespace

void add_built_in_vocabulary(GgufWriter* writer, uint32_t size) {
  CHECK(size >= kVocabularyMin, "{} tokens", size);
  std::vector<std::string> tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  std::vector<int32_t> types(tokens.size(), kControl);
  const std::array<std::string, 256> characters = byte_characters();
  tokens.insert(tokens.end(), characters.begin(), characters.end());
  std::vector<std::string> merges;
  for (const std::string_view pair : kMerges) {
    if (tokens.size() == size) break;
    std::string merge;
    for (const char c : pair) merge += c == '_' ? characters[' '] : std::string(1, c);
    const size_t gap = merge.find(' ');
    tokens.push_back(merge.substr(0, gap) + merge.substr(gap + 1));
    merges.push_back(std::move(merge));
  }
  // Tokens with a text, so that a server has something to send for each.
  while (tokens.size() < size) tokens.push_back(fmt::format("<unused{}>", tokens.size()));
  types.resize(size, kNormal);

  writer->add_string("tokenizer.ggml.model", "gpt2");
  writer->add_string("tokenizer.ggml.pre", "smollm");
  writer->add_strings("tokenizer.ggml.tokens", tokens);
  writer->add_i32s("tokenizer.ggml.token_type", types);
  writer->add_strings("tokenizer.ggml.merges", merges);
  writer->add_u32("tokenizer.ggml.bos_token_id", 1);
  writer->add_u32("tokenizer.ggml.eos_token_id", 2);
  writer->add_u32("tokenizer.ggml.unknown_token_id", 0);
  writer->add_u32("tokenizer.ggml.padding_token_id", 2);
  writer->add_bool("tokenizer.ggml.add_bos_token", false);
  writer->add_bool("tokenizer.ggml.add_space_prefix", false);
  writer->add_string("tokenizer.chat_template", kChatTemplate);
}

}  // namespace motley::make_model
