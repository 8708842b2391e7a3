// Reading tokenizer.json and tokenizer_config.json: JSON within limits, with the two long lists of the first
// (vocabulary, merges) set apart, so that they never become a tree.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley {

inline constexpr size_t kTokenizerJsonBytesMax = size_t{1} << 28;
inline constexpr size_t kTokenizerJsonValuesMax = size_t{1} << 20;  // beside vocabulary and merges
inline constexpr size_t kTokenizerJsonDepthMax = 32;

struct TokenizerJson {
  struct Token {
    std::string piece;
    uint32_t id = 0;   // BPE: as written; unigram: its place
    double score = 0;  // unigram
  };
  std::vector<Token> vocab;
  std::vector<std::string> merges;  // left, right, left, right, ...
  bool has_merges = false, vocab_has_scores = false;
  nlohmann::json rest;  // an object: all else
};

// INVALID_ARGUMENT (`file`, place, what) for what is no JSON object or not of that shape, RESOURCE_EXHAUSTED beyond the
// limits.
Result<TokenizerJson> read_tokenizer_json(std::string_view text, std::string_view file);

}  // namespace motley
