// Limits and small helpers shared by kit's own sources; not for backends.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kit/kit.hpp"

namespace motley::kit {

constexpr int64_t kExtentMax = int64_t{1} << 31;     // of one dimension
constexpr uint64_t kMappingMax = uint64_t{1} << 46;  // bytes of one mapping
constexpr int64_t kBlockElementsMax = 256;           // of a quantised block
constexpr uint32_t kKvBlockSizeMax = 4096;           // positions
constexpr uint32_t kLayersMax = 4096;
constexpr int32_t kHeadsMax = 4096;
constexpr int64_t kChoicesMax = 1024;      // experts of a row; with kRowsMax, (row, choice) pairs fit an int32
constexpr uint32_t kValuesMax = 1u << 20;  // of a segment
constexpr uint32_t kOpsMax = 1u << 20;
constexpr uint32_t kWeightsMax = 1u << 20;
constexpr uint32_t kBucketsMax = 256;
constexpr uint32_t kRowsMax = 1u << 20;   // of a bucket
constexpr uint32_t kSlotsMax = 1u << 24;  // token slots of a batch
constexpr uint32_t kThreadsMax = 1024;
constexpr uint32_t kQueuesMax = 16;
constexpr uint32_t kQueueDepth = 64;        // programs
constexpr uint32_t kQueueItemsMax = 4096;   // programs, copies and fences together
constexpr uint32_t kRegionsMax = 1u << 20;  // of one copy
constexpr uint64_t kPageBytes = 4096;

inline uint64_t page_up(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

// De-quantises the columns of `ranges` (on sub-block borders) of one file row.
void read_columns(const Format& format, const std::byte* row, std::span<const motley_range> ranges, float* out);

}  // namespace motley::kit
