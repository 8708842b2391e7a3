// The `decoder` of a tokenizer.json, as far as it works token by token: what the text of an answer is made of while it
// comes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "text/token_table.hpp"

namespace motley {

struct JsonDecoder {
  struct Replacement {
    std::string what, with;
    bool dropped_in_first = false;  // the first token of a text has nothing in its place
  };
  bool byte_level = false;                // tokens spell bytes in GPT-2's alphabet
  std::vector<Replacement> replacements;  // in every token, in this order
  bool strips_leading_space = false;      // of the whole text
};

// UNIMPLEMENTED (type, remedy) for kinds that are not built and for those that need the whole text.
Result<JsonDecoder> read_json_decoder(const nlohmann::json& node);

// Of a text's first token or of the others.
TokenTable::Speller speller_of(const JsonDecoder& decoder, bool first = false);

}  // namespace motley
