// The head's product where only the best of a row's results counts, as a greedy row's does. The input is int8 blocks
// and their rests; all panels are multiplied by the blocks alone, and only those by the rests as well that can hold the
// best result. It comes out with the bits it always has, and no other result is larger, or as large with a lower id.
//
// Why: let f be the result as the kernels compute it with rests and c the one without. With exact sums, f - c is the
// product of rest and weights, at most |rest| |w| by Cauchy and Schwarz. Either sum is off by its roundings: a part of
// a block passes through no more than n of them (its own multiplications, one fused or two separate roundings for each
// addition behind it), so by at most n u / (1 - n u) times the sum of the sizes of all parts, u = 2^-24; and the sizes
// sum up to |x| |terms| at most, with terms as LaneSquares says and x the blocks or their rests. Together
//   |f - c| <= E = |rest| |w| + 2 n u / (1 - n u) (|act| + |rest|) |terms|  (+ the smallest normal number for
//   underflow).
// So L = the largest c - E is not above the best f, and a result with c + E < L is below it, with c and with f.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {

inline constexpr int64_t kBestPanels = 2;  // are judged together: a group
inline constexpr int64_t kBestColumns = kBestPanels * kPanelRows;

// Of a matrix, by groups of panels: at least the largest |w| and |terms| of their rows. What is no number is infinite.
struct BestBounds {
  BestBounds(const PackedWeight& weight, uint32_t threads);
  int64_t groups() const { return static_cast<int64_t>(norms.size()); }
  std::vector<float> norms, terms;
  float most_terms = 0;
};

// Is nothing asked of this row's logits but which is the best?
bool only_best_counts(const motley_sample_row& row);

// Of the results in g.y of each row, the largest of each of g's groups of panels: largest[group * g.rows + row].
void note_largest(const MatmulArgs& g, float* largest);

// Which groups of panels may hold the best result of which rows.
class BestSearch {
 public:
  static constexpr int64_t kRoomFloats = 3;  // of each row
  // g: all rows, with their rests; largest: as note_largest() left it, of all groups.
  BestSearch(const BestBounds& bounds, const MatmulArgs& g, const float* largest, float* room);
  // f(begin, end) for each run of rows whose best result may lie in `group`.
  template <class F>
  void each_run(int64_t group, F&& f) const {
    for (int64_t row = 0; row < rows_; ++row) {
      if (!may_hold(group, row)) continue;
      const int64_t begin = row;
      while (row + 1 < rows_ && may_hold(group, row + 1)) ++row;
      f(begin, row + 1);
    }
  }

 private:
  float error(int64_t group, int64_t row) const {
    return rest_[row] * bounds_.norms[static_cast<size_t>(group)] +
           rounding_[row] * bounds_.terms[static_cast<size_t>(group)] + std::numeric_limits<float>::min();
  }
  // Also if anything is no number.
  bool may_hold(int64_t group, int64_t row) const {
    return rest_[row] != 0 && !(largest_[group * rows_ + row] + error(group, row) < least_[row]);
  }

  const BestBounds& bounds_;
  const float* largest_;
  const int64_t rows_;
  float *rest_, *rounding_, *least_;  // by rows: factors of the error, and what the best result is not below
};

}  // namespace motley::cpu
