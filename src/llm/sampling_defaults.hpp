// The sampling that a model's makers advise. Pure functions.
#pragma once

#include <string_view>

#include "base/status.hpp"
#include "motley/llm.hpp"

namespace motley {

// Of the text of generation_config.json (empty: there is none) the parameters that LLM::default_sampling_params()
// names; the others as they stand in SamplingParams. As in vLLM, `do_sample` is not looked at. INVALID_ARGUMENT, naming
// the key, for a value of another type; whether it is in range, the parameters' own check must say.
Result<SamplingParams> read_sampling_defaults(std::string_view generation_config_json);

}  // namespace motley
