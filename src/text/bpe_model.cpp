#include "text/bpe_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/quote.hpp"
#include "base/utf8.hpp"
#include "text/bpe_merger.hpp"
#include "text/vocabulary.hpp"

namespace motley {
namespace {

bool of_words(TokenType type) { return type == TokenType::kNormal || type == TokenType::kUserDefined; }

// By id: how good its score is among all (0 = best); equal scores share a rank.
Result<std::vector<uint32_t>> ranks_of_scores(std::span<const float> scores) {
  std::vector<uint32_t> order(scores.size()), ranks(scores.size());
  std::iota(order.begin(), order.end(), 0);
  for (size_t id = 0; id < scores.size(); ++id) {
    if (std::isnan(scores[id]))
      return invalid_argument("tokenizer.ggml.scores: the score of token {} is not a number; get the file again", id);
  }
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    ranks[order[i]] = ranks[order[i - 1]] + (scores[order[i]] == scores[order[i - 1]] ? 0 : 1);
  }
  return ranks;
}

}  // namespace

Result<std::vector<MergePair>> split_merges(std::span<const std::string_view> merges) {
  std::vector<MergePair> pairs;
  pairs.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view merge = merges[rank];
    const auto pair = split_merge(merge);
    if (!pair) return invalid_argument("merge {} is {}, not two tokens with a space between", rank, in_quotes(merge));
    pairs.push_back({pair->first, pair->second});
  }
  return pairs;
}

Result<MergeTable> merges_of_pairs(const TokenTable& tokens, std::span<const MergePair> pairs) {
  MergeTable merges(pairs.size());
  std::string joined;
  for (size_t rank = 0; rank < pairs.size(); ++rank) {
    const auto& [left_piece, right_piece] = pairs[rank];
    joined.assign(left_piece).append(right_piece);
    const auto left = tokens.find(left_piece), right = tokens.find(right_piece), result = tokens.find(joined);
    if (!left || !right || !result) {
      return invalid_argument("merge {} names {}, which is not in the vocabulary", rank,
                              in_quotes(!left    ? left_piece
                                        : !right ? right_piece
                                                 : std::string_view(joined)));
    }
    if (tokens.is_marker(*result)) continue;
    switch (merges.insert(static_cast<uint32_t>(*left), static_cast<uint32_t>(*right),
                          {static_cast<uint32_t>(rank), static_cast<uint32_t>(*result)})) {
      case MergeTable::Insert::kDone: break;
      case MergeTable::Insert::kDuplicate:
        return invalid_argument("merge {} ({}) stands twice in the vocabulary", rank,
                                in_quotes(fmt::format("{} {}", left_piece, right_piece)));
      case MergeTable::Insert::kCollisions:
        return invalid_argument("merge {}: more than {} merges fall into one place of a table", rank, kProbesMax);
    }
  }
  return merges;
}

Result<MergeTable> merges_of_scores(const TokenTable& tokens, std::span<const float> scores) {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ranks, ranks_of_scores(scores));
  struct Found {
    TokenId left, right, result;
  };
  std::vector<Found> found;
  const auto part = [&](std::string_view text) -> std::optional<TokenId> {
    const auto id = tokens.find(text);
    return id && of_words(tokens[*id].type) ? id : std::nullopt;
  };
  for (TokenId id = 0; tokens.known(id); ++id) {
    const TokenTable::Entry& entry = tokens[id];
    if (!of_words(entry.type) || tokens.is_marker(id)) continue;
    if (entry.piece.size() > kSearchedTokenBytesMax) {
      if (entry.type == TokenType::kUserDefined) continue;  // found literally, whatever its length
      return invalid_argument("token {} has {} bytes; in a vocabulary of scores they have at most {}", id,
                              entry.piece.size(), kSearchedTokenBytesMax);
    }
    for (size_t cut = 1; cut < entry.piece.size(); ++cut) {
      if ((static_cast<uint8_t>(entry.piece[cut]) & 0xC0) == 0x80) continue;  // inside a character
      const auto left = part(entry.piece.substr(0, cut));
      if (!left) continue;
      const auto right = part(entry.piece.substr(cut));
      if (right) found.push_back({*left, *right, id});
    }
    if (found.size() > kMergesMax) {
      return error(MOTLEY_RESOURCE_EXHAUSTED, "the vocabulary's tokens merge in more than {} ways", kMergesMax);
    }
  }
  MergeTable merges(found.size());
  for (const Found& f : found) {
    const auto inserted = merges.insert(static_cast<uint32_t>(f.left), static_cast<uint32_t>(f.right),
                                        {ranks[static_cast<size_t>(f.result)], static_cast<uint32_t>(f.result)});
    if (inserted == MergeTable::Insert::kCollisions) {
      return invalid_argument("token {}: more than {} merges fall into one place of a table", f.result, kProbesMax);
    }
  }
  return merges;
}

