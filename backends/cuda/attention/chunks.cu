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

// What a block of threads shares. The rows of sums are (row, head) pairs.
template <int D>
struct Shared {
  float sum[2][kWarps][kTileHeads][D + kPad];  // by each warp of a chunk, and of the one before
  float joined[kTileHeads][D + kPad];
  float4 largest[2][kTileHeads], total[2][kTileHeads];  // of a pair, a number a warp
  float2 joined_state[2][kTileHeads];                   // largest and total up to a chunk, and up to the one before
  int32_t head[kTileHeads];                             // of a pair, among all rows' heads; -1: the pair is not used
  int64_t partial[kTileHeads];                          // of a pair, its first chunk's place
  alignas(16) uint8_t own[2][2 * D];  // the item's own key and value, as the pool has them, if they are stored here
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
  static_assert(kWarps == 4);  // numbers of warps lie in a float4

 public:
  // Items first, first + step, ...
  __device__ ChunkAttention(const Attention& a, Shared<D>& s, int32_t first, int32_t step)
      : a_(a), s_(s), lane_(threadIdx.x % kWarp), step_(step), count_(*a.chunk_items) {
    kv_head_ = blockIdx.y / a.head_tiles;
    head_in_group_ = blockIdx.y % a.head_tiles * kTileHeads;
    heads_ = min(a.heads_of_tile, a.group - head_in_group_);
    position_bytes_ = static_cast<uint32_t>(a.layer.kv_heads * a.layer.dim) * static_cast<uint32_t>(sizeof(T));
    const auto head_at = [&](const std::byte* plane, int e) {
      return plane + static_cast<int64_t>(kv_head_ * a.layer.dim + e) * static_cast<int64_t>(sizeof(T));
    };
    keys_at_ = head_at(a.layer.k, 8 * (lane_ % 4)), values_at_ = head_at(a.layer.v, 8 * (lane_ / 4));
    look_at(first);
    slots_ = find();
    next_ = find();
  }
  __device__ void begin() { load_keys(slots_); }

  __device__ void run(const ChunkItem& item) {
    item_ = item;
    const int32_t lowest = lowest_of(item.front);
    if (threadIdx.x < kTileHeads) start_pair(threadIdx.x);
    load_query();
    own_ = kElsewhere;
    if (a_.turns) {
      if (item.chunk_end == chunk_count(item.last)) keep_own();
      __syncthreads();
    }
    const int32_t length = chunk_positions(item.last);
    for (int32_t c = item.chunk_begin; c < item.chunk_end; ++c, turn_ ^= 1) {
      attend(max(c * length, lowest), min((c + 1) * length - 1, item.last));
      __syncthreads();  // once a chunk: the next one's sums have places of their own
      join_warps(c);
    }
    if (item.partial >= 0 && !join_stored()) return;
    if (item.partial < 0) finish();
    __syncthreads();
  }

 private:
  // The (row, head) pair of a row of the tile.
  __device__ int row_of(int pair) const { return item_.row + pair / a_.heads_of_tile; }
  __device__ int head_of(int pair) const { return kv_head_ * a_.group + head_in_group_ + pair % a_.heads_of_tile; }
  __device__ bool is_used(int pair) const {
    return pair < item_.rows * a_.heads_of_tile && pair % a_.heads_of_tile < heads_;
  }
  // Values come in fours: f(pair, the first one's dimension).
  template <class F>
  __device__ void each_four(F f) const {
    const int count = item_.rows * a_.heads_of_tile * (D / 4);
    for (int i = threadIdx.x; i < count; i += kThreadsHere) {
      const int pair = i / (D / 4), e = i % (D / 4) * 4;
      if (s_.head[pair] >= 0 && e < a_.layer.dim) f(pair, e);
    }
  }
  __device__ void start_pair(int pair) {
    s_.head[pair] = is_used(pair) ? row_of(pair) * a_.heads + head_of(pair) : -1;
    s_.partial[pair] = int64_t{item_.partial + pair / a_.heads_of_tile} * a_.heads + head_of(pair);
  }

