// Weights to other formats: halves, and fewer bits symmetric about zero. Pure; runs on all cores that the caller may
// use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.hpp"

namespace motley {

// Sums over elements: what a format makes of them, against what they were.
struct FormatError {
  double squares = 0, error_squares = 0;
  // Root mean square of the error / of the elements; 0 of none.
  double relative() const;
  FormatError& operator+=(const FormatError& other);
};

struct Requantised {
  std::vector<std::byte> bytes;
  FormatError error;
};

// Whether requantise() knows the pair, and `cols` are whole blocks of both.
bool can_requantise(int32_t from, int32_t to, int64_t cols);

// `data`: rows of `cols` elements of `from` (any weight format) back to back. To Q8_0: of 32 elements the greatest
// absolute one / 127 is the scale, elements round to nearest. To Q4_0: the one of the greatest magnitude / -8, elements
// are -8 to 7. Scales are F16 (docs/formats/gguf.md); where one is below its range the block becomes zeros, and counts
// as such. To F16 and BF16: to nearest. INVALID_ARGUMENT where the sizes or formats do not fit, or an element is not
// finite or beyond the format.
Result<Requantised> requantise(std::span<const std::byte> data, int32_t from, int32_t to, int64_t cols);

}  // namespace motley
