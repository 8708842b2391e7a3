// ByteTokenizer: a vocabulary of the 256 bytes and three control tokens, for tests. Immutable.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.hpp"

namespace motley::testing {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr TokenId kEnd = 256, kImStart = 257, kImEnd = 258;

  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) pieces_.emplace_back(1, static_cast<char>(i));
    for (const std::string_view name : kNames) pieces_.emplace_back(name);
  }

  std::vector<TokenId> encode(std::string_view text, bool /*add_special*/, bool parse_special) const override {
    std::vector<TokenId> ids;
    while (!text.empty()) {
      TokenId id = static_cast<unsigned char>(text.front());
      for (size_t i = 0; parse_special && i < kNames.size(); ++i) {
        if (text.starts_with(kNames[i])) id = kEnd + static_cast<TokenId>(i);
      }
      text.remove_prefix(pieces_[id].size());
      ids.push_back(id);
    }
    return ids;
  }
  std::string token_bytes(TokenId id, bool special) const override {
    return is_control(id) && !special ? "" : pieces_.at(id);
  }
  uint32_t size() const override { return static_cast<uint32_t>(pieces_.size()); }
  std::optional<TokenId> bos() const override { return std::nullopt; }
  std::optional<TokenId> eos() const override { return kEnd; }
  std::string_view piece(TokenId id) const override { return pieces_.at(id); }
  std::optional<TokenId> find(std::string_view piece) const override {
    for (size_t id = 0; id < pieces_.size(); ++id) {
      if (pieces_[id] == piece) return static_cast<TokenId>(id);
    }
    return std::nullopt;
  }
  bool is_control(TokenId id) const override { return id >= kEnd; }
  const std::vector<TokenId>& end_tokens() const override { return end_tokens_; }

 private:
  static constexpr std::array<std::string_view, 3> kNames = {"<|end|>", "<|im_start|>", "<|im_end|>"};
  std::vector<std::string> pieces_;
  std::vector<TokenId> end_tokens_ = {kEnd, kImEnd};
};

}  // namespace motley::testing