  __device__ float4 load_four(const float* from) const {
    if (a_.aligned) return *reinterpret_cast<const float4*>(from);
    return {from[0], from[1], from[2], from[3]};
  }
  // The thread holds its pair's query as a column, and scores of two more pairs.
  __device__ void load_query() {
    const int pair = lane_ / 4;
    const int64_t at = (int64_t{row_of(pair)} * a_.heads + head_of(pair)) * a_.layer.dim;
    a_.packed ? take_packed_query(pair, at) : take_query(pair, at);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int mine = 2 * (lane_ % 4) + i;
      pairs_[i] = Pair();
      if (!is_used(mine)) continue;
      pairs_[i].position = a_.batch.positions[row_of(mine)];
      pairs_[i].first = a_.window > 0 ? max(0, pairs_[i].position - a_.window + 1) : 0;
    }
  }
  __device__ void take_packed_query(int pair, int64_t at) {
#pragma unroll
    for (int s = 0; s < kKeyLoads; ++s) {
      const int e = 32 * s + 8 * (lane_ % 4);
      const uint4 x = is_used(pair) && e < a_.layer.dim ? static_cast<const uint4*>(a_.q)[(at + e) / 8] : uint4{};
      query_[s][0] = x.x, query_[s][1] = x.y, query_[s][2] = x.z, query_[s][3] = x.w;
    }
  }
  __device__ void take_query(int pair, int64_t at) {
    const float* from = static_cast<const float*>(a_.q) + at;
    Eight query[kKeyLoads];
#pragma unroll
    for (int s = 0; s < kKeyLoads; ++s) {
      const int e = 32 * s + 8 * (lane_ % 4);
      const bool there = is_used(pair) && e < a_.layer.dim;
      query[s] = {there ? load_four(from + e) : float4{}, there ? load_four(from + e + 4) : float4{}};
    }
    if (a_.turns && is_used(pair)) turn_query(query, row_of(pair));
#pragma unroll
    for (int s = 0; s < kKeyLoads; ++s) {
      const float4 &x = query[s].a, &y = query[s].b;
      query_[s][0] = N::pack(x.x, x.y), query_[s][1] = N::pack(x.z, x.w);
      query_[s][2] = N::pack(y.x, y.y), query_[s][3] = N::pack(y.z, y.w);
    }
  }

  __device__ void turn_query(Eight (&query)[kKeyLoads], int row) const {
    const Turn& turn = a_.own.turn;
    if (!turn.neighbours) {
      if (turn.pairs == 32) turn_halves<1>(query, row);
      if (turn.pairs == 64) turn_halves<2>(query, row);
      if (turn.pairs == 128) turn_halves<4>(query, row);
      return;
    }
#pragma unroll
    for (int s = 0; s < kKeyLoads; ++s) {
      const int e = 32 * s + 8 * (lane_ % 4);
      if (e >= 2 * turn.pairs) continue;
      const FourTurns t(turn, row, e / 2);
      query[s] = turned_eight(query[s], t.of, true);
    }
  }
  // A pair's numbers lie in loads that are kApart from each other.
  template <int kApart>
  __device__ void turn_halves(Eight (&query)[kKeyLoads], int row) const {
#pragma unroll
    for (int s = 0; s < kApart && s + kApart < kKeyLoads; ++s) {
      const int e = 32 * s + 8 * (lane_ % 4);
      Eight &x = query[s], &y = query[s + kApart];
      const FourTurns t(a_.own.turn, row, e), u(a_.own.turn, row, e + 4);
      const Eight low = turned_eight({x.a, y.a}, t.of, false), high = turned_eight({x.b, y.b}, u.of, false);
      x = {low.a, high.a}, y = {low.b, high.b};
    }
  }

  // A row's own position, if its key and value do not come from the pool.
  __device__ int32_t own_position(const ChunkItem& item) const {
    const int32_t slot = a_.own.slots[item.row];
    return slot >= 0 && slot == slot_of(a_, a_.batch.blocks + item.blocks, item.last) ? item.last : kElsewhere;
  }
  // The key and the value of the item's one row go to the pool, and to whoever takes its position's step.
  __device__ void keep_own() {
    own_ = own_position(item_);
    const int32_t dim = a_.layer.dim, slot = a_.own.slots[item_.row];
    const bool stored = slot >= 0 && head_in_group_ == 0;
    const int64_t to = (int64_t{slot} * a_.layer.kv_heads + kv_head_) * dim;
    for (int i = threadIdx.x; i < 2 * (D / 8); i += kThreadsHere) {
      const bool keys = i < D / 8;
      const int unit = i % (D / 8);
      EightOf of(a_.own.turn, unit, keys);
      Eight x{};
      if (8 * unit < dim) {
        const float* const from =
            (keys ? a_.own.k : a_.own.v) + (int64_t{item_.row} * a_.layer.kv_heads + kv_head_) * dim;
        x = {load_four(from + of.first), load_four(from + of.second)};
        if (of.turned) x = turned_eight(x, FourTurns(a_.own.turn, item_.row, 4 * unit).of, a_.own.turn.neighbours);
        std::byte* const plane = keys ? a_.layer.k : a_.layer.v;
        if (stored)
          store_four_as(a_.layer.dtype, x.a, plane, to + of.first),
              store_four_as(a_.layer.dtype, x.b, plane, to + of.second);
      }
      store_four_as(a_.layer.dtype, x.a, s_.own[!keys], of.first);
      store_four_as(a_.layer.dtype, x.b, s_.own[!keys], of.second);
    }
  }
  // Of a step's 16 positions, position `own`.
  __device__ void take_own(int32_t own, Raw (&values)[4][kValueLoads]) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (8 * n + lane_ / 4 != own) continue;
