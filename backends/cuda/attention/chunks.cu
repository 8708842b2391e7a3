// Attention of few rows, e.g. generated ones: bound by the memory. K and V go from memory into the registers that the
// tensor cores take, 16 bytes a load: which dimension is which index of a product is free, as long as both sides agree.
// A step multiplies 16 positions of K by 8 (row, head) pairs of the query, and V's dimensions by the pairs' weights:
// the pairs are the products' columns, of which there may be few. SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/attention/pool.cuh"
#include "cuda/stored.cuh"

namespace motley::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreadsHere = kWarps * kWarp;
constexpr int kStep = 16;  // positions of a warp's step; step i belongs to warp i % kWarps
constexpr int kRound = kWarps * kStep;
constexpr int kPad = 4;  // floats behind a row in shared memory

// What a block of threads shares. The rows of `sum` are (row, head) pairs.
template <int D>
struct Shared {
  float sum[kWarps][kTileHeads][D + kPad], joined[kTileHeads][D + kPad];
  float largest[kWarps][kTileHeads], total[kWarps][kTileHeads], factor[kWarps][kTileHeads];
  float joined_largest[kTileHeads], joined_total[kTileHeads];
  float2 chunk_factor[kTileHeads];  // for what is joined, for what comes
  int32_t head[kTileHeads];         // of a pair, among all rows' heads; -1: the pair is not used
  int64_t partial[kTileHeads];      // of a pair, its first chunk's place
  bool last;
};

// What a thread knows of the two pairs whose scores it holds. Position -1: the pair is not used.
struct Pair {
  int32_t first = 0, position = -1;  // the positions it sees
  float largest = -INFINITY, total = 0;
};

// Joins results in ascending order; the same operations wherever they are done.
struct Joined {
  float largest = -INFINITY, total = 0;
  // Factors for what is there and what comes.
  __device__ float2 add(float more_largest, float more_total) {
    const float most = fmaxf(largest, more_largest);
    const float mine = weight_of(largest, most), theirs = weight_of(more_largest, most);
    total = fmaf(total, mine, more_total * theirs);
    largest = most;
    return {mine, theirs};
  }
};

template <class T, int D, bool kCapped>
class ChunkAttention {
  using N = Numbers<T>;
  using Raw = typename N::Raw;
  static constexpr int kKeyLoads = D / 32, kValueLoads = D / 64;

 public:
  // Items first, first + step, ...
  __device__ ChunkAttention(const Attention& a, Shared<D>& s, int32_t first, int32_t step)
      : a_(a), s_(s), lane_(threadIdx.x % kWarp), step_(step), count_(*a.chunk_items) {
    kv_head_ = blockIdx.y / a.head_tiles;
    head_in_group_ = blockIdx.y % a.head_tiles * kTileHeads;
    heads_ = min(a.heads_of_tile, a.group - head_in_group_);
    look_at(first);
    slots_ = find();
    next_ = find();
  }
  __device__ void begin() { load_keys(slots_); }

  __device__ void run(const ChunkItem& item) {
    item_ = item;
    lowest_ = lowest_of(item.front);
    if (threadIdx.x < kTileHeads) start_pair(threadIdx.x);
    for (int i = threadIdx.x; i < kTileHeads * D; i += kThreadsHere) s_.joined[i / D][i % D] = 0;
    load_query();
    const int32_t length = chunk_positions(item.last);
    for (int32_t c = item.chunk_begin; c < item.chunk_end; ++c) {
      attend(max(c * length, lowest_), min((c + 1) * length - 1, item.last));
      __syncthreads();
      if (threadIdx.x < kTileHeads) join_warps(threadIdx.x, c);
      __syncthreads();
      item.partial < 0 ? join_chunk() : store_chunk(c);
      if (c + 1 < item.chunk_end) __syncthreads();
    }
    if (item.partial < 0 || join_stored()) finish();
    __syncthreads();
  }

