// Pre-tokenisers: where text is cut into the words that byte-pair merges never cross.
//
// Each GGUF name stands for published regular expressions (pre_tokenizer.cpp lists them), applied one after another.
// The cutters of the most used are written by hand for speed and held against those expressions by the tests; the
// others run by PCRE2. Immutable; safe from any thread.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace motley {

struct PreTokenizer {
  std::string_view name;                       // tokenizer.ggml.pre
  std::span<const std::string_view> patterns;  // as published: each cuts the words of the one before
  // By hand, or null: the cutter of the last pattern; one before it, if any, is \p{N} (digits_apart).
  size_t (*next_word)(std::string_view text, size_t at, size_t digits_max);
  size_t digits_max;   // digits in one word; 0 = no limit
  bool digits_apart;   // digits are cut out, one by one, before the pattern runs
  bool ignore_merges;  // a word that is in the vocabulary is taken whole
  bool nfc;            // text is brought to Unicode normalisation form C first
  bool add_bos;        // the default where the file does not say

  // By hand only. The end (> at) of the word that starts at `at` < text.size(). A byte that is no UTF-8 counts as a
  // character of its own that is neither letter, number nor space.
  size_t word_end(std::string_view text, size_t at) const { return next_word(text, at, digits_max); }
};

// nullptr if the name is unknown.
const PreTokenizer* find_pre_tokenizer(std::string_view name);

// One written by hand whose words are those of this published expression alone; nullptr if there is none.
const PreTokenizer* find_pre_tokenizer_of(std::string_view pattern);

// "a, b, c", for messages.
std::string known_pre_tokenizers();

}  // namespace motley