#pragma unroll
      for (int s = 0; s < kKeyLoads; ++s) keys_[n][s] = own_at(0, 32 * s + 8 * (lane_ % 4));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (2 * (lane_ % 4) + i % 2 + 8 * (i / 2) != own) continue;
#pragma unroll
      for (int u = 0; u < kValueLoads; ++u) values[i][u] = own_at(1, 64 * u + 8 * (lane_ / 4));
    }
  }
  __device__ const Raw& own_at(int plane, int e) const {
    return *reinterpret_cast<const Raw*>(s_.own[plane] + e * static_cast<int>(sizeof(T)));
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
      ahead_own_ = a_.turns ? own_position(item) : kElsewhere;
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
    const bool seen = p >= ahead_lowest_ && p <= ahead_end_ && p != ahead_own_;
    const int32_t slot = seen ? slot_of(a_, a_.batch.blocks + ahead_blocks_, p) : -1;
    ahead_base_ += kRound;
    if (ahead_base_ > ahead_end_) look_at(ahead_ + step_);
    return slot;
  }
  // Bytes of the dimension that the lane's loads begin with, and how many dimensions there are from it on: none of a
  // position that is not seen.
  __device__ const std::byte* at(const std::byte* plane, int32_t slot) const {
    return plane + uint64_t{static_cast<uint32_t>(max(slot, 0))} * position_bytes_;
  }
  __device__ void load_keys(int32_t slots) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int32_t slot = __shfl_sync(0xffffffffu, slots, 8 * n + lane_ / 4);
      const std::byte* const from = at(keys_at_, slot);
      const int left = slot >= 0 ? a_.layer.dim - 8 * (lane_ % 4) : 0;
#pragma unroll
      for (int s = 0; s < kKeyLoads; ++s)
        load_if(keys_[n][s], from + 32 * s * static_cast<int>(sizeof(T)), left, 32 * s);
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
      const std::byte* const from = at(values_at_, slot);
      const int left = slot >= 0 ? a_.layer.dim - 8 * (lane_ / 4) : 0;
#pragma unroll
      for (int u = 0; u < kValueLoads; ++u)
        load_if(values[i][u], from + 64 * u * static_cast<int>(sizeof(T)), left, 64 * u);
    }
  }
  __device__ float scale_at(const float* scales, int32_t slot) const {
    return slot < 0 ? 0.0f : scales[int64_t{slot} * a_.layer.kv_heads + kv_head_];
  }
  // Scores of the step's positions become weights; sums are shrunk where a larger score came. score[2 * h + i] is of
  // pair 2 * (lane % 4) + i at position base + 8 * h + lane / 4. Bit k of `there`: whether the k-th position has a
  // slot.
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
        const bool seen = p >= pair.first && p <= pair.position && (there >> column & 1) != 0;
        x = seen ? x * factor : -INFINITY;
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
      const int32_t own = own_ - base;
      const bool takes_own = own >= 0 && own < kStep;
      if (takes_own) take_own(own, values);
      float k_scale = 1, v_scale = 1;
      if constexpr (N::kScaled)
        k_scale = scale_at(a_.layer.k_scale, slots_), v_scale = scale_at(a_.layer.v_scale, slots_);
      float score[4];
      multiply_keys(score);
      const uint32_t there = __ballot_sync(0xffffffffu, slots_ >= 0) | (takes_own ? 1u << own : 0u);
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
      if (lane_ < 4) {
        reinterpret_cast<float*>(&s_.largest[turn_][pair])[warp] = pairs_[i].largest;
        reinterpret_cast<float*>(&s_.total[turn_][pair])[warp] = total;
      }
