// Attention of many rows, e.g. a prompt's: bound by the tensor cores. A block of threads takes the rows of an item for
// one head, and its tiles of positions lie at multiples of kTile: a row's bits depend on its own position alone.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/attention/pool.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

namespace {

constexpr int kWarps = 8;  // each has 16 rows
constexpr int kTile = 64;  // positions
constexpr int kNone = -1;

__device__ uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }
__device__ void load_matrices(uint32_t (&m)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at));
}
__device__ void load_transposed(uint32_t (&m)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at));
}
// 16 bytes, zeros where `there` is false.
__device__ void copy_later(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ void close_copies() { asm volatile("cp.async.commit_group;"); }
__device__ void await_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Rows of D numbers of two bytes in pieces of 16, which lie so that eight rows' pieces of one column are in all banks.
template <int D>
__device__ int piece_at(int row, int piece) {
  return row * D * 2 + ((piece ^ (row & 7)) * 16);
}

template <class T, int D, bool kCapped>
class PassAttention {
  using N = Numbers<T>;
  static constexpr int kThreadsHere = kWarps * kWarp;
  static constexpr int kRows = kWarps * 16, kPieces = D / 8, kPlane = kTile * D * 2;
  static constexpr bool kQueryHeld = D <= 128;  // in registers

 public:
  static constexpr int kBytes = kRows * D * 2 + 4 * kPlane;
  // Of a tile's positions, and their scales. While one is looked at and the next is loaded, a third is found.
  static constexpr int kFound = 3;
  struct Places {
    int32_t slot[kFound][kTile];
    bool full[kFound][kTile / kWarp];  // of a warp's positions: each is there
    float k_scale[kFound][kTile], v_scale[kFound][kTile];
  };

  __device__ PassAttention(const Attention& a, std::byte* memory, Places& places)
      : a_(a), places_(places), lane_(threadIdx.x % kWarp), warp_(threadIdx.x / kWarp), head_(blockIdx.x) {
    item_ = a.passes[gridDim.y - 1 - blockIdx.y];  // long ones first
    kv_head_ = head_ / a.group;
    blocks_ = a.batch.blocks + a.batch.seq_block_begin[a.batch.row_sequence[item_.row]];
    query_ = shared_address(memory);
    tiles_ = query_ + kRows * D * 2;
    end_ = a.batch.positions[item_.row + item_.rows - 1];
    begin_ = a.window > 0 ? max(0, a.batch.positions[item_.row] - a.window + 1) : 0;
  }

  __device__ void run(std::byte* memory) {
    load_query(memory);
    start_rows();
    const int last = end_ / kTile;
    int tile = begin_ / kTile;
    keep(find(tile), tile), keep(find(tile + 1), tile + 1);
    __syncthreads();
    hold_query();
    load(tile, 0);
    for (int turn = 0; tile <= last; ++tile, turn ^= 1) {
      await_copies();
      __syncthreads();
      if (tile < last) load(tile + 1, turn ^ 1);
      const Place next = tile + 2 <= last ? find(tile + 2) : Place();
      attend(tile, turn);
      keep(next, tile + 2);
    }
    finish();
  }

 private:
  struct Place {
    int32_t slot = kNone;
    float k_scale = 0, v_scale = 0;
  };
  __device__ Place find(int tile) const {
    Place place;
    const int32_t p = tile * kTile + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kTile || p < begin_ || p > end_) return place;
    place.slot = slot_of(a_, blocks_, p);
    if (place.slot == kNone) return place;
    if constexpr (N::kScaled) {
      const int64_t at = int64_t{place.slot} * a_.layer.kv_heads + kv_head_;
      place.k_scale = a_.layer.k_scale[at], place.v_scale = a_.layer.v_scale[at];
    }
    return place;
  }
  __device__ void keep(const Place& place, int tile) {
    if (threadIdx.x >= kTile) return;
    const int at = tile % kFound;
    places_.slot[at][threadIdx.x] = place.slot;
    const bool full = __all_sync(0xffffffffu, place.slot != kNone);
    if (lane_ == 0) places_.full[at][warp_] = full;
    if constexpr (N::kScaled)
      places_.k_scale[at][threadIdx.x] = place.k_scale, places_.v_scale[at][threadIdx.x] = place.v_scale;
  }

  __device__ void load_query(std::byte* memory) const {
    for (int i = threadIdx.x; i < kRows * kPieces; i += kThreadsHere) {
      const int row = i / kPieces, piece = i % kPieces;
      const float* from = a_.q + (int64_t{item_.row + row} * a_.heads + head_) * a_.layer.dim + piece * 8;
      uint4 packed{};
      if (row < item_.rows && piece * 8 < a_.layer.dim)
        packed = {N::pack(from[0], from[1]), N::pack(from[2], from[3]), N::pack(from[4], from[5]),
                  N::pack(from[6], from[7])};
      *reinterpret_cast<uint4*>(memory + piece_at<D>(row, piece)) = packed;
    }
  }
  __device__ void load_held(uint32_t (&q)[4], int s) const {
    const int m = lane_ / 8;
    load_matrices(q, query_ + piece_at<D>(warp_ * 16 + (m & 1) * 8 + lane_ % 8, 2 * s + (m >> 1)));
  }
  __device__ void hold_query() {
    if constexpr (kQueryHeld) {
#pragma unroll
      for (int s = 0; s < D / 16; ++s) load_held(held_[s], s);
    }
  }
  __device__ void take_query(uint32_t (&q)[4], int s) const {
    if constexpr (kQueryHeld) {
#pragma unroll
      for (int i = 0; i < 4; ++i) q[i] = held_[s][i];
    } else {
      load_held(q, s);
    }
  }
  // Of the item, the thread's row i (0 or 1).
  __device__ int row_of(int i) const { return warp_ * 16 + 8 * i + lane_ / 4; }
  __device__ void start_rows() {
    const float sink = a_.sinks ? a_.sinks[head_] * kLog2E : -INFINITY;  // it takes weight and adds no value
    lowest_seen_ = INT32_MAX, highest_ = kNone;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_of(i);
      position_[i] = row < item_.rows ? a_.batch.positions[item_.row + row] : kNone;
      largest_[i] = sink;
      total_[i] = sink > -INFINITY && lane_ % 4 == 0 ? 1.0f : 0.0f;
    }
    const int front = warp_ * 16, back = min(front + 16, item_.rows) - 1;
    if (back >= front) {
      lowest_seen_ = a_.batch.positions[item_.row + front], highest_ = a_.batch.positions[item_.row + back];
    }
#pragma unroll
    for (int t = 0; t < D / 8; ++t) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum_[t][k] = 0;
    }
  }

  // A thread has one column of pieces.
  __device__ void load(int tile, int turn) const {
    constexpr int kApart = kThreadsHere / kPieces;  // rows
    static_assert(kThreadsHere % kPieces == 0);
    const int first = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    const uint32_t keys = tiles_ + turn * 2 * kPlane, values = keys + kPlane;
    const bool held = piece * 8 < a_.layer.dim;
    const auto size = static_cast<uint32_t>(sizeof(T));
    const uint32_t step = static_cast<uint32_t>(a_.layer.kv_heads * a_.layer.dim) * size;  // bytes of a position
    const uint32_t at = static_cast<uint32_t>(kv_head_ * a_.layer.dim + (held ? piece * 8 : 0)) * size;
#pragma unroll
    for (int i = 0; i < (kTile + kApart - 1) / kApart; ++i) {
      const int row = first + i * kApart;
      if (kTile % kApart != 0 && row >= kTile) break;
      const int32_t slot = places_.slot[tile % kFound][row];
      const bool there = slot >= 0 && held;
      const uint64_t from = uint64_t{step} * static_cast<uint32_t>(max(slot, 0)) + at;
      const uint32_t to = piece_at<D>(row, piece);
      if constexpr (sizeof(typename N::Raw) < sizeof(uint4)) {
        convert(keys + to, a_.layer.k + from, there), convert(values + to, a_.layer.v + from, there);
      } else {
        copy_later(keys + to, a_.layer.k + from, there), copy_later(values + to, a_.layer.v + from, there);
      }
    }
    close_copies();
  }
  __device__ static void convert(uint32_t to, const std::byte* from, bool there) {
    using Raw = typename N::Raw;
    const uint4 x = there ? N::take(__ldg(reinterpret_cast<const Raw*>(from))) : uint4{};
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
  }

  __device__ void attend(int tile, int turn) {
    const int base = tile * kTile;
    if (base > highest_) return;  // no row of this warp sees it
    const uint32_t keys = tiles_ + turn * 2 * kPlane, values = keys + kPlane;
    float score[kTile / 8][4];
    multiply_keys(score, keys);
    // Rows ascend: of this warp's, the first sees the least of what comes, the last the least of what went.
    bool whole = base + kTile - 1 <= lowest_seen_ && (a_.window == 0 || base > highest_ - a_.window);
#pragma unroll
    for (const bool full : places_.full[tile % kFound]) whole = whole && full;
#pragma unroll
    for (int i = 0; i < 2; ++i) look(score, i, tile, whole);
    weigh(score);
    add_values(score, values, tile);
  }

  __device__ void multiply_keys(float (&score)[kTile / 8][4], uint32_t keys) const {
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) score[n][k] = 0;
    }
    const int m = lane_ / 8, r = lane_ % 8;
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      uint32_t q[4];
      take_query(q, s);
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t k[4];
        load_matrices(k, keys + piece_at<D>(16 * n + (m >> 1) * 8 + r, 2 * s + (m & 1)));
        N::multiply(score[2 * n], q, k[0], k[1]);
        N::multiply(score[2 * n + 1], q, k[2], k[3]);
      }
    }
  }

  // Row i's scores: of the pool's numbers, capped, and -inf for what the row does not see.
  __device__ void look(float (&score)[kTile / 8][4], int i, int tile, bool whole) const {
    const int base = tile * kTile, found = tile % kFound;
    const int first = a_.window > 0 ? position_[i] - a_.window + 1 : 0;
#pragma unroll
    for (int k = 0; k < kTile / 4; ++k) {
      const int at = 8 * (k / 2) + 2 * (lane_ % 4) + k % 2;
      float& x = score[k / 2][2 * i + k % 2];
      if constexpr (N::kScaled) x *= places_.k_scale[found][at];
      if constexpr (kCapped) x = capped(a_, x);
    }
    if (whole) return;
#pragma unroll
    for (int k = 0; k < kTile / 4; ++k) {
      const int p = base + 8 * (k / 2) + 2 * (lane_ % 4) + k % 2;
      if (p > position_[i] || p < first || places_.slot[found][p - base] == kNone)
        score[k / 2][2 * i + k % 2] = -INFINITY;
    }
  }

  // Scores become weights; sums are shrunk where a larger score came.
  __device__ void weigh(float (&score)[kTile / 8][4]) {
    const float factor = score_factor<kCapped>(a_);
    bool grown = false;
    float shrink[2];
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
    if (!__any_sync(0xffffffffu, grown)) return;  // then all factors are 1, or there is nothing to shrink
#pragma unroll
    for (int t = 0; t < D / 8; ++t) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum_[t][k] *= shrink[k / 2];
    }
  }

  __device__ void add_values(float (&weight)[kTile / 8][4], uint32_t values, int tile) {
    const int m = lane_ / 8, r = lane_ % 8;
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      uint32_t p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x = weight[2 * s + i / 2][2 * (i % 2)], y = weight[2 * s + i / 2][2 * (i % 2) + 1];
        if constexpr (N::kScaled) {
          const float* scale = &places_.v_scale[tile % kFound][16 * s + 8 * (i / 2) + 2 * (lane_ % 4)];
          x *= scale[0], y *= scale[1];
        }
        p[i] = N::pack(x, y);
      }
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t v[4];
        load_transposed(v, values + piece_at<D>(16 * s + (m & 1) * 8 + r, 2 * n + (m >> 1)));
        N::multiply(sum_[2 * n], p, v[0], v[1]);
        N::multiply(sum_[2 * n + 1], p, v[2], v[3]);
      }
    }
  }

  __device__ void finish() const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = quad_sum(total_[i]);
      const int row = row_of(i);
      if (row >= item_.rows) continue;
      const int64_t at = int64_t{item_.row + row} * a_.heads + head_;
      const float factor = total > 0 ? 1.0f / total : total;  // a NaN stays one
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        const int e = 8 * t + 2 * (lane_ % 4);
        if (e >= a_.layer.dim) continue;
        store_two(a_.bf16, a_.out, at * a_.layer.dim + e, sum_[t][2 * i] * factor, sum_[t][2 * i + 1] * factor);
      }
      if (a_.log_sum_exp && lane_ % 4 == 0)
        a_.log_sum_exp[at] = total > 0 ? (largest_[i] + log2f(total)) * kLn2 : -INFINITY;
    }
  }

  const Attention& a_;
  Places& places_;
  const int lane_, warp_, head_;
  int kv_head_;
  PassItem item_;
  const int32_t* blocks_;
  uint32_t query_, tiles_;
  int32_t begin_, end_;            // positions that rows of the item see
  int32_t lowest_seen_, highest_;  // positions of this warp's first and last row
  int32_t position_[2];            // of the thread's rows
  float largest_[2], total_[2];
  uint32_t held_[kQueryHeld ? D / 16 : 1][4];
  float sum_[D / 8][4];
};

