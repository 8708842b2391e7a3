// Attention of many rows by warpgroups' instructions (compute capability 9.0a), heads of up to 128: two warpgroups have
// 64 rows each, a third one loads. While a tile's weights are found, the tensor cores multiply the values of the tile
// before it and the keys of the other warpgroup's. Tiles of positions lie at multiples of kTile: a row's bits depend on
// its own position alone. Numbers of two bytes come by the copy engine, in boxes of neighbouring positions; what only
// part of a box's positions are for, and all other numbers, by threads. There is a block of threads for each
// multiprocessor; each takes an item for a head after the other, those with most positions first, and loads the next
// one's keys while it is at the last tiles of the one before. SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/attention/pass.cuh"
#include "cuda/boxes.hpp"
#include "cuda/warpgroup.cuh"

namespace motley::cuda {

namespace {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kTakers = 2;   // warpgroups with rows
constexpr int kGroupRows = 64, kRows = kTakers * kGroupRows;
constexpr int kTile = 128;  // positions, and rows of all planes: one rule for where their pieces lie
static_assert(kRows == kTile && kRows == kPassRows && kGroup == kTile);
constexpr int kKeyStages = 2, kValueStages = 3;
constexpr int kJobs = 2;                   // that are known at a time
constexpr int kPanelRow = kBoxRow;         // bytes: 64 numbers of a row
constexpr int kPanel = kTile * kPanelRow;  // bytes
constexpr int kAlign = 1024;               // of planes: the pattern in which pieces lie begins anew

template <int D>
constexpr int plane_bytes() {
  return D / 64 * kPanel;
}
// Queries, then keys and values of each stage.
template <int D>
constexpr int prompt_bytes() {
  return (1 + kKeyStages + kValueStages) * plane_bytes<D>() + kAlign;
}
// Which of `count` comes next, and the parity of its barriers' phase.
template <int count>
struct Ring {
  int at = 0;
  uint32_t phase = 0;
  __device__ void step() {
    if (++at == count) at = 0, phase ^= 1;
  }
};

// How the copy engine reads the layer; rows: of a box, 0 where it does not.
struct Boxes {
  CUtensorMap k, v;
  int rows;
};
constexpr int kBoxRowsLeast = 8, kBoxRowsMost = 16;  // the pattern in which pieces lie is of eight rows

struct PromptShared {
  PassPlaces<kTile> places;
  int32_t job[kJobs];
  uint64_t job_full[kJobs], job_empty[kJobs];
  uint64_t query_full[kTakers], query_empty[kTakers];  // of each warpgroup's rows
  uint64_t key_full[kKeyStages], key_empty[kKeyStages], value_full[kValueStages], value_empty[kValueStages];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define MOTLEY_GATE(name)                                                                               \
  __device__ uint32_t name(int i) const {                                                               \
    return shared + static_cast<uint32_t>(offsetof(PromptShared, name)) + static_cast<uint32_t>(i) * 8; \
  }
// The addresses of the barriers, found once.
struct Gates {
  uint32_t shared;
  MOTLEY_GATE(job_full)
  MOTLEY_GATE(job_empty)
  MOTLEY_GATE(query_full)
  MOTLEY_GATE(query_empty)
  MOTLEY_GATE(key_full)
  MOTLEY_GATE(key_empty)
  MOTLEY_GATE(value_full)
  MOTLEY_GATE(value_empty)
};
#undef MOTLEY_GATE

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
// A job is an item for a head; the first heads first.
__device__ inline int32_t all_jobs(const Attention& a) { return a.passes_count * a.heads; }
__device__ inline PassHead head_of(const Attention& a, int32_t job) { return {a, job % a.heads, job / a.heads}; }

// Where a stage's keys and values are.
template <int D>
__device__ uint32_t at_stage(uint32_t keys, const Ring<kKeyStages>& stage) {
  return keys + stage.at * plane_bytes<D>();
}
template <int D>
__device__ uint32_t at_stage(uint32_t keys, const Ring<kValueStages>& stage) {
  return keys + (kKeyStages + stage.at) * plane_bytes<D>();
}
// The tiles of a job.
__device__ inline int first_tile(const PassHead& h) { return h.begin / kTile; }
__device__ inline int last_tile(const PassHead& h) { return h.end / kTile; }

// Which jobs a block takes; said by the loading warpgroup's first thread. The launch's blocks share a.arrived[0], how
// many jobs were asked for, and a.arrived[1], how many blocks have ended; both are zero again when all have.
class Jobs {
 public:
  __device__ Jobs(const Attention& a, PromptShared& shared, Gates gates) : a_(a), shared_(shared), gates_(gates) {}
  // By the first thread, before each take().
  __device__ void say() {
    wait_for_phase(gates_.job_empty(turn_.at), turn_.phase ^ 1);
    shared_.job[turn_.at] = next_;
    arrive(gates_.job_full(turn_.at));
    if (next_ < all_jobs(a_)) next_ = static_cast<int32_t>(gridDim.x) + atomicAdd(a_.arrived, 1);
  }
  // By whole warps, in turn; false: there are no more.
  __device__ bool take(int32_t* job) {
    wait_for_phase(gates_.job_full(turn_.at), turn_.phase);
    *job = shared_.job[turn_.at];
    __syncwarp();
    if (threadIdx.x % kWarp == 0) arrive(gates_.job_empty(turn_.at));
    turn_.step();
    return *job < all_jobs(a_);
  }
  // By the first thread, at last.
  __device__ void end() const {
    if (atomicAdd(a_.arrived + 1, 1) < static_cast<int32_t>(gridDim.x) - 1) return;
    a_.arrived[0] = a_.arrived[1] = 0;
  }