 private:
  // The (row, head) pair of a row of the tile.
  __device__ int row_of(int pair) const { return item_.row + pair / a_.heads_of_tile; }
  __device__ int head_of(int pair) const { return kv_head_ * a_.group + head_in_group_ + pair % a_.heads_of_tile; }
  __device__ bool is_used(int pair) const {
    return pair < item_.rows * a_.heads_of_tile && pair % a_.heads_of_tile < heads_;
  }
  template <class F>
  __device__ void each_value(F f) const {
    const int count = item_.rows * a_.heads_of_tile * D;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += kThreadsHere)
      if (s_.head[i / D] >= 0 && i % D < a_.layer.dim) f(i / D, i % D);
  }
  __device__ void start_pair(int pair) {
    s_.head[pair] = is_used(pair) ? row_of(pair) * a_.heads + head_of(pair) : -1;
    s_.partial[pair] = int64_t{item_.partial + pair / a_.heads_of_tile} * a_.heads + head_of(pair);
    s_.joined_largest[pair] = -INFINITY, s_.joined_total[pair] = 0;
  }

  // The thread holds its pair's query as a column, and scores of two more pairs.
  __device__ void load_query() {
    const int pair = lane_ / 4;
    const float* from = a_.q + (int64_t{row_of(pair)} * a_.heads + head_of(pair)) * a_.layer.dim;
#pragma unroll
    for (int s = 0; s < kKeyLoads; ++s) {
      const int e = 32 * s + 8 * (lane_ % 4);
      const bool there = is_used(pair) && e < a_.layer.dim;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 two = there ? make_float2(from[e + 2 * k], from[e + 2 * k + 1]) : float2{0, 0};
        query_[s][k] = N::pack(two.x, two.y);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int mine = 2 * (lane_ % 4) + i;
      pairs_[i] = Pair();
      if (!is_used(mine)) continue;
      pairs_[i].position = a_.batch.positions[row_of(mine)];
      pairs_[i].first = a_.window > 0 ? max(0, pairs_[i].position - a_.window + 1) : 0;
    }
  }

  __device__ int32_t lowest_of(int32_t front) const { return a_.window > 0 ? max(0, front - a_.window + 1) : 0; }
  // The first item from `index` on that has positions is what find() looks at.
  __device__ void look_at(int32_t index) {
    for (ahead_ = index; ahead_ < count_; ahead_ += step_) {
      const ChunkItem& item = a_.chunks[ahead_];
      const int32_t length = chunk_positions(item.last);
      ahead_lowest_ = max(item.chunk_begin * length, lowest_of(item.front));
      ahead_end_ = min(item.chunk_end * length - 1, item.last);
      ahead_blocks_ = item.blocks;
      ahead_base_ = ahead_lowest_ / kRound * kRound;
      if (ahead_lowest_ <= ahead_end_) return;
    }
  }
  // The slot of a position of this warp's next step, -1 for one that no row of the item sees, or that lies elsewhere.
  // Steps come in the order in which they are attended, from one item to the next: what is above a chunk's end is
  // loaded while its results are joined.
  __device__ int32_t find() {
    if (ahead_ >= count_) return -1;
    const int32_t p = ahead_base_ + threadIdx.x / kWarp * kStep + lane_ % kStep;
    const int32_t slot = p >= ahead_lowest_ && p <= ahead_end_ ? slot_of(a_, a_.batch.blocks + ahead_blocks_, p) : -1;
    ahead_base_ += kRound;
    if (ahead_base_ > ahead_end_) look_at(ahead_ + step_);
    return slot;
  }
  __device__ Raw load(const std::byte* plane, int32_t slot, int e) const {
    const int64_t at = (int64_t{slot} * a_.layer.kv_heads + kv_head_) * a_.layer.dim + e;
    Raw raw;
    load_if(raw, plane + at * static_cast<int64_t>(sizeof(T)), slot >= 0 && e < a_.layer.dim);
    return raw;
  }
  __device__ void load_keys(int32_t slots) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int32_t slot = __shfl_sync(0xffffffffu, slots, 8 * n + lane_ / 4);
