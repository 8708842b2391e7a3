// Attention of many rows by warpgroups' instructions (compute capability 9.0a), heads of up to 128: two warpgroups have
// 64 rows each, a third one loads. While a tile's weights are found, the tensor cores multiply the values of the tile
// before it and the keys of the other warpgroup's. Tiles of positions lie at multiples of kTile: a row's bits depend on
// its own position alone.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/attention/pass.cuh"
#include "cuda/warpgroup.cuh"

namespace motley::cuda {

namespace {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kTakers = 2;   // warpgroups with rows
constexpr int kGroupRows = 64, kRows = kTakers * kGroupRows;
constexpr int kTile = 128;  // positions, and rows of all planes: one rule for where their pieces lie
static_assert(kRows == kTile && kRows == kPassRows && kGroup == kTile);
constexpr int kStages = 2;                 // of keys, and of values
constexpr int kPanelRow = 128;             // bytes: 64 numbers of a row
constexpr int kPanel = kTile * kPanelRow;  // bytes
constexpr int kAlign = 1024;               // of planes: the pattern in which pieces lie begins anew

template <int D>
constexpr int plane_bytes() {
  return D / 64 * kPanel;
}
// Queries, then keys and values of each stage.
template <int D>
constexpr int prompt_bytes() {
  return (1 + 2 * kStages) * plane_bytes<D>() + kAlign;
}

struct PromptShared {
  PassPlaces<kTile> places;
  uint64_t key_full[kStages], key_empty[kStages], value_full[kStages], value_empty[kStages];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Pieces of 16 bytes of a plane: panels of 64 numbers, [row][128 bytes], whose pieces lie where eight rows' pieces of
// one column are in all banks ("128-byte swizzle").
__device__ int panel_piece_at(int row, int piece) {
  return piece / 8 * kPanel + row * kPanelRow + ((piece % 8) ^ (row & 7)) * 16;
}
// A plane of values as the tensor cores find it: its rows are added over, and another panel lies kPanel behind.
__device__ uint64_t describe_columns(uint32_t plane) { return describe_pieces(plane, kPanel); }

#define MOTLEY_FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define MOTLEY_THIRTY_TWO(i)                                                                                          \
  MOTLEY_FOUR(i), MOTLEY_FOUR(i + 1), MOTLEY_FOUR(i + 2), MOTLEY_FOUR(i + 3), MOTLEY_FOUR(i + 4), MOTLEY_FOUR(i + 5), \
      MOTLEY_FOUR(i + 6), MOTLEY_FOUR(i + 7)
#define MOTLEY_PLACES_32                                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define MOTLEY_PLACES_64                                                                                   \
  MOTLEY_PLACES_32                                                                                         \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d = q k^T, or added to it, over 16 numbers; d += p v over 16 positions, of heads of 64 and of 128.
#define MOTLEY_PROMPT_MULTIPLY(type)                                                                \
  __device__ static void multiply_queries(float(&d)[16][4], uint64_t q, uint64_t k, bool more) {    \
    asm volatile(                                                                                   \
        "{.reg .pred more; setp.ne.b32 more, %66, 0;\n"                                             \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MOTLEY_PLACES_64          \
        "}, %64, %65, more, 1, 1, 0, 0;}"                                                           \
        : MOTLEY_THIRTY_TWO(0), MOTLEY_THIRTY_TWO(8)                                                \
        : "l"(q), "l"(k), "r"(static_cast<int>(more)));                                             \
  }                                                                                                 \
  __device__ static void multiply_values(float(&d)[16][4], const uint32_t(&p)[4], uint64_t v) {     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MOTLEY_PLACES_64 \
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                        \
                 : MOTLEY_THIRTY_TWO(0), MOTLEY_THIRTY_TWO(8)                                       \
                 : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));                             \
  }                                                                                                 \
  __device__ static void multiply_values(float(&d)[8][4], const uint32_t(&p)[4], uint64_t v) {      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" MOTLEY_PLACES_32  \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                        \
                 : MOTLEY_THIRTY_TWO(0)                                                             \
                 : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(v));                             \
  }
template <class Number>
struct Warpgroup;
template <>
struct Warpgroup<__half> {
  MOTLEY_PROMPT_MULTIPLY("f16")
};
template <>
struct Warpgroup<__nv_bfloat16> {
  MOTLEY_PROMPT_MULTIPLY("bf16")
};
#undef MOTLEY_PROMPT_MULTIPLY

// Keeps the compiler from moving sums that the tensor cores write.
template <int n>
__device__ void hold(float (&d)[n][4]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : MOTLEY_FOUR(i)::"memory");
}
// Of the threads of one warpgroup; the first barrier is the block's own.
__device__ inline void meet(int group) { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kGroup) : "memory"); }
// Arrives when all copies that the thread asked for have come.
template <class T>
__device__ void arrive_with_copies(uint64_t* barrier) {
  if constexpr (sizeof(typename Numbers<T>::Raw) == sizeof(uint4)) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
  } else {
    show_copies();
    arrive(barrier);
  }
}