 private:
  const Attention& a_;
  PromptShared& shared_;
  const Gates gates_;
  Ring<kJobs> turn_;
  int32_t next_ = blockIdx.x;
};

// Whether each lane arrives for what it loads; else its warp's first does, which has asked the copy engine for it.
template <class T>
constexpr bool kOfEachLane = sizeof(T) != 2;

// A warp of those that load, each a part of every tile's positions: a tile's keys before the values of the tile before
// it, as their room comes free in this order.
template <class T, int D>
class PromptLoader {
 public:
  __device__ PromptLoader(const Attention& a, const Boxes& boxes, PromptShared& shared, std::byte* memory, int thread)
      : a_(a),
        boxes_(boxes),
        shared_(shared),
        gates_{shared_address(&shared)},
        memory_(memory),
        keys_(shared_address(memory) + plane_bytes<D>()),
        thread_(thread),
        lane_(thread % kWarp) {}

  __device__ void run() {
    Jobs jobs(a_, shared_, gates_);
    for (;;) {
      int32_t job;
      if (thread_ == 0) jobs.say();
      if (!jobs.take(&job)) break;
      const PassHead h = head_of(a_, job);
      fetch_query(h);
      load_job(h);
    }
    if (thread_ == 0) jobs.end();
  }

 private:
  // A lane's position of a tile, and which of the warp's there are: a bit for each.
  struct Part {
    int kv_head;
    int32_t slot;
    uint32_t seen;
    const int32_t* slots;  // of the tile
  };

