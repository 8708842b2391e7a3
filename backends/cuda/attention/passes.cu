// Attention of many rows, e.g. a prompt's, by one warp's instructions: bound by the tensor cores. A block of threads
// takes the rows of an item for one head, and its tiles of positions lie at multiples of kTile: a row's bits depend on
// its own position alone. SPDX-License-Identifier: Apache-2.0
#include "cuda/attention/pass.cuh"
#include "cuda/barrier.cuh"

namespace motley::cuda {

namespace {

constexpr int kWarps = 8;  // each has 16 rows
constexpr int kTile = 64;  // positions

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
__device__ void close_copies() { asm volatile("cp.async.commit_group;"); }
__device__ void await_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Rows of D numbers of two bytes in pieces of 16, which lie so that eight rows' pieces of one column are in all banks.
template <int D>
__device__ int piece_at(int row, int piece) {
  return row * D * 2 + ((piece ^ (row & 7)) * 16);
}

// Queries, and two turns of keys and values.
template <int D>
constexpr int pass_bytes() {
  return (kWarps * 16 + 4 * kTile) * D * 2;
}

template <class T, int D, bool kCapped>
class PassAttention {
  using N = Numbers<T>;
  static constexpr int kThreadsHere = kWarps * kWarp;
  static constexpr int kRows = kWarps * 16, kPieces = D / 8, kPlane = kTile * D * 2;
  static constexpr bool kQueryHeld = D <= 128;  // in registers

 public:
  using Places = PassPlaces<kTile>;

  __device__ PassAttention(const Attention& a, std::byte* memory, Places& places)
      : a_(a),
        places_(places),
        lane_(threadIdx.x % kWarp),
        warp_(threadIdx.x / kWarp),
        h_(a, blockIdx.x, blockIdx.y),
        rows_(a, h_, warp_ * 16) {
    query_ = shared_address(memory);
    tiles_ = query_ + kRows * D * 2;
  }

  __device__ void run(std::byte* memory) {
    load_query(memory);
    const int last = h_.end / kTile;
    int tile = h_.begin / kTile;
    keep(find(tile), tile), keep(find(tile + 1), tile + 1);
    __syncthreads();
    hold_query();
    load(tile, 0);
    for (int turn = 0; tile <= last; ++tile, turn ^= 1) {
      await_copies();
      __syncthreads();
      if (tile < last) load(tile + 1, turn ^ 1);
      const PassPlace next = tile + 2 <= last ? find(tile + 2) : PassPlace();
      attend(tile, turn);
      keep(next, tile + 2);
    }
    rows_.finish(sum_);
  }

 private:
  __device__ PassPlace find(int tile) const {
    if (threadIdx.x >= kTile) return PassPlace();
    const int thread = static_cast<int>(threadIdx.x);
    return place_in<T, kTile>(a_, h_, tile, thread, find_block<kTile>(a_, h_, tile, thread));
  }
  __device__ void keep(const PassPlace& place, int tile) {
    if (threadIdx.x < kTile) keep_place<T, kTile>(places_, place, tile % kFound, threadIdx.x);
  }

  __device__ void load_query(std::byte* memory) const {
    for (int i = threadIdx.x; i < kRows * kPieces; i += kThreadsHere) {
      const int row = i / kPieces, piece = i % kPieces;
      *reinterpret_cast<uint4*>(memory + piece_at<D>(row, piece)) =
          query_piece<T>(a_, h_, row, piece, a_.packed, a_.aligned);
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

  // A thread has one column of pieces.
  __device__ void load(int tile, int turn) const {
    constexpr int kApart = kThreadsHere / kPieces;  // rows
    static_assert(kThreadsHere % kPieces == 0 && kTile % kApart == 0);
    const int first = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    const uint32_t keys = tiles_ + turn * 2 * kPlane;
    const PieceColumn<T> column(a_, h_.kv_head, piece);
    for (const bool of_keys : {true, false}) {
      copy_pieces<T, kTile / kApart>([&](int i, uint32_t* to, const std::byte** from) {
        const int row = first + i * kApart;
        *to = keys + (of_keys ? 0 : kPlane) + piece_at<D>(row, piece);
        return column.find(of_keys ? a_.layer.k : a_.layer.v, places_.slot[tile % kFound][row], from);
      });
    }
    close_copies();
  }

  __device__ void attend(int tile, int turn) {
    if (tile * kTile > rows_.highest()) return;  // no row of this warp sees it
    const uint32_t keys = tiles_ + turn * 2 * kPlane, values = keys + kPlane;
    float score[kTile / 8][4], shrink[2];
    multiply_keys(score, keys);
    rows_.look(score, places_, tile, tile % kFound);
    if (rows_.weigh(score, shrink)) rows_.shrink_sums(sum_, shrink);
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

  __device__ void add_values(const float (&weight)[kTile / 8][4], uint32_t values, int tile) {
    const int m = lane_ / 8, r = lane_ % 8;
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      uint32_t p[4];
      rows_.take_weights(p, weight, places_, tile % kFound, s);
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t v[4];
        load_transposed(v, values + piece_at<D>(16 * s + (m & 1) * 8 + r, 2 * n + (m >> 1)));
        N::multiply(sum_[2 * n], p, v[0], v[1]);
        N::multiply(sum_[2 * n + 1], p, v[2], v[3]);
      }
    }
  }

  const Attention& a_;
  Places& places_;
  const int lane_, warp_;
  const PassHead h_;
  PassRows<T, D, kTile, kCapped> rows_;
  uint32_t query_, tiles_;
  uint32_t held_[kQueryHeld ? D / 16 : 1][4];
  float sum_[D / 8][4] = {};
};

template <class T, int D, bool kCapped>
__global__ void __launch_bounds__(kWarps* kWarp, D <= 64 ? 2 : 1) attend_rows(const __grid_constant__ Attention a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kNeeded = !by_warpgroups(D);
#else
  constexpr bool kNeeded = true;
#endif
  if constexpr (kNeeded) {
    extern __shared__ __align__(128) std::byte memory[];
    __shared__ PassPlaces<kTile> places;
    PassAttention<T, D, kCapped>(a, memory, places).run(memory);
  }
}

// Calls f(part, items) for as many items as a launch takes.
template <class F>
void each_pass_launch(const Attention& a, F&& f) {
  Attention part = a;
  for (int32_t first = 0; first < a.passes_count; first += static_cast<int32_t>(kGridMax)) {
    part.passes = a.passes + first;
    f(part, static_cast<unsigned>(min(a.passes_count - first, static_cast<int32_t>(kGridMax))));
  }
}

template <class T, int D, bool kCapped>
void launch_kernel(const Attention& a, cudaStream_t stream) {
  constexpr int kBytes = pass_bytes<D>();
  allow_shared<attend_rows<T, D, kCapped>>(kBytes, "PAGED_ATTENTION: shared memory");
  each_pass_launch(a, [&](const Attention& part, unsigned items) {
    attend_rows<T, D, kCapped><<<dim3(static_cast<unsigned>(a.heads), items), kWarps * kWarp, kBytes, stream>>>(part);
  });
}

}  // namespace

void attend_passes(const Attention& a, const CudaStream& stream) {
  if (!attend_prompts(a, stream))
    visit_kernel(a, [&]<class T, int D, bool kCapped>() { launch_kernel<T, D, kCapped>(a, stream.raw()); });
  launched("PAGED_ATTENTION");
}

}  // namespace motley::cuda