Result<std::unique_ptr<BpeModel>> BpeModel::create(const TokenTable& tokens, MergeTable merges, Rules rules) {
  std::unique_ptr<BpeModel> made(new BpeModel(std::move(merges), rules));
  RETURN_IF_ERROR(made->index(tokens));
  return made;
}

Status BpeModel::index(const TokenTable& tokens) {
  by_text_ = StringTable(tokens.size());
  cuts_ = !rules_.of_bytes && !rules_.ignore_merges;
  bool knows_spaces = false;
  for (TokenId id = 0; tokens.known(id); ++id) {
    const TokenTable::Entry& entry = tokens[id];
    // Of bytes: a normal token whose spelling leaves the alphabet keeps its text as its bytes, and no word becomes it.
    const bool in_words = rules_.of_bytes ? entry.spelled : of_words(entry.type) && !tokens.is_marker(id);
    const std::string_view text = rules_.of_bytes ? entry.bytes : entry.piece;
    if (!in_words || text.empty()) continue;
    if (by_text_.insert(text, static_cast<uint32_t>(id)) == StringTable::Insert::kCollisions) {
      return invalid_argument("token {}: more than {} tokens fall into one place of a table", id, kProbesMax);
    }
    knows_spaces = knows_spaces || text == kSpaceMark;
    for (size_t at = text.find(kSpaceMark, 1); at != text.npos; at = text.find(kSpaceMark, at + 1)) {
      before_space_[static_cast<uint8_t>(text[at - 1])] = true;
    }
  }
  cuts_ = cuts_ && knows_spaces;
  byte_tokens_ = tokens.byte_tokens();
  for (size_t byte = 0; byte < 256 && rules_.of_bytes; ++byte) {
    const char spelled = static_cast<char>(byte);
    byte_tokens_[byte] = static_cast<TokenId>(by_text_.find({&spelled, 1}).value_or(static_cast<uint32_t>(-1)));
  }
  whole_ = std::make_unique<std::atomic<uint8_t>[]>(tokens.size());
  return ok_status();
}

size_t BpeModel::part_end(std::string_view word) const {
  const size_t max = std::min(word.size(), kWordBytesMax);
  if (!cuts_) return max;
  for (size_t at = 1; (at = word.find(kSpaceMark, at)) < max; ++at) {
    if (!before_space_[static_cast<uint8_t>(word[at - 1])]) return at;
  }
  return max;
}

void BpeModel::encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  while (!word.empty()) {
    const size_t end = part_end(word);
    encode_part(word.substr(0, end), scratch, out);
    word.remove_prefix(end);
  }
}

void BpeModel::encode_part(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  const auto whole = by_text_.find(word);
  if (whole) {
    const uint8_t state = rules_.ignore_merges ? uint8_t{kYes} : whole_[*whole].load(std::memory_order_relaxed);
    if (state == kYes) {
      out.push_back(static_cast<TokenId>(*whole));
      return;
    }
  }
  std::vector<TokenId>& symbols = scratch.symbols;
  symbols.clear();
  first_symbols(word, symbols);
  merge_word(merges_, symbols);
  if (whole) {
    const bool itself = symbols.size() == 1 && symbols[0] == static_cast<TokenId>(*whole);
    whole_[*whole].store(itself ? kYes : kNo, std::memory_order_relaxed);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
}

void BpeModel::first_symbols(std::string_view word, std::vector<TokenId>& symbols) const {
  const auto byte_token = [&](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
  bool after_unknown = false;
  const auto push_unknown = [&](bool was_unknown) {
    if (!rules_.unknown) return;
    after_unknown = true;
    if (!was_unknown || !rules_.fuse_unknown) symbols.push_back(*rules_.unknown);
  };
  if (rules_.of_bytes) {
    for (const char byte : word) {
      const bool was_unknown = std::exchange(after_unknown, false);
      if (byte_token(byte) >= 0) {
        symbols.push_back(byte_token(byte));
      } else {
        push_unknown(was_unknown);
      }
    }
    return;
  }
  for (size_t at = 0; at < word.size();) {
    const Utf8Step step = utf8_step(word.substr(at));
    const std::string_view character =
        word.substr(at, step.kind == Utf8Step::kCharacter ? step.bytes : 1);  // of broken text, byte by byte
    at += character.size();
    const bool was_unknown = std::exchange(after_unknown, false);
    if (const auto id = by_text_.find(character)) {
      symbols.push_back(static_cast<TokenId>(*id));
    } else if (rules_.byte_fallback &&
               std::all_of(character.begin(), character.end(), [&](char byte) { return byte_token(byte) >= 0; })) {
      for (const char byte : character) symbols.push_back(byte_token(byte));
    } else {
      push_unknown(was_unknown);
    }
  }
}

}  // namespace motley
