// Charsmap: SentencePiece's precompiled normalisation, a double-array trie (Darts-clone) of character sequences and the
// texts that replace them, as `tokenizer.ggml.precompiled_charsmap` and tokenizer.json's `Precompiled` hold it.
// Immutable; safe from any thread. A damaged trie finds less or other replacements and nothing worse: sequences are of
// at most 64 bytes, and no text becomes more than 64 times as long.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley {

class Charsmap {
 public:
  struct Match {
    size_t bytes;           // of the text, at its beginning
    std::string_view with;  // what replaces them
  };

  // Copies `blob`: u32 bytes of the trie, the trie's units (u32, little-endian), the texts, each with a zero behind it.
  // INVALID_ARGUMENT (what) if it is not that.
  static Result<Charsmap> create(std::string_view blob);

  // The longest sequence at the beginning of `text` that is replaced; the shortest.
  std::optional<Match> longest(std::string_view text) const { return find(text, true); }
  std::optional<Match> shortest(std::string_view text) const { return find(text, false); }

  // Hugging Face's way: a grapheme of fewer than six bytes is replaced, all of it, by what its shortest beginning asks
  // for; where there is none, and of longer graphemes, each character is looked for. Broken bytes stay.
  std::string replaced_by_graphemes(std::string_view text) const;

 private:
  std::optional<Match> find(std::string_view text, bool longest) const;
  void replace_grapheme(std::string_view grapheme, std::string& out) const;

  std::vector<uint32_t> trie_;
  std::string texts_;
};

}  // namespace motley
