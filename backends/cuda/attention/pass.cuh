// For the kernels of attention in one pass: the places of a tile's positions, and a warp's 16 rows with their weights,
// as the accumulators of the tensor cores have them (mma.m16n8k16, and a warp's part of wgmma.m64nNk16).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/attention/pool.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

constexpr int kNone = -1;
// Tiles whose places are known: while one is looked at and the next is loaded, a third is found.
constexpr int kFound = 3;

// Of tiles' positions, and their scales; in shared memory.
template <int kTile>
struct PassPlaces {
  int32_t slot[kFound][kTile];
  bool full[kFound][kTile / kWarp];  // of a warp's positions: each that some row may see is there
  float k_scale[kFound][kTile], v_scale[kFound][kTile];
};

struct PassPlace {
  int32_t slot = kNone;
  bool missing = false;  // some row may see it, and it lies elsewhere
  float k_scale = 0, v_scale = 0;
};

// What a block of threads takes at a time: an item for a head.
struct PassHead {
  int head, kv_head;
  PassItem item;
  const int32_t* blocks;  // of the sequence
  int32_t begin, end;     // positions that rows of the item see
  __device__ PassHead(const Attention& a, int head, int at) : head(head), kv_head(head / a.group), item(a.passes[at]) {
    blocks = a.batch.blocks + item.blocks, end = item.last;
    begin = a.window > 0 ? max(0, item.front - a.window + 1) : 0;
  }
};

// By kTile threads, one a position: which block has it; MOTLEY_NONE also where no row sees it.
template <int kTile>
__device__ int32_t find_block(const Attention& a, const PassHead& h, int tile, int thread) {
  const int32_t p = tile * kTile + thread;
  return p < h.begin || p > h.end ? MOTLEY_NONE : h.blocks[block_of(a, p)];
}
// Where it lies in that.
template <class T, int kTile>
__device__ PassPlace place_in(const Attention& a, const PassHead& h, int tile, int thread, int32_t block) {
  PassPlace place;
  const int32_t p = tile * kTile + thread;
  if (p < h.begin || p > h.end) return place;
  place.slot = slot_in(a, block, p);
  place.missing = place.slot == kNone;
  if (place.missing) return place;
  if constexpr (Numbers<T>::kScaled) {
    const int64_t at = int64_t{place.slot} * a.layer.kv_heads + h.kv_head;
    place.k_scale = a.layer.k_scale[at], place.v_scale = a.layer.v_scale[at];
  }
  return place;
}
// At one of kFound.
template <class T, int kTile>
__device__ void keep_place(PassPlaces<kTile>& places, const PassPlace& place, int at, int thread) {
  places.slot[at][thread] = place.slot;
  const bool full = __all_sync(0xffffffffu, !place.missing);
  if (thread % kWarp == 0) places.full[at][thread / kWarp] = full;
  if constexpr (Numbers<T>::kScaled)
    places.k_scale[at][thread] = place.k_scale, places.v_scale[at][thread] = place.v_scale;
}

// Eight numbers of a query, as the pool's numbers are multiplied; zeros behind the item's rows and the head. `packed`,
// `aligned`: as in `a`, known where many are asked for, so that no branch is between them.
template <class T>
__device__ uint4 query_piece(const Attention& a, const PassHead& h, int row, int piece, bool packed, bool aligned) {
  using N = Numbers<T>;
  const bool there = row < h.item.rows && piece * 8 < a.layer.dim;
  const int64_t head = int64_t{h.item.row + (there ? row : 0)} * a.heads + h.head;
  const int64_t at = head * a.layer.dim + (there ? piece * 8 : 0);
  if (packed) {
    const uint4 all = static_cast<const uint4*>(a.q)[at / 8];
    return there ? all : uint4{};
  }
  const float* from = static_cast<const float*>(a.q) + at;
  float4 x, y;
  if (aligned)
    x = *reinterpret_cast<const float4*>(from), y = *reinterpret_cast<const float4*>(from + 4);
  else
    x = {from[0], from[1], from[2], from[3]}, y = {from[4], from[5], from[6], from[7]};
  const uint4 all = {N::pack(x.x, x.y), N::pack(x.z, x.w), N::pack(y.x, y.y), N::pack(y.z, y.w)};
  return there ? all : uint4{};
}

// A warp's rows from `front` on, of which a thread has row lane / 4 and the eighth behind it, and of a tile's scores
// those of positions 2 * (lane % 4) and the one behind it in each eight.
template <class T, int D, int kTile, bool kCapped>
class PassRows {
  using N = Numbers<T>;

