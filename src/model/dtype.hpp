// The number formats a model's tensors may have: block geometry and names. Layouts: docs/formats/gguf.md,
// safetensors.md.
#pragma once

#include <cstdint>
#include <string_view>

namespace motley {

struct DtypeInfo {
  int32_t id = 0;  // GGUF's tensor type id = motley_dtype
  std::string_view name;
  uint32_t block_elements = 1, block_bytes = 1;
  bool is_weight = false;  // built: a model's matrices may have this format
  bool in_gguf = true;     // else only weights made of safetensors have it
};

// Null for an id that no known version of the format defines.
const DtypeInfo* find_dtype(int32_t id);
// Null for an unknown name. Names are compared as they are spelt in the table ("Q4_K").
const DtypeInfo* find_dtype(std::string_view name);
// "F32, F16, ...": those of GGUF with is_weight.
std::string_view weight_dtype_names();

}  // namespace motley
