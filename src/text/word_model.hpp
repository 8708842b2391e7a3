// WordModel: how one word, as a pre-tokeniser cut it, becomes ids. Immutable; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/ids.hpp"

namespace motley {

// Longer words are cut into pieces of this, each encoded alone: encoding takes some 24 bytes of memory for each byte of
// the word. Ids may then differ from those of the word as a whole, at the cuts.
inline constexpr size_t kWordBytesMax = size_t{1} << 20;

// Tokens that are found by their text (not by merges that a file lists) are at most this long, which bounds the time
// that each place of a text can take.
inline constexpr size_t kSearchedTokenBytesMax = 512;

class WordModel {
 public:
  // The best way to a place of the word (UnigramModel).
  struct Node {
    double score;
    uint32_t from;  // where the last token of the way begins
    TokenId id;     // that token; -1: none is known
  };
  // What one thread works with; one for many words.
  struct Scratch {
    std::vector<TokenId> symbols;
    std::vector<Node> nodes;
  };
  virtual ~WordModel() = default;
  // Appends the word's ids. The word may hold any bytes.
  virtual void encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const = 0;
};

}  // namespace motley
