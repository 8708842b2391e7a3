// The fields of OpenAI's and vLLM's APIs that are known here and not built. Thread-safe: pure.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "server/api_error.hpp"

namespace motley {

enum class CallKind;

// A 400 naming the first field of `object` that asks for something not built.
MaybeError refuse_unbuilt_fields(CallKind kind, const nlohmann::ordered_json& object);

}  // namespace motley
