// Tokenizer: text to token ids and back, for one vocabulary.
//
// Immutable after creation; every method is safe from any thread at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/status.hpp"

namespace motley {

// What a tokenizer is made of: GGUF's tokenizer.ggml.* keys (docs/formats/gguf.md). Views are copied by create().
struct VocabularyData {
  std::string_view model, pre;               // e.g. "gpt2" and "smollm"
  std::span<const std::string_view> tokens;  // by id
  std::span<const int32_t> types;            // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::span<const float> scores;
  std::span<const std::string_view> merges;
  std::optional<int32_t> bos, eos, eot, eom, unknown, padding;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

class Tokenizer {
 public:
  // UNIMPLEMENTED for an unknown model or pre-tokeniser (named), INVALID_ARGUMENT for contradictory data.
  static Result<std::unique_ptr<Tokenizer>> create(const VocabularyData& data);
  virtual ~Tokenizer() = default;

  // parse_special: text that spells a control token becomes that token (templates' own text); without it only
  // user-defined tokens that are no markers are matched, and no marker can come out. add_special: BOS/EOS as the
  // vocabulary asks.
  // Invalid UTF-8 is encoded byte by byte; every byte string has an encoding. Words beyond 1 MiB are cut there.
  virtual std::vector<TokenId> encode(std::string_view text, bool add_special, bool parse_special) const = 0;
  // The bytes of one token. Control tokens give their literal text when `special`, else nothing.
  virtual std::string token_bytes(TokenId id, bool special) const = 0;
  // The bytes of a sequence, as they are: not always valid UTF-8.
  std::string decode(std::span<const TokenId> ids, bool special) const;

  virtual uint32_t size() const = 0;
  virtual std::optional<TokenId> bos() const = 0;
  virtual std::optional<TokenId> eos() const = 0;
  // The literal spelling in the vocabulary file ("Ġhello", "<|im_end|>").
  virtual std::string_view piece(TokenId id) const = 0;
  virtual std::optional<TokenId> find(std::string_view piece) const = 0;
  virtual bool is_control(TokenId id) const = 0;
  // Tokens that only trusted text may spell: control tokens, and what files declare user-defined though it steers a
  // chat (spelled <|...|>).
  virtual bool is_marker(TokenId id) const { return is_control(id); }
  // Tokens that stand literally in text (control, user-defined), not made of words by merging.
  virtual bool is_literal(TokenId id) const { return is_control(id); }
  // Every id that ends generation: eos, eot, eom and the known names (<|im_end|>, <|eot_id|>, ...).
  virtual const std::vector<TokenId>& end_tokens() const = 0;
};

}  // namespace motley
