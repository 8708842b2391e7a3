#include "text/vocabulary.hpp"

#include <algorithm>
#include <utility>

#include "base/utf8.hpp"

namespace motley {
namespace {

constexpr int32_t kTypeFirst = 1, kTypeLast = 6;

constexpr std::string_view kEndTokenNames[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "</s>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<|return|>",
    "<|call|>",
    "<end_of_utterance>",
    "<|end_of_turn|>",
    "<｜end▁of▁sentence｜>",
};

}  // namespace

std::optional<std::pair<std::string_view, std::string_view>> split_merge(std::string_view merge) {
  const size_t space = merge.find(' ', 1);
  if (merge.empty() || space == std::string_view::npos || space + 1 == merge.size()) return std::nullopt;
  return std::pair(merge.substr(0, space), merge.substr(space + 1));
}

std::span<const std::string_view> end_token_names() { return kEndTokenNames; }

Status check_vocabulary(const VocabularyData& data) {
  const size_t count = data.tokens.size();
  if (count == 0) return invalid_argument("tokenizer.ggml.tokens is empty; the file holds no vocabulary");
  if (count > kTokensMax)
    return invalid_argument("tokenizer.ggml.tokens has {} entries; the limit is {}", count, kTokensMax);
  if (data.merges.size() > kMergesMax) {
    return invalid_argument("tokenizer.ggml.merges has {} entries; the limit is {}", data.merges.size(), kMergesMax);
  }
  if (!data.types.empty() && data.types.size() != count) {
    return invalid_argument("tokenizer.ggml.token_type has {} entries for {} tokens", data.types.size(), count);
  }
  if (!data.scores.empty() && data.scores.size() != count) {
    return invalid_argument("tokenizer.ggml.scores has {} entries for {} tokens", data.scores.size(), count);
  }
  size_t total = 0;
  for (size_t id = 0; id < count; ++id) {
    total += data.tokens[id].size();
    if (data.tokens[id].size() > kTokenBytesMax || total > kVocabularyBytesMax) {
      return invalid_argument("token {} is too long ({} bytes; at most {} each and {} in all)", id,
                              data.tokens[id].size(), kTokenBytesMax, kVocabularyBytesMax);
    }
  }
  for (size_t id = 0; id < data.types.size(); ++id) {
    if (data.types[id] < kTypeFirst || data.types[id] > kTypeLast) {
      return invalid_argument("token {} has the type {}; types are {} to {}", id, data.types[id], kTypeFirst,
                              kTypeLast);
    }
  }
  for (size_t rank = 0; rank < data.merges.size(); ++rank) {
    if (data.merges[rank].size() > 2 * kTokenBytesMax + 1) {
      return invalid_argument("merge {} is too long ({} bytes)", rank, data.merges[rank].size());
    }
  }
  const std::pair<const char*, std::optional<int32_t>> roles[] = {
      {"bos", data.bos}, {"eos", data.eos},         {"eot", data.eot},
      {"eom", data.eom}, {"unknown", data.unknown}, {"padding", data.padding},
  };
  for (const auto& [name, id] : roles) {
    if (id && (*id < 0 || static_cast<size_t>(*id) >= count)) {
      return invalid_argument("tokenizer.ggml.{}_token_id is {}, outside the {} tokens", name, *id, count);
    }
  }
  return ok_status();
}

}  // namespace motley
