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
  std::optional<bool> remove_extra_whitespaces;
  std::string_view precompiled_charsmap;  // bytes (charsmap.hpp); empty: none
};

// What stands before a text: nothing, a literal token, or text that was encoded already.
enum class Place : uint8_t { kStart, kAfterToken, kInText };

class Tokenizer {
 public:
  // UNIMPLEMENTED for an unknown model or pre-tokeniser (named), INVALID_ARGUMENT for contradictory data.
  static Result<std::unique_ptr<Tokenizer>> create(const VocabularyData& data);
  // What create() says of the kind of vocabulary, its options and its sizes, in the time of reading them: how its
  // tokens and merges fit together is not looked at.
  static Status check(const VocabularyData& data);
  // Of a Hugging Face directory: the whole tokenizer.json, and tokenizer_config.json (may be empty), which says more
  // about bos_token and eos_token. `end_tokens` end an answer beside eos and the known names (generation_config.json).
  // UNIMPLEMENTED for parts that are not built (named, with a remedy), INVALID_ARGUMENT for contradictory files,
  // RESOURCE_EXHAUSTED beyond the limits.
  static Result<std::unique_ptr<Tokenizer>> create_from_json(std::string_view tokenizer_json,
                                                             std::string_view tokenizer_config_json,
                                                             std::span<const TokenId> end_tokens);
  virtual ~Tokenizer() = default;

  // parse_special: text that spells a control token becomes that token (templates' own text); without it only
  // user-defined tokens that are no markers are matched, and no marker can come out. add_special: BOS/EOS as the
  // vocabulary asks.
  // Invalid UTF-8 is encoded byte by byte; every byte string has an encoding. Words beyond 1 MiB are cut there.
  virtual std::vector<TokenId> encode(std::string_view text, bool add_special, bool parse_special) const = 0;
  // As encode() without `add_special`, of text that goes on behind other tokens: a vocabulary that puts a space before
  // texts does so, or not, as it would there.
  virtual std::vector<TokenId> encode_more(std::string_view text, Place /*place*/, bool parse_special) const {
    return encode(text, false, parse_special);
  }
  // The bytes of one token. Control tokens give their literal text when `special`, else nothing.
  virtual std::string token_bytes(TokenId id, bool special) const = 0;
  // The bytes of a sequence that is a text of its own, as they are: not always valid UTF-8.
  std::string decode(std::span<const TokenId> ids, bool special) const;
  // The same of the first token of a text that is shown: less what encoding put before the text.
  virtual std::string first_token_bytes(TokenId id, bool special) const;
  // Encoding puts a space before a text, and decode() takes one off its beginning.
  virtual bool strips_leading_space() const { return false; }

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
  // White space in front of a literal token, or behind it, goes with it.
  virtual bool takes_left(TokenId /*id*/) const { return false; }
  virtual bool takes_right(TokenId /*id*/) const { return false; }
  // Every id that ends generation: eos, eot, eom and the known names (<|im_end|>, <|eot_id|>, ...).
  virtual const std::vector<TokenId>& end_tokens() const = 0;
};

}  // namespace motley