  // Into the second-level cache: it is taken later.
  __device__ void fetch_query(const PassHead& h) const {
    if (thread_ >= h.item.rows) return;
    const int bytes = a_.layer.dim * (a_.packed ? 2 : 4);
    const auto* const row =
        static_cast<const std::byte*>(a_.q) + (int64_t{h.item.row + thread_} * a_.heads + h.head) * bytes;
    constexpr int kLine = 128;
#pragma unroll
    for (int at = 0; at < 4 * D; at += kLine) {
      if (at < bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(row + at));
    }
  }
  __device__ void load_query(const PassHead& h) {
    for (int group = 0; group < kTakers; ++group) {
      wait_for_phase(gates_.query_empty(group), jobs_ ^ 1);
      if (a_.packed)
        load_query<true, true>(h, group);
      else
        a_.aligned ? load_query<false, true>(h, group) : load_query<false, false>(h, group);
      show_copies();
      __syncwarp();
      if (lane_ == 0) arrive(gates_.query_full(group));
    }
    jobs_ ^= 1;
  }
  // A thread has one column of pieces.
  template <bool kPacked, bool kAligned>
  __device__ void load_query(const PassHead& h, int group) const {
    constexpr int kColumns = D / 8, kApart = kGroup / kColumns, kAtOnce = 4;
    const int first = group * kGroupRows + thread_ / kColumns, at = thread_ % kColumns;
    for (int row = first; row < (group + 1) * kGroupRows; row += kAtOnce * kApart) {
      uint4 pieces[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) pieces[i] = query_piece<T>(a_, h, row + i * kApart, at, kPacked, kAligned);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        *reinterpret_cast<uint4*>(memory_ + panel_piece_at(row + i * kApart, at)) = pieces[i];
    }
  }
  __device__ void load_job(const PassHead& h) {
    const int first = first_tile(h), last = last_tile(h);
    int32_t block = find_block<kTile>(a_, h, first, thread_);
    Part before{};
    for (int tile = first; tile <= last; ++tile) {
      const PassPlace place = place_in<T, kTile>(a_, h, tile, thread_, block);
      if (tile < last) block = find_block<kTile>(a_, h, tile + 1, thread_);
      wait_for_phase(gates_.key_empty(key_.at), key_.phase ^ 1);
      keep_place<T, kTile>(shared_.places, place, place_.at, thread_);
      const Part part{h.kv_head, place.slot, __ballot_sync(0xffffffffu, place.slot != kNone),
                      shared_.places.slot[place_.at]};
      load(part, a_.layer.k, &boxes_.k, at_stage<D>(keys_, key_), gates_.key_full(key_.at));
      key_.step(), place_.step();
      tile == first ? load_query(h) : load_values(before);
      before = part;
    }
    load_values(before);
  }
  __device__ void load_values(const Part& part) {
    wait_for_phase(gates_.value_empty(value_.at), value_.phase ^ 1);
    load(part, a_.layer.v, &boxes_.v, at_stage<D>(keys_, value_), gates_.value_full(value_.at));
    value_.step();
  }

