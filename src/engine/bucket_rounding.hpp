// How many rows a step should have where a lane runs row counts of a few sizes only (LaneDescription::buckets): what
// lies between two of them is padding, which costs as much as rows that count.
#pragma once

#include <cstdint>
#include <span>

namespace motley {

// The rows that run where a step has `rows`: the least bucket that holds them; `rows` itself without buckets or beyond
// the last.
uint32_t padded_rows(std::span<const uint32_t> buckets, uint32_t rows);

struct RowsAsked {
  uint32_t begun = 0;   // rows that are in the step already
  uint32_t limit = 0;   // that the step may have, from what it may take; above `begun`
  uint32_t wanted = 0;  // that it would have without a limit; above `begun`
  bool strict = false;  // the limit is the user's, not ours
};

// Rows that the step should have in all: above `begun`, at most `wanted`. It is the bucket below the limit where
// leaving the rest of the prompts to later steps wastes less; where padding is to be run anyway, prompts fill it,
// unless the limit is strict. Prompts move on by a fair part of what the limit leaves, whatever the buckets.
uint32_t rounded_rows(std::span<const uint32_t> buckets, const RowsAsked& asked);

}  // namespace motley
