// The conversation as clients send it, turned into what published chat templates read.
// Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "base/status.hpp"

namespace motley {

// JSON values in all arguments of all tool calls of one conversation.
inline constexpr size_t kArgumentValuesMax = size_t{1} << 18;

// OpenAI's `messages` with the liberties that templates do not know taken back:
//   - members that are null, and an empty tool_calls, are left out: templates ask whether they are there. `content`
//     stays as it was sent.
//   - tool_calls[i].function.arguments in OpenAI's form, a string of JSON, becomes the object that it spells ("": {}).
//   - what an assistant thought is found as `reasoning_content` and as `thinking`, whichever of these or `reasoning` it
//     came as.
//   - unless `takes_parts`, content in text parts becomes one string, a line a part.
// nullopt: the messages are fit as they are. INVALID_ARGUMENT, naming the message: another shape.
Result<std::optional<nlohmann::ordered_json>> adapt_messages(const nlohmann::ordered_json& messages, bool takes_parts);

}  // namespace motley
