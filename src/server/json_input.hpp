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

// Frees a tree at the end of a scope without asking for memory. nlohmann's own destructor asks for as much as the
// widest array takes, and where that is not there it ends the program.
class JsonKeeper {
 public:
  explicit JsonKeeper(nlohmann::ordered_json& tree) : tree_(tree) {}
  JsonKeeper(const JsonKeeper&) = delete;
  JsonKeeper& operator=(const JsonKeeper&) = delete;
  ~JsonKeeper();

 private:
  nlohmann::ordered_json& tree_;
};

// Checks the limits and the encoding, then parses; the outermost value must be an object. Of an error, and of a
// bad_alloc, `out` holds what had been parsed: keep it by a JsonKeeper.
MaybeError parse_json_object(std::string_view body, nlohmann::ordered_json& out);

}  // namespace motley
