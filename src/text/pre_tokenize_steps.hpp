// The `pre_tokenizer` of a tokenizer.json: how text is cut into the words that the model never crosses. Immutable; safe
// from any thread, each with a Scratch of its own.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "text/regex.hpp"
#include "text/tokenizer.hpp"

namespace motley {

struct TextPiece {
  std::string_view text;
  Place place = Place::kStart;  // what stands before it; for pieces behind another one kAfterToken
};

class PreTokenizeStep {
 public:
  struct Scratch {
    std::vector<TextPiece> pieces, next;
    std::deque<std::string> texts;  // what pieces view that is not the given text
    Regex::Scratch regex;
  };
  virtual ~PreTokenizeStep() = default;
  // Cuts (and changes) one piece: appends to scratch.next, no empty ones.
  virtual void apply(const TextPiece& piece, Scratch& scratch) const = 0;
};

class PreTokenizeSteps {
 public:
  // `node` may be null: text stays in one piece. UNIMPLEMENTED (type, remedy) for kinds that are not built.
  static Result<PreTokenizeSteps> create(const nlohmann::json& node);

  // Each expression cuts the words of the one before; what it does not match is a word too.
  static Result<PreTokenizeSteps> create(std::span<const std::string_view> expressions);

  // Words are bytes in GPT-2's alphabet: the last step is ByteLevel (whose spelling is left to the model).
  bool byte_level() const { return byte_level_; }
  // scratch.pieces: the words of `text`.
  void apply(std::string_view text, Place place, PreTokenizeStep::Scratch& scratch) const;

 private:
  Status add(const nlohmann::json& node, int depth);

  std::vector<std::unique_ptr<PreTokenizeStep>> steps_;
  bool byte_level_ = false;
};

}  // namespace motley