  __device__ void load(const Part& part, const std::byte* plane, const CUtensorMap* map, uint32_t to,
                       uint32_t full) const {
    __syncwarp();
    to += static_cast<uint32_t>(thread_ / kWarp * kWarp * kPanelRow);
    if (part.seen == ~0u && boxes_.rows == kBoxRowsMost) {  // as nearly all are
      const int32_t further = __shfl_sync(0xffffffffu, part.slot, kBoxRowsMost);
      if (lane_ > 0) return;
      arrive_expecting(full, kWarp * D * 2);
      copy_box_row(part.kv_head, map, part.slot, to, full);
      copy_box_row(part.kv_head, map, further, to + kBoxRowsMost * kPanelRow, full);
      return;
    }
    if (boxes_.rows > 0) {
      copy_boxes(part, plane, map, to, full);
    } else {
      copy_rows<kWarp>(part, plane, to, 0);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    show_copies();
    __syncwarp();
    if (kOfEachLane<T> || lane_ == 0) arrive(full);
  }
  // Rows of those that only some are seen of; what none is seen of becomes zeros.
  __device__ void copy_boxes(const Part& part, const std::byte* plane, const CUtensorMap* map, uint32_t to,
                             uint32_t full) const {
    const uint32_t whole = (1u << boxes_.rows) - 1;
    for (int row = 0; row < kWarp; row += boxes_.rows) {
      const uint32_t seen = part.seen >> row & whole;
      const int32_t slot = __shfl_sync(0xffffffffu, part.slot, row);
      if (seen != whole && seen != 0) {
        for (int at = row; at < row + boxes_.rows; at += kBoxRowsLeast) copy_rows<kBoxRowsLeast>(part, plane, to, at);
      } else if (lane_ == 0) {
        expect(full, boxes_.rows * D * 2);
        copy_box_row(part.kv_head, map, seen ? slot : -boxes_.rows, to + row * kPanelRow, full);
      }
    }
  }
  // By one thread.
  __device__ void copy_box_row(int kv_head, const CUtensorMap* map, int32_t slot, uint32_t to, uint32_t full) const {
#pragma unroll
    for (int panel = 0; panel < D / kBoxColumns; ++panel)
      copy_box(to + panel * kPanel, map, kv_head * D + panel * kBoxColumns, slot, full);
  }
  // n of the warp's positions, from its `begin`-th on; a lane has one column of pieces.
  template <int n>
  __device__ void copy_rows(const Part& part, const std::byte* plane, uint32_t to, int begin) const {
    constexpr int kColumns = D / 8, kApart = kWarp / kColumns;
    const int warp = thread_ / kWarp * kWarp, first = begin + lane_ / kColumns, at = lane_ % kColumns;
    const PieceColumn<T> column(a_, part.kv_head, at);
    copy_pieces<T, n / kApart>([&](int i, uint32_t* there, const std::byte** from) {
      const int row = first + i * kApart;
      *there = to + panel_piece_at(row, at);
      return column.find(plane, part.slots[warp + row], from);
    });
  }

  const Attention& a_;
  const Boxes& boxes_;
  PromptShared& shared_;
  const Gates gates_;
  std::byte* const memory_;
  const uint32_t keys_;
  const int thread_, lane_;
  Ring<kKeyStages> key_;
  Ring<kValueStages> value_;
  Ring<kFound> place_;
  uint32_t jobs_ = 0;  // parity of how many were loaded
};

// Which tile a warpgroup with rows is at.
struct TakerTurn {
  Ring<kKeyStages> key;
  Ring<kValueStages> value;
  Ring<kFound> place;
  uint32_t jobs = 0;  // parity
};

// A warpgroup with rows, for one job.
template <class T, int D, bool kCapped>
class PromptTaker {
  using W = Warpgroup<typename Numbers<T>::Multiplied>;

 public:
  __device__ PromptTaker(const Attention& a, const PassHead& h, TakerTurn& turn, PromptShared& shared, Gates gates,
                         uint32_t query)
      : a_(a),
        h_(h),
        turn_(turn),
        shared_(shared),
        gates_(gates),
        group_(static_cast<int>(threadIdx.x) / kGroup),
        query_(query + static_cast<uint32_t>(group_ * kGroupRows * kPanelRow)),
        keys_(query + plane_bytes<D>()),
        rows_(a, h, static_cast<int>(threadIdx.x) / kWarp * 16) {}

  __device__ void run() {
    const int back = min((group_ + 1) * kGroupRows, h_.item.rows) - 1;  // the group's last row
    const int first = first_tile(h_);
    const int last = back < group_ * kGroupRows ? first - 1 : a_.batch.positions[h_.item.row + back] / kTile;
    wait_for_phase(gates_.query_full(group_), turn_.jobs);
    if (last >= first)
      attend(first, last);
    else
      leave_query();
    for (int tile = max(last + 1, first); tile <= last_tile(h_); ++tile) {  // no row of the group sees these
      wait_for_phase(gates_.key_full(turn_.key.at), turn_.key.phase);
      leave_keys();
      wait_for_phase(gates_.value_full(turn_.value.at), turn_.value.phase);
      leave_values();
      turn_.place.step();
    }
    rows_.finish(sum_);
  }

 private:
  __device__ static void leave(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) arrive(barrier);
  }

