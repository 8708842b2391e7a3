// The tensors of a random model, in the order of its layers.
#pragma once

#include <string>

#include "make_model/form.hpp"
#include "make_model/gguf_writer.hpp"
#include "make_model/make_model.hpp"

namespace motley::make_model {

inline constexpr std::string_view kMix = "mix";  // the type that gives each matrix the next type that fits

// `spec` is complete (no zero stands for a default) and checked; it and `form` are read during the call only.
void add_tensors(const ModelSpec& spec, const Form& form, uint32_t vocabulary, GgufWriter* writer);

}  // namespace motley::make_model
