// Row counts that programs are compiled for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "device/handles.hpp"
#include "engine/row_counts.hpp"
#include "model/model.hpp"
#include "runtime/segment.hpp"

namespace motley {

inline constexpr uint64_t kProgramsPart = 8;        // of a device's memory, a part of which programs may take
inline constexpr double kCompileSecondsMax = 1800;  // of a device, by its own estimate, if nobody says otherwise

struct BucketOptions {
  bool any_rows = true;  // the device runs any count up to that it is compiled for (MOTLEY_CAP_DYNAMIC_ROWS)
  uint32_t rows_max = 0;
  double compile_seconds_max = kCompileSecondsMax;
  uint64_t program_bytes_max = UINT64_MAX;  // resident, of all programs together
  std::vector<uint32_t> without = {};       // counts that do not compile
  ExpectedLoad load = {};                   // by which counts are chosen
  std::vector<uint32_t> of = {};            // ascending, to choose from; none = row_counts()
};

struct Buckets {
  std::vector<uint32_t> rows;  // ascending
  uint64_t program_bytes = 0;  // of all layers' programs for them
};

// {rows_max} for a device of any rows. Else as many as it compiles within the time and keeps within the memory, all
// layers of the model for each; where that is not all, those that the load misses most, and the largest.
// RESOURCE_EXHAUSTED where that is none; UNIMPLEMENTED where it cannot run them or compiles none.
Result<Buckets> buckets_of(const Model& model, const Device& device, const BucketOptions& options);

// The same where these are compiled.
Result<Buckets> buckets_of(std::span<const std::unique_ptr<Segment>> segments, const Device& device,
                           const BucketOptions& options);

// Of two devices of one step, each compiled for some counts, both ascending and not empty: the counts that neither
// pads, and the most that both run.
std::vector<uint32_t> common_row_counts(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b);

}  // namespace motley