#pragma unroll
      for (int t = 0; t < D / 16; t += 2) {
        const int e = 64 * (t / 4) + 8 * (lane_ / 4) + 2 * (t % 4);
        *reinterpret_cast<float4*>(&s_.sum[turn_][warp][pair][e]) = {sum_[t][i], sum_[t][2 + i], sum_[t + 1][i],
                                                                     sum_[t + 1][2 + i]};
      }
    }
  }

  // A chunk's results, of the warps in order, go where they wait for the others or to what is joined so far.
  __device__ void join_warps(int32_t chunk) {
    each_four([&](int pair, int e) {
      const float4 largest = s_.largest[turn_][pair], totals = s_.total[turn_][pair];
      const float most = fmaxf(fmaxf(fmaxf(largest.x, largest.y), largest.z), largest.w);
      const float factor[kWarps] = {weight_of(largest.x, most), weight_of(largest.y, most), weight_of(largest.z, most),
                                    weight_of(largest.w, most)};
      float total = 0;
      total = fmaf(totals.x, factor[0], total), total = fmaf(totals.y, factor[1], total);
      total = fmaf(totals.z, factor[2], total), total = fmaf(totals.w, factor[3], total);
      float4 sum{};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) add_times(sum, four_at(s_.sum[turn_][w][pair], e), factor[w]);
      if (item_.partial >= 0) {
        const int64_t at = partial_of(pair, chunk);
        four_at(a_.partial + at * a_.layer.dim, e) = sum;
        if (e == 0) partial_pairs()[at] = {most, total};
        return;
      }
      Joined all;
      float4 joined{};
      if (chunk > item_.chunk_begin) {
        all = {s_.joined_state[turn_ ^ 1][pair].x, s_.joined_state[turn_ ^ 1][pair].y};
        joined = four_at(s_.joined[pair], e);
      }
      join(joined, sum, all.add(most, total));
      four_at(s_.joined[pair], e) = joined;
      if (e == 0) s_.joined_state[turn_][pair] = {all.largest, all.total};
    });
  }
  __device__ static float4& four_at(float* values, int e) { return *reinterpret_cast<float4*>(values + e); }
  __device__ static void add_times(float4& sum, float4 x, float factor) {
    sum = {fmaf(x.x, factor, sum.x), fmaf(x.y, factor, sum.y), fmaf(x.z, factor, sum.z), fmaf(x.w, factor, sum.w)};
  }
  // Factors of what is joined and of what comes.
  __device__ static void join(float4& sum, float4 x, float2 f) {
    sum = {fmaf(sum.x, f.x, x.x * f.y), fmaf(sum.y, f.x, x.y * f.y), fmaf(sum.z, f.x, x.z * f.y),
           fmaf(sum.w, f.x, x.w * f.y)};
  }

  __device__ int64_t partial_of(int pair, int32_t chunk) const {
    return s_.partial[pair] + int64_t{chunk} * item_.rows * a_.heads;
  }
  __device__ float2* partial_pairs() const {
    return reinterpret_cast<float2*>(a_.partial + int64_t{kPartialsMax} * a_.layer.dim);
  }

  // True for the block that came last, which then has written what all of the tile's chunks give.
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
    each_four([&](int pair, int e) {
      Joined all;
      float4 sum{};
#pragma unroll 4
      for (int32_t c = 0; c < chunks; ++c) {
        const int64_t at = partial_of(pair, c);
        const float2 part = __ldcg(partial_pairs() + at);
        const float4 more = __ldcg(reinterpret_cast<const float4*>(a_.partial + at * a_.layer.dim + e));
        join(sum, more, all.add(part.x, part.y));
      }
      write(pair, e, all, sum);
    });
    return true;
  }

  __device__ void finish() {
    __syncthreads();
    each_four([&](int pair, int e) {
      const float2 state = s_.joined_state[turn_ ^ 1][pair];
      write(pair, e, {state.x, state.y}, four_at(s_.joined[pair], e));
    });
  }
  // A sink takes weight and adds no value.
  __device__ void write(int pair, int e, Joined all, float4 sum) const {
    const int head = head_of(pair);
    const float shrink = a_.sinks && a_.sinks[head] > -INFINITY ? all.add(a_.sinks[head] * kLog2E, 1).x : 1.0f;
    const float factor = all.total > 0 ? shrink / all.total : all.total;  // a NaN stays one
    const float4 x{sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
    const int64_t at = int64_t{s_.head[pair]} * a_.layer.dim + e;
    if (a_.aligned) {
      store_four(a_.stored, a_.out, at / 4, x);
    } else {
      store_two(a_.stored, a_.out, at, x.x, x.y);
      store_two(a_.stored, a_.out, at + 2, x.z, x.w);
    }
    if (e == 0 && a_.log_sum_exp)
      a_.log_sum_exp[s_.head[pair]] = all.total > 0 ? (all.largest + log2f(all.total)) * kLn2 : -INFINITY;
  }

  const Attention& a_;
  Shared<D>& s_;
  const int lane_;
  const int32_t step_, count_;  // of items
  int kv_head_, head_in_group_, heads_;
  uint32_t position_bytes_;                // of all KV heads
  const std::byte *keys_at_, *values_at_;  // of the pool's first position, what the lane begins with
  ChunkItem item_;
  int turn_ = 0;                                      // of two places
  static constexpr int32_t kElsewhere = -1 - kRound;  // no step has it
  int32_t own_ = kElsewhere;                          // the item's position whose key and value are in shared memory
  // The item that find() looks at, and the slots of the step to come, whose keys are held, and of the one behind it.
  int32_t ahead_, ahead_lowest_, ahead_end_, ahead_base_, ahead_own_;
  uint32_t ahead_blocks_;
  int32_t slots_, next_;
  Pair pairs_[2];
  uint32_t query_[kKeyLoads][4];
  Raw keys_[2][kKeyLoads];
  float sum_[D / 16][4];
};

