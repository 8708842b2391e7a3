// For tests: a vocabulary that owns its strings.
#pragma once

#include <string>
#include <vector>

#include "text/tokenizer.hpp"

namespace motley {

struct TestVocabulary {
  std::string model = "gpt2", pre = "gpt-2";
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;
  std::vector<float> scores;
  std::optional<int32_t> bos, eos, eot, eom, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;
  std::string precompiled_charsmap;

  // The 256 bytes in GPT-2's alphabet.
  static TestVocabulary bytes() {
    TestVocabulary made;
    for (int byte = 0, next = 0x100; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const int c = printable ? byte : next++;
      made.add(c < 0x80 ? std::string(1, static_cast<char>(c))
                        : std::string{static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))},
               1);
    }
    return made;
  }
  int32_t add(std::string token, int32_t type) {
    tokens.push_back(std::move(token));
    types.push_back(type);
    return static_cast<int32_t>(tokens.size()) - 1;
  }
  int32_t merge(const std::string& left, const std::string& right) {
    merges.push_back(left + " " + right);
    return add(left + right, 1);
  }
  Result<std::unique_ptr<Tokenizer>> create() const {
    const std::vector<std::string_view> token_views(tokens.begin(), tokens.end()),
        merge_views(merges.begin(), merges.end());
    return Tokenizer::create({model, pre, token_views, types, scores, merge_views, bos, eos, eot, eom, unknown, padding,
                              add_bos, add_eos, add_space_prefix, remove_extra_whitespaces, precompiled_charsmap});
  }
};

}  // namespace motley
