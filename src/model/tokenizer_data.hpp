// Reads the tokenizer.* keys of a GGUF file.
#pragma once

#include "base/status.hpp"
#include "model/gguf.hpp"
#include "model/model.hpp"

namespace motley {

// Views point into the file's bytes. Without a tokenizer in the file everything is empty. INVALID_ARGUMENT for wrong
// types, arrays that differ in length from the tokens, token types that do not exist and special ids out of range.
Result<TokenizerData> read_tokenizer_data(const GgufFile& file);

}  // namespace motley
