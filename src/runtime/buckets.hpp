// Row counts that programs are compiled for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.hpp"
#include "device/handles.hpp"
#include "model/model.hpp"

namespace motley {

inline constexpr uint64_t kProgramsPart = 8;        // of a device's memory, a part of which programs may take
inline constexpr double kCompileSecondsMax = 1800;  // of a device, by its own estimate, if nobody says otherwise

struct BucketOptions {
  bool any_rows = true;  // the device runs any count up to that it is compiled for (MOTLEY_CAP_DYNAMIC_ROWS)
  uint32_t rows_max = 0;
  double compile_seconds_max = kCompileSecondsMax;
  uint64_t program_bytes_max = UINT64_MAX;  // resident, of all programs together
};

struct Buckets {
  std::vector<uint32_t> rows;  // ascending
  uint64_t program_bytes = 0;  // of all layers' programs for them
};

// At most `most` (at least one) of 4, 8, 16, 32, ... and rows_max, ascending: rows_max, then 8, which
// decode, then of the others those that leave no wide step, the smaller ones first, and 4 if there is room for all.
std::vector<uint32_t> row_buckets(uint32_t rows_max, size_t most = SIZE_MAX);

// {rows_max} for a device of any rows. Else as many of row_buckets() as it compiles within the time and keeps within
// the memory, all layers of the model for each. RESOURCE_EXHAUSTED where that is none; UNIMPLEMENTED where it cannot
// run them.
Result<Buckets> buckets_of(const Model& model, const Device& device, const BucketOptions& options);

}  // namespace motley
