// What every tokenizer keeps, whatever file it was made of.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string_view>
#include <vector>

#include "base/check.hpp"
#include "text/text_stream.hpp"
#include "text/tokenizer.hpp"

namespace motley::fuzz {

inline void check_ids(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  for (const TokenId id : ids) {
    CHECK(id >= 0 && static_cast<uint32_t>(id) < tokenizer.size(), "{} of {}", id, tokenizer.size());
  }
}

// Text to ids and back: the ids are the vocabulary's own, and of the markers untrusted text gives at most one: that
// which stands for what the vocabulary does not know.
inline void check_tokenizer(const Tokenizer& tokenizer, std::string_view text) {
  TextStream stream(tokenizer, {.stop = {}, .starts_text = true});
  std::set<TokenId> markers;
  for (const bool trusted : {false, true}) {
    const std::vector<TokenId> ids = tokenizer.encode(text, trusted, trusted);
    check_ids(tokenizer, ids);
    for (const TokenId id : ids) {
      if (!trusted && tokenizer.is_marker(id)) markers.insert(id);
      (void)stream.push(id);
    }
    (void)tokenizer.decode(ids, trusted);
  }
  (void)stream.finish();
  CHECK(markers.size() <= 1, "{} kinds of markers out of untrusted text", markers.size());
  check_ids(tokenizer, tokenizer.encode_more(text, Place::kAfterToken, false));
  check_ids(tokenizer, tokenizer.end_tokens());
}

// Short lines that take every way through a tokenizer: words, numbers, blanks, several scripts, spellings of special
// tokens, and bytes that are no UTF-8.
inline void check_tokenizer(const Tokenizer& tokenizer) {
  constexpr std::array<std::string_view, 4> kLines = {"Hello, world! It's 12345.", " \t na\xC3\xAFve \xE4\xBD\xA0\n\n",
                                                      "<s>a</s><|im_end|><0x41>", "\xFF\xC3 \xF0\x9F\x98\x80"};
  for (const std::string_view line : kLines) check_tokenizer(tokenizer, line);
}

}  // namespace motley::fuzz
