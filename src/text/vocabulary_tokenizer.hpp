// VocabularyTokenizer: what all tokenizers have in common: tokens by id, literal tokens cut out of the text, what
// stands before and after it, what ends an answer. Its kinds say how the text between literal tokens becomes ids.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "text/special_matcher.hpp"
#include "text/token_table.hpp"
#include "text/tokenizer.hpp"

namespace motley {

// How a literal token is found in text (Hugging Face's AddedToken).
struct LiteralRule {
  TokenId id = 0;
  bool takes_left = false, takes_right = false;  // white space beside it goes with it
  bool normalized = false;                       // looked for in normalised text (JsonTokenizer does)
  bool single_word = false;                      // only where no character of a word (is_word) stands beside it
};

// Literal tokens by their spelling in text.
struct LiteralSet {
  LiteralSet() = default;
  // `anyones`: those that untrusted text may spell, too; the views outlive the set.
  using Spellings = std::vector<std::pair<std::string_view, TokenId>>;
  LiteralSet(Spellings anyones, Spellings all) : of_anyone(std::move(anyones)), of_all(std::move(all)) {}
  const SpecialMatcher& of(bool trusted) const { return trusted ? of_all : of_anyone; }

  SpecialMatcher of_anyone, of_all;
};

class VocabularyTokenizer : public Tokenizer {
 public:
  std::vector<TokenId> encode(std::string_view text, bool add_special, bool parse_special) const final;
  std::vector<TokenId> encode_more(std::string_view text, Place place, bool parse_special) const final;
  // Ids outside the vocabulary, unused tokens: nothing.
  std::string token_bytes(TokenId id, bool special) const final;
  bool strips_leading_space() const final { return strips_leading_space_; }
  uint32_t size() const final { return tokens_.size(); }
  std::optional<TokenId> bos() const final { return bos_; }
  std::optional<TokenId> eos() const final { return eos_; }
  // Empty for ids outside the vocabulary.
  std::string_view piece(TokenId id) const final { return tokens_.known(id) ? tokens_[id].piece : std::string_view(); }
  std::optional<TokenId> find(std::string_view piece) const final { return tokens_.find(piece); }
  bool is_control(TokenId id) const final { return tokens_.is_control(id); }
  bool is_marker(TokenId id) const final { return tokens_.is_marker(id); }
  bool is_literal(TokenId id) const final { return tokens_.is_literal(id); }
  bool takes_left(TokenId id) const final { return rule_of(id).takes_left; }
  bool takes_right(TokenId id) const final { return rule_of(id).takes_right; }
  const std::vector<TokenId>& end_tokens() const final { return end_tokens_; }

 protected:
  VocabularyTokenizer() = default;

  // Of GGUF's keys: checks and copies the tokens, finds roles and literal tokens.
  Status take_vocabulary(const VocabularyData& data, const TokenTable::Speller& spell, bool add_bos_default);
  // `end` and the known names end an answer; those of them that are user-defined become control tokens. Literal tokens
  // are found as `rules` say, others plainly; normalised ones are left to the caller. After tokens_ is filled.
  Status take_roles(std::optional<TokenId> bos, std::optional<TokenId> eos, std::span<const TokenId> end,
                    std::span<const LiteralRule> rules);

  // What one call of encode() works with.
  struct Scratch {
    virtual ~Scratch() = default;
    bool trusted = false;  // the text may spell any literal token
  };
  virtual std::unique_ptr<Scratch> make_scratch() const = 0;
  // Appends the ids of text without literal tokens (not empty). `place`: what stands before it.
  virtual void encode_text(std::string_view text, Place place, Scratch& scratch, std::vector<TokenId>& out) const = 0;

  // Appends the ids of `text`: literal tokens where the matcher finds them, and what `between(text, place)` appends of
  // what lies between them, never empty.
  template <typename Between>
  void cut_at_literals(const SpecialMatcher& matcher, std::string_view text, Place place, std::vector<TokenId>& out,
                       Between between) const {
    size_t done = 0;  // everything before is encoded
    for (size_t at = 0; at < text.size();) {
      auto match = matcher.find(text, at);
      if (!match) break;
      at = match->end;
      if (!apply_rule(rule_of(match->id), text, done, *match)) continue;
      if (done < match->begin) between(text.substr(done, match->begin - done), place);
      out.push_back(match->id);
      at = done = match->end;
      place = Place::kAfterToken;
    }
    if (done < text.size()) between(text.substr(done), place);
  }
  const LiteralRule& rule_of(TokenId id) const;

  TokenTable tokens_;
  std::vector<TokenId> prefix_, suffix_;  // put around the text where add_special
  bool strips_leading_space_ = false;

 private:
  void encode_between_literals(std::string_view text, Place place, bool parse_special, std::vector<TokenId>& out) const;
  // The rule's effect on a match that begins at or after `from`: false if it does not count.
  bool apply_rule(const LiteralRule& rule, std::string_view text, size_t from, SpecialMatcher::Match& match) const;

  LiteralSet literals_;
  std::vector<LiteralRule> rules_;  // those that say something, by id
  std::optional<TokenId> bos_, eos_;
  std::vector<TokenId> end_tokens_;
};

}  // namespace motley
