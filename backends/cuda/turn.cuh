// How ROPE turns a head's numbers, one at a time or eight.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kit/reference.hpp"

namespace motley::cuda {

// Element i of a head that is turned.
struct Turn {
  const float2* turns;  // of the first row; null: none
  int32_t pairs;
  bool neighbours;  // a pair's elements lie side by side
  __device__ float operator()(const float* head, int64_t row, int64_t i) const {
    if (!turns || i >= 2 * pairs) return head[i];
    const int64_t j = neighbours ? i / 2 : i % pairs;
    const bool second = neighbours ? i % 2 : i >= pairs;
    const float2 t = turns[row * pairs + j];
    const float p = head[neighbours ? 2 * j : j], q = head[neighbours ? 2 * j + 1 : j + pairs];
    return second ? fmaf(p, t.y, q * t.x) : fmaf(p, t.x, -(q * t.y));
  }
};

// turns: as rope_turns makes them.
inline Turn turn_of(const kit::rope_attr& a, const kit::Tensor& turns) {
  return {static_cast<const float2*>(turns.data), a.n_rot / 2, a.style == MOTLEY_ROPE_NORM};
}

// The turns of four pairs from pair j on, of a row; j is a multiple of four.
struct FourTurns {
  float2 of[4];
  __device__ FourTurns(const Turn& turn, int64_t row, int j) {
    const auto* from = reinterpret_cast<const float4*>(turn.turns + row * turn.pairs + j);
    const float4 low = from[0], high = from[1];
    of[0] = {low.x, low.y}, of[1] = {low.z, low.w}, of[2] = {high.x, high.y}, of[3] = {high.z, high.w};
  }
};

// Eight elements of a head at a time, in fours: pairs that are turned, or others as they are.
struct Eight {
  float4 a, b;
};
struct EightOf {
  int first, second;  // of the fours
  bool turned;
  __device__ EightOf(const Turn& turn, int unit, bool turns) {
    const int pairs = turns ? turn.pairs : 0, turned_units = pairs / 4;
    turned = unit < turned_units;
    const bool apart = turned && !turn.neighbours;
    first = apart ? 4 * unit : 8 * unit, second = apart ? first + pairs : first + 4;
  }
};
__device__ inline float2 turned_pair(float2 x, float2 t) {
  return {fmaf(x.x, t.x, -(x.y * t.y)), fmaf(x.x, t.y, x.y * t.x)};
}
// Two pairs that lie side by side; two fours of which one holds the pairs' first numbers, the other the second ones.
__device__ inline float4 turned_neighbours(float4 x, float2 t, float2 u) {
  const float2 a = turned_pair({x.x, x.y}, t), b = turned_pair({x.z, x.w}, u);
  return {a.x, a.y, b.x, b.y};
}
__device__ inline Eight turned_fours(float4 x, float4 y, float2 t0, float2 t1, float2 t2, float2 t3) {
  const float2 a = turned_pair({x.x, y.x}, t0), b = turned_pair({x.y, y.y}, t1);
  const float2 c = turned_pair({x.z, y.z}, t2), d = turned_pair({x.w, y.w}, t3);
  return {{a.x, b.x, c.x, d.x}, {a.y, b.y, c.y, d.y}};
}
__device__ inline Eight turned_eight(const Eight& x, const float2 (&t)[4], bool neighbours) {
  if (neighbours) return {turned_neighbours(x.a, t[0], t[1]), turned_neighbours(x.b, t[2], t[3])};
  return turned_fours(x.a, x.b, t[0], t[1], t[2], t[3]);
}

}  // namespace motley::cuda
