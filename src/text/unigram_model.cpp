#include "text/unigram_model.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/utf8.hpp"

namespace motley {
namespace {

constexpr double kUnknownPenalty = 10;  // SentencePiece's: an unknown character is this much worse than any token
constexpr size_t kNodesMax = size_t{1} << 24;

size_t character_bytes(std::string_view text) {
  const Utf8Step step = utf8_step(text);
  return step.kind == Utf8Step::kCharacter ? step.bytes : 1;
}

}  // namespace

Result<std::unique_ptr<UnigramModel>> UnigramModel::create(const TokenTable& tokens, std::span<const double> scores,
                                                           Rules rules) {
  std::unique_ptr<UnigramModel> made(new UnigramModel(rules));
  made->scores_.assign(scores.begin(), scores.end());
  made->token_at_ = {-1};
  size_t bytes = 0;
  double lowest = std::numeric_limits<double>::max();
  std::vector<TokenId> words;
  for (TokenId id = 0; static_cast<size_t>(id) < scores.size(); ++id) {
    const TokenTable::Entry& entry = tokens[id];
    if (!std::isfinite(scores[static_cast<size_t>(id)]))
      return invalid_argument("the score of token {} is not finite", id);
    lowest = std::min(lowest, scores[static_cast<size_t>(id)]);
    if (entry.type != TokenType::kNormal && entry.type != TokenType::kUserDefined) continue;
    if (tokens.is_marker(id) || entry.piece.empty()) continue;
    if (entry.piece.size() > kSearchedTokenBytesMax) {
      if (entry.type == TokenType::kUserDefined) continue;  // found literally, whatever its length
      return invalid_argument("token {} has {} bytes; in a vocabulary of scores they have at most {}", id,
                              entry.piece.size(), kSearchedTokenBytesMax);
    }
    bytes += entry.piece.size();
    words.push_back(id);
  }
  if (bytes > kNodesMax) {
    return error(MOTLEY_RESOURCE_EXHAUSTED, "the vocabulary's tokens have {} bytes; the limit is {}", bytes, kNodesMax);
  }
  made->unknown_score_ = made->rounded(lowest - kUnknownPenalty);
  made->children_ = PairTable<uint32_t>(bytes);
  for (const TokenId id : words) RETURN_IF_ERROR(made->add(id, tokens[id].piece));
  made->byte_tokens_ = tokens.byte_tokens();
  return made;
}

Status UnigramModel::add(TokenId id, std::string_view piece) {
  uint32_t node = 0;
  for (const char byte : piece) {
    const uint32_t* child = children_.find(node, static_cast<uint8_t>(byte));
    if (child != nullptr) {
      node = *child;
      continue;
    }
    const auto fresh = static_cast<uint32_t>(token_at_.size());
    if (children_.insert(node, static_cast<uint8_t>(byte), fresh) == PairTable<uint32_t>::Insert::kCollisions) {
      return invalid_argument("token {}: more than {} entries fall into one place of a table", id, kProbesMax);
    }
    token_at_.push_back(-1);
    node = fresh;
  }
  token_at_[node] = id;
  return ok_status();
}

void UnigramModel::encode(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  for (; !word.empty(); word.remove_prefix(std::min(word.size(), kWordBytesMax))) {
    encode_part(word.substr(0, kWordBytesMax), scratch, out);
  }
}

void UnigramModel::encode_part(std::string_view word, Scratch& scratch, std::vector<TokenId>& out) const {
  std::vector<Node>& nodes = scratch.nodes;  // by end of a token
  constexpr double kUnreached = -std::numeric_limits<double>::infinity();
  nodes.assign(word.size() + 1, {kUnreached, 0, -1});
  nodes[0].score = 0;
  const auto offer = [&](size_t end, double score, size_t from, TokenId id) {
    score = rounded(score);
    if (score > nodes[end].score) nodes[end] = {score, static_cast<uint32_t>(from), id};
  };
  for (size_t at = 0, bytes = 0; at < word.size(); at += bytes) {
    bytes = character_bytes(word.substr(at));
    const double so_far = nodes[at].score;
    bool covered = false;  // by a token of this one character
    uint32_t node = 0;
    for (size_t end = at; end < word.size();) {
      const uint32_t* child = children_.find(node, static_cast<uint8_t>(word[end++]));
      if (child == nullptr) break;
      node = *child;
      const TokenId id = token_at_[node];
      if (id < 0) continue;
      offer(end, so_far + scores_[static_cast<size_t>(id)], at, id);
      covered = covered || end - at == bytes;
    }
    if (!covered) offer(at + bytes, so_far + unknown_score_, at, -1);
  }
  // Back from the end: [begin, end) and the id of each token, unknown ones joined.
  std::vector<TokenId>& ends = scratch.symbols;
  ends.clear();
  for (size_t end = word.size(); end > 0; end = nodes[end].from) ends.push_back(static_cast<TokenId>(end));
  for (auto end = ends.rbegin(); end != ends.rend(); ++end) {
    const Node& node = nodes[static_cast<size_t>(*end)];
    if (node.id >= 0) {
      out.push_back(node.id);
      continue;
    }
    const size_t begin = node.from;
    while (end + 1 != ends.rend() && nodes[static_cast<size_t>(*(end + 1))].id < 0) ++end;
    append_unknown(word.substr(begin, static_cast<size_t>(*end) - begin), out);
  }
}

void UnigramModel::append_unknown(std::string_view text, std::vector<TokenId>& out) const {
  const auto token = [&](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
  if (rules_.byte_fallback && std::all_of(text.begin(), text.end(), [&](char byte) { return token(byte) >= 0; })) {
    for (const char byte : text) out.push_back(token(byte));
  } else if (rules_.unknown) {
    out.push_back(*rules_.unknown);
  }
}

}  // namespace motley
