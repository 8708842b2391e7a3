// Bytes from a client to checked JSON. Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "server/api_error.hpp"

namespace motley {

// What one body may hold, beside its depth (limits::kJsonDepthMax). Values and members bound the memory and the time
// that parsing takes: an ordered object finds a key by looking at all of them.
inline constexpr size_t kJsonValuesMax = 4u << 20;
inline constexpr size_t kJsonObjectMembersMax = 2048;  // of one object
inline constexpr size_t kJsonMembersMax = 128u << 10;  // of all objects

// The offset of the first byte that is not UTF-8 (RFC 3629), or text.size().
size_t utf8_valid_prefix(std::string_view text);
// What is not UTF-8 becomes U+FFFD, as Python's decoder replaces it.
std::string replace_invalid_utf8(std::string_view text);

// Checks the limits and the encoding, then parses; the outermost value must be an object.
MaybeError parse_json_object(std::string_view body, nlohmann::ordered_json& out);

}  // namespace motley
