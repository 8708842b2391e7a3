// What devices of fixed shapes enforce: their ops and formats, results in F16, whole buckets, and blobs of one driver.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "kit/check.hpp"
#include "sim/spec.hpp"

namespace motley::sim {

// Of the cpu plugin's ops, those that a device has.
uint64_t ops_of(const Rules& rules, uint64_t ops);

// Throws UNIMPLEMENTED at the first op that the device has not; *bad_op is its index.
void check_ops(const Rules& rules, const kit::Plan& plan, uint32_t* bad_op);

// UNIMPLEMENTED for a format that is not the device's.
void check_format(const Spec& spec, const motley_weight_desc& desc);

// Whole rows of a weight in another format (F32, F16, BF16), ranges left as they are.
std::vector<std::byte> converted(const motley_weight_desc& desc);

double compile_seconds(const Rules& rules, const kit::Plan& plan);

// A segment in which each op's results are rounded to F16 and overflow to infinity, but for those of ADD.
class RoundedSegment {
 public:
  explicit RoundedSegment(const motley_segment& from);
  RoundedSegment(const RoundedSegment&) = delete;
  const motley_segment& view() const { return view_; }

 private:
  int32_t like(int32_t value, int32_t dtype);
  std::vector<motley_value> values_;
  std::vector<motley_op> ops_;
  motley_segment view_;
};

// A batch that fills its bucket. The rows beyond are at position 0, of token 0, and stored nowhere.
class PaddedBatch {
 public:
  // head_rows: the program has values of so many rows, which are filled up too.
  PaddedBatch(const motley_batch& from, uint32_t bucket, bool head_rows);
  PaddedBatch(const PaddedBatch&) = delete;
  const motley_batch& view() const { return view_; }

 private:
  std::vector<int32_t> token_ids_, token_slots_, positions_, kv_slots_, head_rows_;
  std::vector<uint8_t> generated_;
  motley_batch view_;
};

uint64_t hash_of_text(std::string_view text);

// What export_programs gives: no code, but what a compiler's output is tied to.
std::vector<std::byte> make_blob(const Spec& spec, const motley_segment& segment, std::span<const uint32_t> buckets);
// Throws FAILED_PRECONDITION with the reason where it was made by another driver, for another device, or of another
// segment or other buckets, or is broken.
void check_blob(std::span<const std::byte> blob, const Spec& spec, const motley_segment& segment,
                std::span<const uint32_t> buckets);

}  // namespace motley::sim