template <int D>
constexpr int kBlocksOf = AttentionShape{1, 1, D}.blocks_at_once();

template <class T, int D, bool kCapped>
__global__ void __launch_bounds__(kThreadsHere, kBlocksOf<D>) attend_items(const __grid_constant__ Attention a) {
  extern __shared__ __align__(16) std::byte memory[];
  // The batch came before the program's first kernel began: where keys lie is found while the kernel before this one
  // still writes some.
  ChunkAttention<T, D, kCapped> attention(a, *reinterpret_cast<Shared<D>*>(memory), blockIdx.x, gridDim.x);
  if (a.turns) attention.begin();  // the pool is not what the kernel before writes
  wait_for_earlier(a.batch.rows <= kLittle);
  if (!a.turns) attention.begin();
  const int32_t count = *a.chunk_items;
  for (int32_t i = blockIdx.x; i < count; i += gridDim.x) attention.run(a.chunks[i]);
}

template <class T, int D, bool kCapped>
void launch_kernel(const Attention& a, const CudaStream& stream) {
  allow_shared<attend_items<T, D, kCapped>>(sizeof(Shared<D>), "PAGED_ATTENTION: shared memory");
  const auto heads = static_cast<unsigned>(a.layer.kv_heads * a.head_tiles);
  const AttentionShape shape{a.heads, a.layer.kv_heads, a.layer.dim};
  const auto each = static_cast<unsigned>(shape.items_at_once(stream.processors()));
  // Idle ones would keep the next kernel's blocks out.
  launch_early(stream, attend_items<T, D, kCapped>, dim3(std::min(each, a.chunks_most), heads), kThreadsHere,
               sizeof(Shared<D>), a);
}

}  // namespace

bool has_tensor_cores(const Layer& layer) {
  return layer.dtype != MOTLEY_F32 && layer.dim % 8 == 0 && layer.dim <= 256;
}

bool can_turn(const Attention& a) {
  const Turn& turn = a.own.turn;
  const bool pairs_fit =
      turn.neighbours ? turn.pairs % 4 == 0 : turn.pairs == 32 || turn.pairs == 64 || turn.pairs == 128;
  return a.layer.dtype != MOTLEY_I8 && pairs_fit && 2 * turn.pairs <= a.layer.dim && a.aligned && is_aligned(a.own.k) &&
         is_aligned(a.own.v) && is_aligned(turn.turns) && is_aligned(a.layer.k) && is_aligned(a.layer.v);
}

void attend_chunks(const Attention& a, const CudaStream& stream) {
  visit_kernel(a, [&]<class T, int D, bool kCapped>() { launch_kernel<T, D, kCapped>(a, stream); });
  launched("PAGED_ATTENTION");
}

}  // namespace motley::cuda