#pragma unroll
      for (int s = 0; s < kKeyLoads; ++s) keys_[n][s] = load(a_.layer.k, slot, 32 * s + 8 * (lane_ % 4));
    }
  }
  // What is above (the loads of V) is begun before K is looked at.
  __device__ void hold_keys() {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int s = 0; s < kKeyLoads; ++s) hold(keys_[n][s]);
    }
  }
  __device__ static void hold(uint4& x) { asm volatile("" : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w)); }
  __device__ static void hold(uint2& x) { asm volatile("" : "+r"(x.x), "+r"(x.y)); }
  __device__ void load_values(int32_t slots, Raw (&values)[4][kValueLoads]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t slot = __shfl_sync(0xffffffffu, slots, 2 * (lane_ % 4) + i % 2 + 8 * (i / 2));
#pragma unroll
      for (int u = 0; u < kValueLoads; ++u) values[i][u] = load(a_.layer.v, slot, 64 * u + 8 * (lane_ / 4));
    }
  }
  __device__ float scale_at(const float* scales, int32_t slot) const {
    return slot < 0 ? 0.0f : scales[int64_t{slot} * a_.layer.kv_heads + kv_head_];
  }
  // Scores of the step's positions become weights; sums are shrunk where a larger score came. score[2 * h + i] is of
  // pair 2 * (lane % 4) + i at position base + 8 * h + lane / 4. Bit k of `there`: whether the k-th position is.
  __device__ void weigh(float (&score)[4], int32_t base, uint32_t there, float k_scale) {
    const float factor = score_factor<kCapped>(a_);
    bool grown = false;
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Pair& pair = pairs_[i];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& x = score[2 * h + i];
        const int column = 8 * h + lane_ / 4;
        if constexpr (N::kScaled) x *= __shfl_sync(0xffffffffu, k_scale, column);
        if constexpr (kCapped) x = capped(a_, x);
        const int32_t p = base + column;
        const bool seen = p >= pair.first && p <= pair.position && p >= begin_ && p <= end_;
        x = seen && (there >> column & 1) != 0 ? x * factor : -INFINITY;
      }
      float most = fmaxf(score[i], score[2 + i]);
      for (int apart = 4; apart < kWarp; apart *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, apart));
      most = fmaxf(pair.largest, most);
      shrink[i] = weight_of(pair.largest, most);
      grown = grown || most > pair.largest;
      pair.largest = most;
      score[i] = weight_of(score[i], most), score[2 + i] = weight_of(score[2 + i], most);
      pair.total = fmaf(pair.total, shrink[i], score[i] + score[2 + i]);
    }
    if (!__any_sync(0xffffffffu, grown)) return;  // then all factors are 1, or there is nothing to shrink
#pragma unroll
    for (int t = 0; t < D / 16; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum_[t][i] *= shrink[i % 2];
    }
  }

  __device__ void add_values(float (&weight)[4], const Raw (&values)[4][kValueLoads], float v_scale) {
    if constexpr (N::kScaled) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weight[i] *= __shfl_sync(0xffffffffu, v_scale, 8 * (i / 2) + lane_ / 4);
    }
    const uint32_t w0 = transposed(N::pack(weight[0], weight[1])), w1 = transposed(N::pack(weight[2], weight[3]));
