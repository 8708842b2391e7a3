// Every limit that more than one room must know. A limit that one room alone knows stands in that room.
#pragma once

#include <cstddef>
#include <cstdint>

namespace motley::limits {

inline constexpr size_t kRequestBodyBytesMax = 32u << 20;    // HTTP 413 above
inline constexpr size_t kRequestHeaderBytesMax = 16u << 10;  // HTTP 431 above
inline constexpr size_t kQueuedRequestsMax = 16384;          // waiting for the engine; above: RESOURCE_EXHAUSTED
inline constexpr uint32_t kChoicesMax = 128;                 // a request's n
inline constexpr uint32_t kTopLogprobsMax = 20;              // = MOTLEY_TOP_MAX
inline constexpr size_t kStopStringsMax = 64;
inline constexpr size_t kStopStringBytesMax = 1024;
inline constexpr size_t kStopTokensMax = 1024;
inline constexpr size_t kLogitBiasMax = 1024;
inline constexpr size_t kJsonDepthMax = 64;

}  // namespace motley::limits
