// The built-in byte-level vocabulary of random models.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "make_model/gguf_writer.hpp"

namespace motley::make_model {

// Special tokens and the 256 bytes: the fewest tokens a vocabulary can have.
inline constexpr uint32_t kVocabularyMin = 3 + 256;

// Adds the tokenizer.* keys of a vocabulary of `size` >= kVocabularyMin tokens: <|endoftext|> 0, <|im_start|> 1,
// <|im_end|> 2, the bytes from 3 on, merged tokens while there is room, then tokens that no text gives.
void add_built_in_vocabulary(GgufWriter* writer, uint32_t size);

}  // namespace motley::make_model
