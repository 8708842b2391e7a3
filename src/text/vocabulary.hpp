// What holds for every vocabulary, whatever its algorithm.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.hpp"
#include "text/tokenizer.hpp"

namespace motley {

inline constexpr size_t kTokensMax = size_t{1} << 22;
inline constexpr size_t kMergesMax = size_t{1} << 22;
inline constexpr size_t kTokenBytesMax = size_t{1} << 16;
inline constexpr size_t kVocabularyBytesMax = size_t{1} << 28;  // all tokens together

// INVALID_ARGUMENT (what, where) unless counts agree, types and ids are in range and sizes within the limits.
Status check_vocabulary(const VocabularyData& data);

// The two tokens of "left right": split at the first space that is not the first byte. nullopt: a side is missing.
std::optional<std::pair<std::string_view, std::string_view>> split_merge(std::string_view merge);

// Spellings that end an answer in some model family.
std::span<const std::string_view> end_token_names();

}  // namespace motley
