// TextStream: tokens of one answer in, text to show out. Joins the incremental detokeniser and the stop strings.
//
// Never gives half a UTF-8 character: bytes wait until the character is whole; bytes that can never be one become
// U+FFFD, one for each that Python's bytes.decode("utf-8", "replace") would put. Text that may be the beginning of a
// stop string is held back. The match that ends first wins, of several that end together the longest: so what is shown
// does not depend on how the text falls into tokens. Not thread-safe: one answer, one stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "text/stop_set.hpp"
#include "text/tokenizer.hpp"

namespace motley {

class TextStream {
 public:
  struct Options {
    std::vector<std::string> stop;  // text stops before the earliest match; empty ones do not count
    bool include_stop_in_output = false;
    bool skip_special_tokens = true;
    // The tokens are a text of their own, as for Tokenizer::decode; an answer goes on behind its prompt.
    bool starts_text = false;
    // Where many streams look for the same strings: these, made once, in place of `stop`, which then does not count.
    std::shared_ptr<const StopSet> stop_set = nullptr;
    // Stop strings are looked for only in text that comes after so many tokens, from the first whole character on.
    uint32_t min_tokens = 0;
  };
  TextStream(const Tokenizer& tokenizer, const Options& options);

  // What may be shown now that this token is known. After stopped() it is always empty.
  std::string push(TokenId id);
  // What was held back, at the end of the answer.
  std::string finish();
  bool stopped() const { return stopped_; }
  // The stop string that matched, if stopped().
  const std::string& stop_match() const { return stop_match_; }

 private:
  void take_characters(bool at_end);  // moves what is whole or broken from pending_bytes_ to held_
  void take_text(std::string_view text);
  std::string release(bool at_end);

  const Tokenizer& tokenizer_;
  const bool include_stop_in_output_, skip_special_tokens_;
  const std::shared_ptr<const StopSet> stops_;  // null: none
  uint32_t tokens_before_stops_;                // still to come until stop strings count
  bool stops_count_;
  StopSet::Matches matches_;
  std::string pending_bytes_;  // an unfinished UTF-8 character
  std::string held_;           // complete text not yet shown
  std::string stop_match_;
  bool at_start_;  // of a text of its own: nothing was shown yet
  bool stopped_ = false;
};

}  // namespace motley
