// The one addition of all groups: its order decides the bits.
#pragma once

#include <span>

namespace motley {

// out[i] = from[0][i] + from[1][i] + ... in that order, in f32; 0 if `from` is empty. `out` overlaps none of them.
void sum(std::span<const float* const> from, std::span<float> out);

}  // namespace motley
