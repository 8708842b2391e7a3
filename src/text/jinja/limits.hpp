// What one template may cost. A step is a node evaluated, an element made, or 64 bytes of text made.
#pragma once

#include <cstddef>
#include <cstdint>

namespace motley::jinja {

inline constexpr size_t kSourceBytesMax = size_t{1} << 20;
inline constexpr int64_t kRangeMax = 100'000;      // elements of range(), as Jinja's sandbox
inline constexpr uint32_t kFormatWidthMax = 1000;  // padding in format strings, precision, tojson's indent

struct Limits {
  uint64_t steps = 8'000'000;
  size_t text_bytes = size_t{64} << 20;  // of any one text, the output included
  uint32_t depth = 600;                  // nested evaluations, calls of macros included
};

}  // namespace motley::jinja
