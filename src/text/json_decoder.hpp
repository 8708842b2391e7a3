// The `decoder` of a tokenizer.json, as far as it works token by token: what the text of an answer is made of while it
// comes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/status.hpp"
#include "text/token_table.hpp"

namespace motley {

struct JsonDecoder {
  bool byte_level = false;                                        // tokens spell bytes in GPT-2's alphabet
  std::vector<std::pair<std::string, std::string>> replacements;  // in every token, in this order
  bool strips_leading_space = false;                              // of the whole text
};

// UNIMPLEMENTED (type, remedy) for kinds that are not built and for those that need the whole text.
Result<JsonDecoder> read_json_decoder(const nlohmann::json& node);

TokenTable::Speller speller_of(const JsonDecoder& decoder);

}  // namespace motley