// The tiles of an item, from the first to the last, and which stage and phase has each.
struct Turns {
  int first, last;
  __device__ explicit Turns(const PassHead& h) : first(h.begin / kTile), last(h.end / kTile) {}
  __device__ int stage(int tile) const { return (tile - first) % kStages; }
  __device__ uint32_t phase(int tile) const { return (tile - first) / kStages % 2; }
};

// The warpgroup that loads.
template <class T, int D>
class PromptLoader {
 public:
  __device__ PromptLoader(const Attention& a, const PassHead& h, PromptShared& shared, uint32_t keys, int thread)
      : a_(a), h_(h), shared_(shared), keys_(keys), thread_(thread) {}

  __device__ void run() {
    const Turns turns(h_);
    PassPlace next = find(turns.first);
    for (int tile = turns.first; tile <= turns.last; ++tile) {
      const int stage = turns.stage(tile);
      wait_for_phase(&shared_.key_empty[stage], turns.phase(tile) ^ 1);
      keep_place<T, kTile>(shared_.places, next, tile, thread_);
      meet(kTakers);
      load(tile, a_.layer.k, keys_ + 2 * stage * plane_bytes<D>());
      arrive_with_copies<T>(&shared_.key_full[stage]);
      if (tile < turns.last) next = find(tile + 1);
      wait_for_phase(&shared_.value_empty[stage], turns.phase(tile) ^ 1);
      load(tile, a_.layer.v, keys_ + (2 * stage + 1) * plane_bytes<D>());
      arrive_with_copies<T>(&shared_.value_full[stage]);
    }
  }

 private:
  __device__ PassPlace find(int tile) const { return find_place<T, kTile>(a_, h_, tile, thread_); }
  // A thread has one column of pieces.
  __device__ void load(int tile, const std::byte* plane, uint32_t to) const {
    constexpr int kPieces = D / 8, kApart = kGroup / kPieces;  // rows
    const int first = thread_ / kPieces, piece = thread_ % kPieces;
    const PieceColumn<T> column(a_, h_, piece);
    const int32_t* const slots = shared_.places.slot[tile % kFound];
    copy_pieces<T, kTile / kApart>([&](int i, uint32_t* at, const std::byte** from) {
      const int row = first + i * kApart;
      *at = to + panel_piece_at(row, piece);
      return column.find(plane, slots[row], from);
    });
  }

  const Attention& a_;
  const PassHead& h_;
  PromptShared& shared_;
  const uint32_t keys_;
  const int thread_;
};

// A warpgroup with rows.
template <class T, int D, bool kCapped>
class PromptTaker {
  using W = Warpgroup<typename Numbers<T>::Multiplied>;

 public:
  __device__ PromptTaker(const Attention& a, const PassHead& h, PromptShared& shared, std::byte* memory, uint32_t keys)
      : a_(a),
        h_(h),
        shared_(shared),
        keys_(keys),
        group_(static_cast<int>(threadIdx.x) / kGroup),
        rows_(a, h, static_cast<int>(threadIdx.x) / kWarp * 16) {
    load_query(memory);
    query_ = shared_address(memory) + static_cast<uint32_t>(group_ * kGroupRows * kPanelRow);
  }

  __device__ void run() {
    const Turns turns(h_);
    const int back = min((group_ + 1) * kGroupRows, h_.item.rows) - 1;  // the group's last row
    const int last = back < group_ * kGroupRows ? turns.first - 1 : a_.batch.positions[h_.item.row + back] / kTile;
    if (last >= turns.first) attend(turns, last);
    for (int tile = max(last + 1, turns.first); tile <= turns.last; ++tile) {  // no row of the group sees these
      const int stage = turns.stage(tile);
      wait_for_phase(&shared_.key_full[stage], turns.phase(tile));
      leave(&shared_.key_empty[stage]);
      wait_for_phase(&shared_.value_full[stage], turns.phase(tile));
      leave(&shared_.value_empty[stage]);
    }
    rows_.finish(sum_);
  }