  // Behind the last product with it.
  __device__ void leave_query() {
    leave(gates_.query_empty(group_));
    turn_.jobs ^= 1;
  }
  __device__ void leave_keys() { leave(gates_.key_empty(turn_.key.at)), turn_.key.step(); }
  __device__ void leave_values() { leave(gates_.value_empty(turn_.value.at)), turn_.value.step(); }

  __device__ void attend(int first, int last) {
    float score[kTile / 8][4], shrink[2];
    uint32_t weights[kTile / 16][4];
    ask_for_scores(score);
    wait_for_products<0>();
    hold(score);
    leave_keys();
    if (first == last) leave_query();
    rows_.look(score, shared_.places, first, turn_.place.at);
    rows_.weigh(score, shrink);  // nothing is to be shrunk yet
    take_weights(weights, score);
    for (int tile = first + 1; tile <= last; ++tile) {
      ask_for_scores(score);
      add_values(weights);
      wait_for_products<1>();
      hold(score);
      leave_keys();
      if (tile == last) leave_query();
      rows_.look(score, shared_.places, tile, turn_.place.at);
      // The sums are waited for in blocks of code of their own: the compiler would wait before it weighs.
      if (rows_.weigh(score, shrink)) {
        wait_for_sums<true>();
        rows_.shrink_sums(sum_, shrink);
      } else {
        wait_for_sums<false>();
      }
      leave_values();
      take_weights(weights, score);
    }
    add_values(weights);
    wait_for_products<0>();
    hold(sum_);
    leave_values();
  }
  // Texts that differ, so that no compiler makes one of two.
  template <bool kGrown>
  __device__ void wait_for_sums() {
    if constexpr (kGrown)
      asm volatile("wgmma.wait_group.sync.aligned 0;  // and shrink" ::: "memory");
    else
      wait_for_products<0>();
    hold(sum_);
  }
  // The last of the tile's places.
  __device__ void take_weights(uint32_t (&weights)[kTile / 16][4], const float (&score)[kTile / 8][4]) const {
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) rows_.take_weights(weights[s], score, shared_.places, turn_.place.at, s);
    turn_.place.step();
  }

  __device__ void ask_for_scores(float (&score)[kTile / 8][4]) {
    wait_for_phase(gates_.key_full(turn_.key.at), turn_.key.phase);
    const uint64_t q = describe_pieces(query_), k = describe_pieces(at_stage<D>(keys_, turn_.key));
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
  __device__ void add_values(const uint32_t (&weights)[kTile / 16][4]) {
    wait_for_phase(gates_.value_full(turn_.value.at), turn_.value.phase);
    const uint64_t v = describe_columns(at_stage<D>(keys_, turn_.value));
    hold(sum_);
    begin_products();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) W::multiply_values(sum_, weights[s], v + ((s * 16 * kPanelRow) >> 4));
    close_products();
  }