template <class T, int D, bool kCapped>
__global__ void __launch_bounds__(kWarps* kWarp, D <= 64 ? 2 : 1) attend_rows(const __grid_constant__ Attention a) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ typename PassAttention<T, D, kCapped>::Places places;
  PassAttention<T, D, kCapped>(a, memory, places).run(memory);
}

template <class T, int D, bool kCapped>
void launch_kernel(const Attention& a, cudaStream_t stream) {
  constexpr int kBytes = PassAttention<T, D, kCapped>::kBytes;
  allow_shared<attend_rows<T, D, kCapped>>(kBytes, "PAGED_ATTENTION: shared memory");
  Attention part = a;
  for (int32_t first = 0; first < a.passes_count; first += static_cast<int32_t>(kGridMax)) {
    part.passes = a.passes + first;
    const auto count = static_cast<unsigned>(min(a.passes_count - first, static_cast<int32_t>(kGridMax)));
    attend_rows<T, D, kCapped><<<dim3(static_cast<unsigned>(a.heads), count), kWarps * kWarp, kBytes, stream>>>(part);
  }
}

}  // namespace

void attend_passes(const Attention& a, cudaStream_t stream) {
  visit_kernel(a, [&]<class T, int D, bool kCapped>() { launch_kernel<T, D, kCapped>(a, stream); });
  launched("PAGED_ATTENTION");
}

}  // namespace motley::cuda