 private:
  __device__ void load_query(std::byte* memory) const {
    constexpr int kPieces = D / 8, kApart = kGroup / kPieces;
    const int thread = threadIdx.x % kGroup, piece = thread % kPieces;
    uint4 pieces[kGroupRows / kApart];
    const auto row_of = [&](int i) { return group_ * kGroupRows + thread / kPieces + i * kApart; };
#pragma unroll
    for (int i = 0; i < kGroupRows / kApart; ++i) pieces[i] = query_piece<T>(a_, h_, row_of(i), piece);
#pragma unroll
    for (int i = 0; i < kGroupRows / kApart; ++i)
      *reinterpret_cast<uint4*>(memory + panel_piece_at(row_of(i), piece)) = pieces[i];
    show_copies();
    meet(group_);
  }
  __device__ static void leave(uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) arrive(barrier);
  }

  __device__ void attend(const Turns& turns, int last) {
    float score[kTile / 8][4], shrink[2];
    uint32_t weights[kTile / 16][4];
    ask_for_scores(turns, turns.first, score);
    wait_for_products<0>();
    hold(score);
    leave(&shared_.key_empty[0]);
    rows_.look(score, shared_.places, turns.first);
    rows_.weigh(score, shrink);  // nothing is to be shrunk yet
    take_weights(weights, score, turns.first);
    for (int tile = turns.first + 1; tile <= last; ++tile) {
      ask_for_scores(turns, tile, score);
      add_values(turns, tile - 1, weights);
      wait_for_products<1>();
      hold(score);
      leave(&shared_.key_empty[turns.stage(tile)]);
      rows_.look(score, shared_.places, tile);
      const bool grown = rows_.weigh(score, shrink);
      wait_for_products<0>();
      hold(sum_);
      leave(&shared_.value_empty[turns.stage(tile - 1)]);
      if (grown) rows_.shrink_sums(sum_, shrink);
      take_weights(weights, score, tile);
    }
    add_values(turns, last, weights);
    wait_for_products<0>();
    hold(sum_);
    leave(&shared_.value_empty[turns.stage(last)]);
  }
  __device__ void take_weights(uint32_t (&weights)[kTile / 16][4], const float (&score)[kTile / 8][4], int tile) const {
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) rows_.take_weights(weights[s], score, shared_.places, tile, s);
  }

  __device__ void ask_for_scores(const Turns& turns, int tile, float (&score)[kTile / 8][4]) {
    const int stage = turns.stage(tile);
    wait_for_phase(&shared_.key_full[stage], turns.phase(tile));
    show_copies();
    const uint64_t q = describe_pieces(query_), k = describe_pieces(keys_ + 2 * stage * plane_bytes<D>());
    hold(score);
    begin_products();
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      constexpr int kOfPanel = 64 / 16;
      const auto at = static_cast<uint64_t>((s / kOfPanel * kPanel + s % kOfPanel * 32) >> 4);
      W::multiply_queries(score, q + at, k + at, s > 0);
    }
    close_products();
  }
  __device__ void add_values(const Turns& turns, int tile, const uint32_t (&weights)[kTile / 16][4]) {
    const int stage = turns.stage(tile);
    wait_for_phase(&shared_.value_full[stage], turns.phase(tile));
    show_copies();
    const uint64_t v = describe_columns(keys_ + (2 * stage + 1) * plane_bytes<D>());
    hold(sum_);
    begin_products();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) W::multiply_values(sum_, weights[s], v + ((s * 16 * kPanelRow) >> 4));
    close_products();
  }

  const Attention& a_;
  const PassHead& h_;
  PromptShared& shared_;
  const uint32_t keys_;
  const int group_;
  PassRows<T, D, kTile, kCapped> rows_;
  uint32_t query_;
  float sum_[D / 8][4] = {};
};

template <class T, int D, bool kCapped>
__device__ void attend_prompt(const Attention& a, std::byte* memory, PromptShared& shared) {
  const PassHead h(a);
  const uint32_t keys = shared_address(memory) + plane_bytes<D>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      make_barrier(&shared.key_full[i], kGroup), make_barrier(&shared.value_full[i], kGroup);
      make_barrier(&shared.key_empty[i], kTakers * kGroup / kWarp);
      make_barrier(&shared.value_empty[i], kTakers * kGroup / kWarp);
    }
    barriers_made();
  }
  __syncthreads();
  if (threadIdx.x / kGroup == kTakers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    PromptLoader<T, D>(a, h, shared, keys, threadIdx.x % kGroup).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    PromptTaker<T, D, kCapped>(a, h, shared, memory, keys).run();
  }
}

#undef MOTLEY_FOUR
#undef MOTLEY_THIRTY_TWO
#undef MOTLEY_PLACES_32
#undef MOTLEY_PLACES_64
#endif

template <class T, int D, bool kCapped>
__global__ void __launch_bounds__((kTakers + 1) * kGroup, 1) attend_prompts_of(const __grid_constant__ Attention a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte all[];
  __shared__ PromptShared shared;
  std::byte* const memory = all + (kAlign - shared_address(all) % kAlign) % kAlign;
  attend_prompt<T, D, kCapped>(a, memory, shared);
#endif
}

// Whether the GPU has code of these kernels, and not from another one's intermediate code.
template <class T, int D, bool kCapped>
bool is_built() {
  static const bool built = [] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, attend_prompts_of<T, D, kCapped>), "PAGED_ATTENTION");
    return attributes.ptxVersion >= 90;
  }();
  return built;
}

}  // namespace

bool attend_prompts(const Attention& a, cudaStream_t stream) {
  bool done = false;
  visit_kernel(a, [&]<class T, int D, bool kCapped>() {
    if constexpr (by_warpgroups(D)) {
      if (!is_built<T, D, kCapped>()) return;
      allow_shared<attend_prompts_of<T, D, kCapped>>(prompt_bytes<D>(), "PAGED_ATTENTION: shared memory");
      each_pass_launch(a, [&](const Attention& part, unsigned items) {
        attend_prompts_of<T, D, kCapped>
            <<<dim3(static_cast<unsigned>(a.heads), items), (kTakers + 1) * kGroup, prompt_bytes<D>(), stream>>>(part);
      });
      done = true;
    }
  });
  return done;
}

}  // namespace motley::cuda