  const Attention& a_;
  const PassHead& h_;
  TakerTurn& turn_;
  PromptShared& shared_;
  const Gates gates_;
  const int group_;
  const uint32_t query_, keys_;
  PassRows<T, D, kTile, kCapped> rows_;
  float sum_[D / 8][4] = {};
};

template <class T, int D, bool kCapped>
__device__ void take_jobs(const Attention& a, PromptShared& shared, uint32_t query) {
  const Gates gates{shared_address(&shared)};
  Jobs jobs(a, shared, gates);
  TakerTurn turn;
  int32_t job;
  while (jobs.take(&job)) {
    const PassHead h = head_of(a, job);
    PromptTaker<T, D, kCapped>(a, h, turn, shared, gates, query).run();
  }
}

template <class T, int D, bool kCapped>
__device__ void attend_prompt(const Attention& a, const Boxes& boxes, std::byte* memory, PromptShared& shared) {
  constexpr int kGroupWarps = kGroup / kWarp, kTakingWarps = kTakers * kGroupWarps;
  if (threadIdx.x == 0) {
    constexpr int loading = kOfEachLane<T> ? kGroup : kGroupWarps;
    for (int i = 0; i < kKeyStages; ++i)
      make_barrier(&shared.key_full[i], loading), make_barrier(&shared.key_empty[i], kTakingWarps);
    for (int i = 0; i < kValueStages; ++i)
      make_barrier(&shared.value_full[i], loading), make_barrier(&shared.value_empty[i], kTakingWarps);
    for (int i = 0; i < kJobs; ++i)
      make_barrier(&shared.job_full[i], 1), make_barrier(&shared.job_empty[i], kTakingWarps + kGroupWarps);
    for (int i = 0; i < kTakers; ++i)
      make_barrier(&shared.query_full[i], kGroupWarps), make_barrier(&shared.query_empty[i], kGroupWarps);
    barriers_made();
  }
  __syncthreads();
  if (threadIdx.x / kGroup == kTakers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
    PromptLoader<T, D>(a, boxes, shared, memory, threadIdx.x % kGroup).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
    take_jobs<T, D, kCapped>(a, shared, shared_address(memory));
  }
}

#undef MOTLEY_FOUR
#undef MOTLEY_THIRTY_TWO
#undef MOTLEY_PLACES_32
#undef MOTLEY_PLACES_64
#endif

template <class T, int D, bool kCapped>
__global__ void __launch_bounds__((kTakers + 1) * kGroup, 1)
    attend_prompts_of(const __grid_constant__ Attention a, const __grid_constant__ Boxes boxes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ std::byte all[];
  __shared__ PromptShared shared;
  std::byte* const memory = all + (kAlign - shared_address(all) % kAlign) % kAlign;
  attend_prompt<T, D, kCapped>(a, boxes, memory, shared);
#endif
}

// Whether this GPU has code of these kernels, and not from another one's intermediate code; asked once for each GPU.
template <class T, int D, bool kCapped>
bool is_built() {
  static std::atomic<uint64_t> known{0}, built{0};
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "PAGED_ATTENTION");
  const uint64_t bit = uint64_t{1} << (ordinal % 64);
  if (ordinal < 64 && known.load() & bit) return built.load() & bit;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, attend_prompts_of<T, D, kCapped>), "PAGED_ATTENTION");
  const bool is = attributes.ptxVersion >= 90;
  if (is) built |= bit;
  known |= bit;
  return is;
}

// Where a block's positions are whole boxes, and a head's numbers are.
template <class T, int D>
Boxes boxes_of(const Attention& a) {
  Boxes boxes{};
  const Layer& layer = a.layer;
  const int64_t rows = layer.positions, cols = int64_t{layer.kv_heads} * layer.dim;
  if (sizeof(T) != 2 || layer.dim != D || layer.block_size % kBoxRowsLeast != 0 || !has_boxes()) return boxes;
  if (!is_boxed(layer.k, cols) || !is_boxed(layer.v, cols)) return boxes;
  boxes.rows = layer.block_size % kBoxRowsMost == 0 ? kBoxRowsMost : kBoxRowsLeast;
  boxes.k = describe_boxes(layer.k, rows, cols, cols, boxes.rows);
  boxes.v = describe_boxes(layer.v, rows, cols, cols, boxes.rows);
  return boxes;
}

}  // namespace

bool attend_prompts(const Attention& a, const CudaStream& stream) {
  bool done = false;
  const int64_t jobs = int64_t{a.passes_count} * a.heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(jobs, stream.processors()));
  visit_kernel(a, [&]<class T, int D, bool kCapped>() {
    if constexpr (by_warpgroups(D)) {
      if (!is_built<T, D, kCapped>()) return;
      allow_shared<attend_prompts_of<T, D, kCapped>>(prompt_bytes<D>(), "PAGED_ATTENTION: shared memory");
      attend_prompts_of<T, D, kCapped>
          <<<blocks, (kTakers + 1) * kGroup, prompt_bytes<D>(), stream.raw()>>>(a, boxes_of<T, D>(a));
      done = true;
    }
  });
  return done;
}

}  // namespace motley::cuda
