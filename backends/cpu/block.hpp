// Blocks of packed panels, one row at a time: from the file's layout into a lane, and back to floats (layout.hpp).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "cpu/layout.hpp"

namespace motley::cpu {

// Writes lane `lane` of the blocks of one header group. row: the row in its file format; columns: where in it each
// block of 32 begins (at least one), all in one block of the file if the format has headers. header: of the group, or
// unused; blocks: side by side, block_bytes(kind) each.
using PackGroup = void (*)(const uint8_t* row, std::span<const int64_t> columns, int lane, uint8_t* header,
                           uint8_t* blocks);
PackGroup pack_group(PanelKind kind);  // of a quantised format

// Sums over the columns of each lane of a block: of the squares of its values, and of the squares of what kernels add
// up in their stead, |scale| * (largest element) + |minimum|. Adds to what is there.
struct LaneSquares {
  double values[kPanelRows] = {}, terms[kPanelRows] = {};
};
void add_squares(PanelKind kind, const uint8_t* block, const uint8_t* header, LaneSquares* to);

// The 32 values of a lane of one block: exactly the file's.
void read_block(PanelKind kind, const uint8_t* block, const uint8_t* header, int lane, float* out);

}  // namespace motley::cpu
