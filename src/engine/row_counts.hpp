// Which row counts a lane's device is compiled for where it runs no others (LaneDescription::buckets).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace motley {

// What is to be served, as far as it is known.
struct ExpectedLoad {
  uint32_t concurrency = 16, prompt_len = 512, output_len = 128;
  bool operator==(const ExpectedLoad&) const = default;
};

// All that may be worth compiling, ascending: 4, 8, 16, ..., `rows_max`, and what the load decodes.
std::vector<uint32_t> row_counts(uint32_t rows_max, const ExpectedLoad& load = {});

// At most `most` (at least one) of `counts`, which ascend: one after another goes the one that is missed least, in rows
// that run for the load and in steps that its prompts take; of equals the largest. The last stays.
std::vector<uint32_t> fewer_row_counts(std::vector<uint32_t> counts, size_t most, const ExpectedLoad& load = {});

}  // namespace motley