 public:
  __device__ PassRows(const Attention& a, const PassHead& h, int front)
      : a_(a), h_(h), lane_(threadIdx.x % kWarp), front_(front) {
    const float sink = a.sinks ? a.sinks[h.head] * kLog2E : -INFINITY;  // it takes weight and adds no value
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of(i);
      position_[i] = row < h.item.rows ? a.batch.positions[h.item.row + row] : kNone;
      largest_[i] = sink;
      total_[i] = sink > -INFINITY && lane_ % 4 == 0 ? 1.0f : 0.0f;
    }
    const int back = min(front + 16, h.item.rows) - 1;
    if (back >= front)
      lowest_seen_ = a.batch.positions[h.item.row + front], highest_ = a.batch.positions[h.item.row + back];
  }
  __device__ int32_t highest() const { return highest_; }

  // Scores: of the pool's numbers, capped, and -inf for what a row does not see. at: of the tile's places.
  __device__ void look(float (&score)[kTile / 8][4], const PassPlaces<kTile>& places, int tile, int at) const {
    if constexpr (N::kScaled || kCapped) take_numbers(score, places, at);
    const int base = tile * kTile;
    bool full = true;
#pragma unroll
    for (const bool each : places.full[at]) full = full && each;
    // Rows ascend: the first sees the least of what comes, the last the least of what went.
    if (full && base + kTile - 1 <= lowest_seen_ && (a_.window == 0 || base > highest_ - a_.window)) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) hide(score, i, base);
    if (full) return;
#pragma unroll
    for (int k = 0; k < kTile / 4; ++k) {
      const int p = 8 * (k / 2) + 2 * (lane_ % 4) + k % 2;
      if (places.slot[at][p] == kNone) score[k / 2][k % 2] = score[k / 2][2 + k % 2] = -INFINITY;
    }
  }

  // Scores become weights. True if sums, of this warp's rows, are to be shrunk by `shrink`, as a larger score came.
  __device__ bool weigh(float (&score)[kTile / 8][4], float (&shrink)[2]) {
    const float factor = score_factor<kCapped>(a_);
    bool grown = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) most = fmaxf(most, fmaxf(score[n][2 * i], score[n][2 * i + 1]));
      most = fmaxf(largest_[i], quad_max(most) * factor);
      shrink[i] = weight_of(largest_[i], most);
      grown = grown || most > largest_[i];
      largest_[i] = most;
      const float from = most == -INFINITY ? 0.0f : most;
      float total = 0;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = score[n][2 * i + c];
          x = power_of_two(fmaf(x, factor, -from));
          total += x;
        }
      }
      total_[i] = fmaf(total_[i], shrink[i], total);
    }
    return __any_sync(0xffffffffu, grown);  // else all factors are 1, or there is nothing to shrink
  }
  __device__ static void shrink_sums(float (&sum)[D / 8][4], const float (&shrink)[2]) {
#pragma unroll
    for (int t = 0; t < D / 8; ++t) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[t][k] *= shrink[k / 2];
    }
  }

  // Weights of 16 positions from 16 * s on, as the tensor cores take them.
  __device__ void take_weights(uint32_t (&p)[4], const float (&weight)[kTile / 8][4], const PassPlaces<kTile>& places,
                               int at, int s) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float x = weight[2 * s + i / 2][2 * (i % 2)], y = weight[2 * s + i / 2][2 * (i % 2) + 1];
      if constexpr (N::kScaled) {
        const float* scale = &places.v_scale[at][16 * s + 8 * (i / 2) + 2 * (lane_ % 4)];
        x *= scale[0], y *= scale[1];
      }
      p[i] = N::pack(x, y);
    }
  }

  __device__ void finish(const float (&sum)[D / 8][4]) const {
    switch (a_.stored) {
      case Stored::kF32: return finish<Stored::kF32>(sum);
      case Stored::kBf16: return finish<Stored::kBf16>(sum);
      case Stored::kTileOrder: return finish<Stored::kTileOrder>(sum);
    }
  }

 private:
  // Of the item, the thread's row i (0 or 1).
  __device__ int row_of(int i) const { return front_ + 8 * i + lane_ / 4; }

  template <Stored kStored>
  __device__ void finish(const float (&sum)[D / 8][4]) const {
    const bool whole = a_.layer.dim == D;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = quad_sum(total_[i]);
      const int row = row_of(i);
      if (row >= h_.item.rows) continue;
      const int64_t at = int64_t{h_.item.row + row} * a_.heads + h_.head;
      const float factor = total > 0 ? 1.0f / total : total;  // a NaN stays one
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const int e = 8 * t + 2 * (lane_ % 4);
        if (whole || e < a_.layer.dim)
          store_two(kStored, a_.out, at * a_.layer.dim + e, sum[t][2 * i] * factor, sum[t][2 * i + 1] * factor);
      }
      if (a_.log_sum_exp && lane_ % 4 == 0)
        a_.log_sum_exp[at] = total > 0 ? (largest_[i] + log2f(total)) * kLn2 : -INFINITY;
    }
  }
  __device__ void take_numbers(float (&score)[kTile / 8][4], const PassPlaces<kTile>& places, int at) const {
#pragma unroll
    for (int k = 0; k < kTile / 4; ++k) {
      const int p = 8 * (k / 2) + 2 * (lane_ % 4) + k % 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = score[k / 2][2 * i + k % 2];
        if constexpr (N::kScaled) x *= places.k_scale[at][p];
        if constexpr (kCapped) x = capped(a_, x);
      }
    }
  }
  // Of the thread's row i what lies behind it and before its window.
  __device__ void hide(float (&score)[kTile / 8][4], int i, int base) const {
    const int last = position_[i] - base - 2 * (lane_ % 4);
    const int first = a_.window > 0 ? last - a_.window + 1 : INT32_MIN;
#pragma unroll
    for (int k = 0; k < kTile / 4; ++k) {
      const int p = 8 * (k / 2) + k % 2;
      float& x = score[k / 2][2 * i + k % 2];
      x = p > last || p < first ? -INFINITY : x;
    }
  }

  const Attention& a_;
  const PassHead h_;
  const int lane_, front_;
  int32_t lowest_seen_ = INT32_MAX, highest_ = kNone;  // positions of the first and the last row
  int32_t position_[2];                                // of the thread's rows
  float largest_[2], total_[2];
};