#pragma unroll
    for (int u = 0; u < kValueLoads; ++u) {
      uint4 v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = N::take(values[i][u]);
      // Dimensions 64 * u + 8 * (lane / 4) + 2 * t and the next are rows lane / 4 and lane / 4 + 8 of product t.
      const auto two = [&](int t, uint32_t x0, uint32_t x1, uint32_t y0, uint32_t y1) {
        const uint32_t a[4] = {__byte_perm(x0, x1, 0x5410), __byte_perm(x0, x1, 0x7632), __byte_perm(y0, y1, 0x5410),
                               __byte_perm(y0, y1, 0x7632)};
        N::multiply(sum_[4 * u + t], a, w0, w1);
      };
      two(0, v[0].x, v[1].x, v[2].x, v[3].x);
      two(1, v[0].y, v[1].y, v[2].y, v[3].y);
      two(2, v[0].z, v[1].z, v[2].z, v[3].z);
      two(3, v[0].w, v[1].w, v[2].w, v[3].w);
    }
  }

  // In two sums, so that fewer products wait for one another.
  __device__ void multiply_keys(float (&score)[4]) const {
    float more[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) score[i] = 0;
#pragma unroll
    for (int s = 0; s < kKeyLoads; ++s) {
      const uint4 x = N::take(keys_[0][s]), y = N::take(keys_[1][s]);
      const uint32_t first[4] = {x.x, y.x, x.y, y.y}, second[4] = {x.z, y.z, x.w, y.w};
      N::multiply(score, first, query_[s][0], query_[s][1]);
      N::multiply(more, second, query_[s][2], query_[s][3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) score[i] += more[i];
  }

  // This warp's steps of the positions [begin, end].
  __device__ void attend(int32_t begin, int32_t end) {
    begin_ = begin, end_ = end;
#pragma unroll
    for (int t = 0; t < D / 16; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum_[t][i] = 0;
    }
    for (Pair& pair : pairs_) pair.largest = -INFINITY, pair.total = 0;
    const int warp = threadIdx.x / kWarp;
    // As many rounds for each warp, as the compiler sees: it then takes the warp's threads to be together.
    for (int32_t round = begin / kRound; round * kRound <= end; ++round) {
      const int32_t base = round * kRound + warp * kStep;
      Raw values[4][kValueLoads];
      load_values(slots_, values);
      hold_keys();
      float k_scale = 1, v_scale = 1;
      if constexpr (N::kScaled)
        k_scale = scale_at(a_.layer.k_scale, slots_), v_scale = scale_at(a_.layer.v_scale, slots_);
      float score[4];
      multiply_keys(score);
      const uint32_t there = __ballot_sync(0xffffffffu, slots_ >= 0);
      slots_ = next_;
      load_keys(slots_);
      next_ = find();
      weigh(score, base, there, k_scale);
      add_values(score, values, v_scale);
    }
    share(warp);
  }

  __device__ void share(int warp) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pair = 2 * (lane_ % 4) + i;
      float total = pairs_[i].total;
      for (int apart = 4; apart < kWarp; apart *= 2) total += __shfl_xor_sync(0xffffffffu, total, apart);
      if (pairs_[i].position < 0) continue;  // it is not used
      if (lane_ < 4) s_.largest[warp][pair] = pairs_[i].largest, s_.total[warp][pair] = total;
#pragma unroll
      for (int t = 0; t < D / 16; ++t) {
        const int e = 64 * (t / 4) + 8 * (lane_ / 4) + 2 * (t % 4);
        s_.sum[warp][pair][e] = sum_[t][i], s_.sum[warp][pair][e + 1] = sum_[t][2 + i];
      }
    }
  }

  // By a thread of its own: the factors of a pair's results by warp, and what to do with the chunk.
  __device__ void join_warps(int pair, int32_t chunk) {
    if (s_.head[pair] < 0) return;
    float most = -INFINITY;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, s_.largest[w][pair]);
    float total = 0;
    for (int w = 0; w < kWarps; ++w) {
      s_.factor[w][pair] = weight_of(s_.largest[w][pair], most);
      total = fmaf(s_.total[w][pair], s_.factor[w][pair], total);
    }
    if (item_.partial >= 0) {
      partial_pairs()[partial_of(pair, chunk)] = {most, total};
      return;
    }
    Joined all{s_.joined_largest[pair], s_.joined_total[pair]};
    s_.chunk_factor[pair] = all.add(most, total);
    s_.joined_largest[pair] = all.largest, s_.joined_total[pair] = all.total;
  }
  __device__ float join_value(int pair, int e) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum = fmaf(s_.sum[w][pair][e], s_.factor[w][pair], sum);
    return sum;
  }
  __device__ void join_chunk() {
    each_value([&](int pair, int e) {
      const float2 f = s_.chunk_factor[pair];
      s_.joined[pair][e] = fmaf(s_.joined[pair][e], f.x, join_value(pair, e) * f.y);
    });
  }

  __device__ int64_t partial_of(int pair, int32_t chunk) const {
    return s_.partial[pair] + int64_t{chunk} * item_.rows * a_.heads;
  }
  __device__ float2* partial_pairs() const {
    return reinterpret_cast<float2*>(a_.partial + int64_t{kPartialsMax} * a_.layer.dim);
  }
  __device__ void store_chunk(int32_t chunk) const {
    each_value([&](int pair, int e) { a_.partial[partial_of(pair, chunk) * a_.layer.dim + e] = join_value(pair, e); });
  }

  // True for the block that came last, which then has all of the tile's chunks.
  __device__ bool join_stored() {
    __syncthreads();
    const int32_t chunks = chunk_count(item_.last);
    if (threadIdx.x == 0) {
      int32_t* const counter = a_.arrived + int64_t{item_.tile} * gridDim.y + blockIdx.y;
      __threadfence();  // of what the whole block has written, since they met
      s_.last = atomicAdd(counter, 1) == chunks - 1;
      if (s_.last) *counter = 0;
      __threadfence();
    }
    __syncthreads();
    if (!s_.last) return false;
    each_value([&](int pair, int e) {
      Joined all;
      float sum = 0;
#pragma unroll 4
      for (int32_t c = 0; c < chunks; ++c) {
        const int64_t at = partial_of(pair, c);
        const float2 part = __ldcg(partial_pairs() + at);
        const float2 f = all.add(part.x, part.y);
        sum = fmaf(sum, f.x, __ldcg(a_.partial + at * a_.layer.dim + e) * f.y);
      }
      s_.joined[pair][e] = sum;
      if (e == 0) s_.joined_largest[pair] = all.largest, s_.joined_total[pair] = all.total;
    });
    return true;
  }

  // A sink takes weight and adds no value.
  __device__ void finish() {
    __syncthreads();
    if (threadIdx.x < kTileHeads && s_.head[threadIdx.x] >= 0) {
      const int pair = threadIdx.x, head = head_of(pair);
      Joined all{s_.joined_largest[pair], s_.joined_total[pair]};
      const float shrink = a_.sinks && a_.sinks[head] > -INFINITY ? all.add(a_.sinks[head] * kLog2E, 1).x : 1.0f;
      s_.chunk_factor[pair].x = all.total > 0 ? shrink / all.total : all.total;  // a NaN stays one
      if (a_.log_sum_exp)
        a_.log_sum_exp[s_.head[pair]] = all.total > 0 ? (all.largest + log2f(all.total)) * kLn2 : -INFINITY;
    }
    __syncthreads();
    each_value([&](int pair, int e) {
      store_one(a_.bf16, a_.out, int64_t{s_.head[pair]} * a_.layer.dim + e,
                s_.joined[pair][e] * s_.chunk_factor[pair].x);
    });
  }

  const Attention& a_;
  Shared<D>& s_;
  const int lane_;
  const int32_t step_, count_;  // of items
  int kv_head_, head_in_group_, heads_;
  ChunkItem item_;
  int32_t lowest_, begin_, end_;
  // The item that find() looks at, and the slots of the step to come, whose keys are held, and of the one behind it.
  int32_t ahead_, ahead_lowest_, ahead_end_, ahead_base_;
  uint32_t ahead_blocks_;
  int32_t slots_, next_;
  Pair pairs_[2];
  uint32_t query_[kKeyLoads][4];
  Raw keys_[2][kKeyLoads];
  float sum_[D / 16][4];
};

