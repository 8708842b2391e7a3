// Sampling parameters: from callers to the engine, and those that a model's makers advise. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/status.hpp"
#include "engine/request.hpp"
#include "model/model.hpp"
#include "motley/llm.hpp"

namespace motley {

// Everything but what depends on the prompt: the seed, and the room that max_tokens has.
TokenSampling token_sampling(const SamplingParams& params);

// Of the text of generation_config.json (empty: there is none) the parameters that LLM::default_sampling_params()
// names; the others as in `plain`. As in vLLM, `do_sample` is not looked at. INVALID_ARGUMENT, naming the key, for a
// value of another type; whether it is in range, the parameters' own check must say.
Result<SamplingParams> read_sampling_defaults(std::string_view generation_config_json,
                                              const SamplingParams& plain = {});

// What the model's own generation_config.json advises, checked; the others as in `plain`. INVALID_ARGUMENT names the
// file and the key.
Result<SamplingParams> advised_sampling(const Model& model, const SamplingParams& plain = {});

// Wherein the advised differ from the plain: "temperature 0.6, top_k 20"; or empty.
std::string describe_advice(const SamplingParams& advised, const SamplingParams& plain);

}  // namespace motley