// Where eight numbers of a KV head, the same ones of each position, lie in a plane of the pool.
template <class T>
struct PieceColumn {
  bool held;
  uint32_t step, at;  // bytes: of a position, and within it
  __device__ PieceColumn(const Attention& a, int kv_head, int piece) : held(piece * 8 < a.layer.dim) {
    const auto size = static_cast<uint32_t>(sizeof(T));
    step = static_cast<uint32_t>(a.layer.kv_heads * a.layer.dim) * size;
    at = static_cast<uint32_t>(kv_head * a.layer.dim + (held ? piece * 8 : 0)) * size;
  }
  // False: there are none.
  __device__ bool find(const std::byte* plane, int32_t slot, const std::byte** from) const {
    *from = plane + (uint64_t{step} * static_cast<uint32_t>(max(slot, 0)) + at);
    return slot >= 0 && held;
  }
};

// 16 bytes to shared memory, not waited for; zeros where `there` is false.
__device__ inline void copy_later(uint32_t to, const std::byte* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// Copies n pieces of the pool's numbers to shared memory, as they are multiplied; where(i, &to, &from) answers whether
// there is one, else zeros are written. Only numbers of two bytes are not waited for.
template <class T, int n, class Where>
__device__ void copy_pieces(Where where) {
  using N = Numbers<T>;
  using Raw = typename N::Raw;
  constexpr int kAtOnce = n < 8 ? n : 8;
  static_assert(n % kAtOnce == 0);
#pragma unroll
  for (int first = 0; first < n; first += kAtOnce) {
    Raw raw[kAtOnce];
    uint32_t to[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const std::byte* from;
      const bool there = where(first + i, &to[i], &from);
      if constexpr (sizeof(Raw) == sizeof(uint4))
        copy_later(to[i], from, there);
      else
        raw[i] = there ? __ldg(reinterpret_cast<const Raw*>(from)) : Raw{};
    }
    if constexpr (sizeof(Raw) < sizeof(uint4)) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint4 x = N::take(raw[i]);
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to[i]), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                     : "memory");
      }
    }
  }
}

// Heads of so much room have kernels of warpgroups' instructions, where a GPU has these.
constexpr bool by_warpgroups(int room) { return room <= 128; }
// By these; false: not here, and nothing was done.
bool attend_prompts(const Attention& a, const CudaStream& stream);

}  // namespace motley::cuda