// In a multiprocessor at a time.
template <int D>
constexpr int kBlocksOf = D <= 64    ? 4
                          : D <= 128 ? 3
                                     : 2;

template <class T, int D, bool kCapped>
__global__ void __launch_bounds__(kThreadsHere, kBlocksOf<D>) attend_items(const __grid_constant__ Attention a) {
  extern __shared__ __align__(16) std::byte memory[];
  // The batch came before the program's first kernel began: where keys lie is found while the kernel before this one
  // still writes some.
  ChunkAttention<T, D, kCapped> attention(a, *reinterpret_cast<Shared<D>*>(memory), blockIdx.x, gridDim.x);
  wait_for_earlier(a.batch.rows <= kLittle);
  attention.begin();
  const int32_t count = *a.chunk_items;
  for (int32_t i = blockIdx.x; i < count; i += gridDim.x) attention.run(a.chunks[i]);
}

template <class T, int D, bool kCapped>
void launch_kernel(const Attention& a, const CudaStream& stream) {
  allow_shared<attend_items<T, D, kCapped>>(sizeof(Shared<D>), "PAGED_ATTENTION: shared memory");
  const auto heads = static_cast<unsigned>(a.layer.kv_heads * a.head_tiles);
  const unsigned each = std::max(1u, static_cast<unsigned>(stream.processors() * kBlocksOf<D>) / heads);
  // Idle ones would keep the next kernel's blocks out.
  launch_early(stream, attend_items<T, D, kCapped>, dim3(std::min(each, a.chunks_most), heads), kThreadsHere,
               sizeof(Shared<D>), a);
}

}  // namespace

bool has_tensor_cores(const Layer& layer) {
  return layer.dtype != MOTLEY_F32 && layer.dim % 8 == 0 && layer.dim <= 256;
}

void attend_chunks(const Attention& a, const CudaStream& stream) {
  visit_kernel(a, [&]<class T, int D, bool kCapped>() { launch_kernel<T, D, kCapped>(a, stream); });
  launched("PAGED_ATTENTION");
}

}  // namespace motley::cuda
