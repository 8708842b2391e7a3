// SPDX-License-Identifier: Apache-2.0
#include "cpu/best.hpp"

#include <algorithm>
#include <cmath>

namespace motley::cpu {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
// What is computed of norms and bounds here is rounded itself, in float a few times.
constexpr double kSlack = 1 + 1e-5;
constexpr double kUnit = 0x1p-24;
// Up to this size no sum overflows on its way.
constexpr double kMostTerms = 1e30;

float upwards(double x) { return static_cast<float>(x * kSlack); }

// n: for two parts of each block two additions of two roundings; and the factors'.
double rounding_of(int64_t blocks) {
  const double n = (8.0 * static_cast<double>(blocks) + 32) * kUnit;
  return 2 * n / (1 - n);
}

double norm_of(const ActBlock* x, int64_t blocks) {
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t squares = 0;
    for (const int8_t q : x[b].q) squares += q * q;
    sum += static_cast<double>(x[b].d) * x[b].d * squares;
  }
  return std::sqrt(sum);
}

float larger(float x, float than) { return x > than ? x : than; }

}  // namespace

BestBounds::BestBounds(const PackedWeight& weight, uint32_t threads) {
  const PanelMatrix m = weight.matrix();
  const auto groups = static_cast<size_t>((m.panels() + kBestPanels - 1) / kBestPanels);
  norms.assign(groups, 0), terms.assign(groups, 0);
  share_out(m.panels(), kBestPanels, threads, [&](kit::Range panels) {
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      const LaneSquares squares = weight.squares(p);
      const auto note = [p](const double(&of)[kPanelRows], std::vector<float>* most) {
        float& to = (*most)[static_cast<size_t>(p / kBestPanels)];
        for (const double square : of) {
          const float norm = upwards(std::sqrt(square));
          to = std::isfinite(norm) ? std::max(to, norm) : std::numeric_limits<float>::infinity();
        }
      };
      note(squares.values, &norms);
      note(squares.terms, &terms);
    }
  });
  // The squares of values are differences; of terms they are sums.
  for (size_t i = 0; i < groups; ++i) norms[i] = std::min(terms[i], norms[i] + 1e-6f * terms[i]);
  most_terms = *std::max_element(terms.begin(), terms.end());
}

bool only_best_counts(const motley_sample_row& row) {
  constexpr float kGreedyBelow = 1e-5f;  // docs/contracts/sampling.md
  return row.temperature < kGreedyBelow && row.top_logprobs < 0 && row.biases_begin == row.biases_end &&
         row.presence_penalty == 0 && row.frequency_penalty == 0 && row.repetition_penalty == 1;
}

void note_largest(const MatmulArgs& g, float* largest) {
  for (int64_t row = 0; row < g.rows; ++row) {
    const float* y = g.y + (g.y_rows ? g.y_rows[row] : row) * g.y_stride;
    for (int64_t panel = g.panel_begin; panel < g.panel_end; panel += kBestPanels) {
      const float* x = y + panel * kPanelRows;
      const int64_t count = std::min(kBestColumns, g.w.rows - panel * kPanelRows);
      float most[4] = {kForbidden, kForbidden, kForbidden, kForbidden};
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        for (int64_t j = 0; j < 4; ++j) most[j] = larger(x[i + j], most[j]);
      }
      for (; i < count; ++i) most[0] = larger(x[i], most[0]);
      largest[panel / kBestPanels * g.rows + row] = larger(larger(most[0], most[1]), larger(most[2], most[3]));
    }
  }
}

BestSearch::BestSearch(const BestBounds& bounds, const MatmulArgs& g, const float* largest, float* room)
    : bounds_(bounds),
      largest_(largest),
      rows_(g.rows),
      rest_(room),
      rounding_(room + rows_),
      least_(room + 2 * rows_) {
  const int64_t blocks = g.w.blocks;
  for (int64_t row = 0; row < rows_; ++row) {
    const double rest = norm_of(g.rest + row * g.act_stride, blocks);
    const double all = rest + norm_of(g.act + row * g.act_stride, blocks);
    const bool bounded = all * bounds.most_terms <= kMostTerms && bounds.most_terms <= kMostTerms;
    rest_[row] = bounded ? upwards(rest) : std::numeric_limits<float>::infinity();
    rounding_[row] = upwards(rounding_of(blocks) * all);
    least_[row] = kForbidden;
  }
  for (int64_t group = 0; group < bounds.groups(); ++group) {
    const float* here = largest + group * rows_;
    for (int64_t row = 0; row < rows_; ++row) least_[row] = larger(here[row] - error(group, row), least_[row]);
  }
}

}  // namespace motley::cpu
