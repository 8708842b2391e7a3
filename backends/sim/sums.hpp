// Products whose sums are held in F16: each a chain of products of 64 columns, added in F16 one after another.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "motley/backend.h"

namespace motley::sim {

constexpr int64_t kSummedColumns = 64;  // between two roundings of a sum: a multiple of every block of 32 weights

// The columns of a weight that each part of its products reads: of those that the ranges keep, kSummedColumns after
// kSummedColumns.
std::vector<std::vector<motley_range>> column_parts(const motley_weight_desc& desc);

// A segment in which each MATMUL is such a chain; a bias comes first.
class SummedSegment {
 public:
  // A weight of the view that the segment has not: a part of one that it has.
  struct Piece {
    int32_t weight = 0;
    size_t part = 0;
  };
  explicit SummedSegment(const motley_segment& from);
  SummedSegment(const SummedSegment&) = delete;
  const motley_segment& view() const { return view_; }
  const std::vector<Piece>& pieces() const { return pieces_; }  // behind the segment's own weights, in order

 private:
  int32_t like(int32_t value, int64_t width, int32_t dtype);
  motley_op& add(int32_t kind);
  void sum(const motley_op& product);
  std::vector<motley_value> values_;
  std::vector<motley_op> ops_;
  std::vector<Piece> pieces_;
  motley_segment view_;
};

}  // namespace motley::sim
