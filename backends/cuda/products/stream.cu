#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/products/pack.hpp"
#include "cuda/products/stream.cuh"
#include "cuda/products/stream.hpp"

namespace motley::cuda {

namespace {

constexpr int kShareBelow = 160;  // blocks of threads; fewer may share the columns
constexpr int kWideFrom = 1024;   // tiles: of fewer rows, multiprocessors would have too little to do by kWideTiles
constexpr int kSortThreads = 1024;
constexpr int64_t kAlign = 256;

int64_t align(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

struct Served {
  int32_t dtype;
  const StreamKernels* kernels;
};
constexpr Served kServed[] = {
    {MOTLEY_BF16, &kBf16Kernels},  {MOTLEY_F16, &kF16Kernels},      {MOTLEY_F8_E4M3_S64, &kF8Kernels},
    {MOTLEY_Q8_0, &kQ80Kernels},   {MOTLEY_Q4_0, &kQ40Kernels},     {MOTLEY_Q4_1, &kQ41Kernels},
    {MOTLEY_Q5_0, &kQ50Kernels},   {MOTLEY_Q5_1, &kQ51Kernels},     {MOTLEY_Q2_K, &kQ2KKernels},
    {MOTLEY_Q3_K, &kQ3KKernels},   {MOTLEY_Q4_K, &kQ4KKernels},     {MOTLEY_Q5_K, &kQ5KKernels},
    {MOTLEY_Q6_K, &kQ6KKernels},   {MOTLEY_IQ4_NL, &kIq4NlKernels}, {MOTLEY_IQ4_XS, &kIq4XsKernels},
    {MOTLEY_MXFP4, &kMxfp4Kernels}};

const StreamKernels& kernels_for(int32_t dtype) {
  if (dtype == MOTLEY_F32) dtype = MOTLEY_BF16;  // what is asked for is then only how products would be cut
  const auto* const found = std::ranges::find(kServed, dtype, &Served::dtype);
  if (found == std::end(kServed)) kit::fail(MOTLEY_INTERNAL, "weights of type %d have no kernels", dtype);
  return *found->kernels;
}

// Eights of rows that a block of threads takes.
int eights_for(int64_t rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8; }

// How a product of many rows is cut.
struct Cut {
  int eights, tiles;
  int64_t across, places;  // blocks of threads along the rows, and all but for sharers
  bool may_share;
};
Cut cut_of(const Job& job, int64_t rows) {
  Cut cut;
  cut.eights = eights_for(rows);
  const bool wide =
      cut.eights == 8 && job.tiles % kWideTiles == 0 && job.tiles >= kWideFrom && kernels_for(job.dtype).wide;
  cut.tiles = wide ? kWideTiles : kBlockTiles;
  cut.across = (rows + 8 * cut.eights - 1) / (8 * cut.eights);
  cut.places = cut.across * (job.tiles / cut.tiles);
  cut.may_share = cut.places < kShareBelow;
  return cut;
}
int64_t ordered_bytes(const Job& job, int64_t rows) { return align(rows * bf16_stride(job.cols) * 2); }
int64_t partial_bytes(const Cut& cut) {
  return cut.may_share ? cut.places * kParts * cut.eights * cut.tiles * kWarp * static_cast<int64_t>(sizeof(float4))
                       : 0;
}

// The number of sharers that leaves the fewest multiprocessors idle, one of them if it makes little difference.
int32_t sharers_of(const StreamKernels& kernels, const Cut& cut) {
  constexpr double kWorth = 1.35;  // of what sharing costs
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  int32_t best = 1;
  double most = 0;
  for (int32_t sharers = 1; sharers <= (cut.may_share ? kParts : 1); sharers *= 2) {
    const int each = cut.tiles == kWideTiles ? 1 : kernels.blocks(cut.eights, sharers > 1);
    const int64_t at_once = multiprocessors * each, all = cut.places * sharers;
    const double busy = static_cast<double>(all) / static_cast<double>((all + at_once - 1) / at_once * at_once);
    if (busy > most * kWorth) best = sharers, most = busy;
  }
  return best;
}

__global__ void plain_rows(Inputs x, int64_t cols, int64_t stride, int64_t count, bool f16, uint16_t* to) {
  wait_for_previous();
  for (int64_t i = first_item(); i < count; i += item_step()) {
    const int64_t row = i / (stride / 4), column = i % (stride / 4) * 4;
    const float4 v = four_of(x, row, static_cast<int>(column), static_cast<int>(cols));
    *reinterpret_cast<uint2*>(to + row * stride + column) =
        f16 ? uint2{f16_pair(v.x, v.y), f16_pair(v.z, v.w)} : uint2{bf16_pair(v.x, v.y), bf16_pair(v.z, v.w)};
  }
}

// One block of threads: pairs by expert, and groups of at most `size` pairs of one expert. What no held expert takes
// comes last, as expert -1.
__global__ void sort_pairs(Choice choice, int pairs, int experts, int size, int32_t* order, Group* groups,
                           int groups_max) {
  extern __shared__ int counts[];  // pairs of each expert, later the place of its next one
  __shared__ int2 sums[kSortThreads];
  const int each = (experts + kSortThreads) / kSortThreads, own = threadIdx.x * each;
  const auto expert_of = [&](int pair) {
    const int32_t id = choice.ids[pair];
    const bool known = id >= 0 && id < choice.source_experts;
    if (!known) report(choice.fault, Fault::kExpert);
    const int held = !known ? -1 : choice.expert_of ? choice.expert_of[id] : id;
    return held < 0 ? experts : held;
  };
  for (int e = threadIdx.x; e <= experts; e += kSortThreads) counts[e] = 0;
  for (int i = threadIdx.x; i < groups_max; i += kSortThreads) groups[i] = {0, 0, 0};
  __syncthreads();
  for (int pair = threadIdx.x; pair < pairs; pair += kSortThreads) atomicAdd(&counts[expert_of(pair)], 1);
  __syncthreads();
  int2 sum{};  // pairs, groups
  for (int e = own; e < own + each && e <= experts; ++e) sum.x += counts[e], sum.y += (counts[e] + size - 1) / size;
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int apart = 1; apart < kSortThreads; apart *= 2) {
    int2 other{};
    if (threadIdx.x >= apart) other = sums[threadIdx.x - apart];
    __syncthreads();
    sums[threadIdx.x].x += other.x, sums[threadIdx.x].y += other.y;
    __syncthreads();
  }
  int first = sums[threadIdx.x].x - sum.x, group = sums[threadIdx.x].y - sum.y;
  for (int e = own; e < own + each && e <= experts; ++e) {
    const int count = counts[e];
    counts[e] = first;
    for (int i = 0; i < count; i += size) groups[group++] = {e == experts ? -1 : e, first + i, min(size, count - i)};
    first += count;
  }
  __syncthreads();
  for (int pair = threadIdx.x; pair < pairs; pair += kSortThreads) order[atomicAdd(&counts[expert_of(pair)], 1)] = pair;
}

}  // namespace

int32_t tiles_of(int64_t rows) {
  constexpr int64_t kRows = kBlockTiles * kTileRows;
  return static_cast<int32_t>((rows + kRows - 1) / kRows * kBlockTiles);
}

int64_t bf16_stride(int64_t cols) { return (cols + kTileColumns - 1) / kTileColumns * kTileColumns; }

int64_t stream_scratch(const Job& job, int64_t rows) {
  int64_t partials = 0;
  for (const int64_t r : {int64_t{8}, int64_t{16}, int64_t{32}})
    partials = std::max(partials, partial_bytes(cut_of(job, std::min(r, rows))));
  // Of more rows the most blocks of threads that may still share.
  for (int64_t r = kRowsAtOnce; r - kRowsAtOnce < rows && cut_of(job, r).may_share; r += kRowsAtOnce)
    partials = std::max(partials, partial_bytes(cut_of(job, r)));
  return ordered_bytes(job, rows) + partials;
}

int64_t stream_counters(const Job& job, int64_t rows) {
  return std::min<int64_t>(kShareBelow, (rows + 63) / 64 * (job.tiles / kBlockTiles));
}

int64_t choice_scratch(int64_t pairs, int64_t x_rows, int64_t cols, int64_t experts) {
  const int64_t groups = pairs / 8 + experts + 2;
  return align(pairs * 4) + align(groups * static_cast<int64_t>(sizeof(Group))) + align(x_rows * bf16_stride(cols) * 2);
}

void round_rows(const Inputs& x, int64_t rows, int64_t cols, bool f16, void* to, int64_t to_stride,
                cudaStream_t stream) {
  const int64_t count = rows * to_stride / 4;
  launch_early(plain_rows, dim3(blocks_for(count)), kThreads, 0, stream, x, cols, to_stride, count, f16,
               static_cast<uint16_t*>(to));
}

void order_rows(const Job& job, void* to, cudaStream_t stream) {
  kernels_for(job.dtype).order(job.x, job.rows, job.cols, bf16_stride(job.cols), static_cast<__nv_bfloat16*>(to),
                               stream);
}

bool is_of_few_rows(const Job& job, int64_t few_rows_max) {
  return job.rows <= few_rows_max && kernels_for(job.dtype).row_shared(job) * job.rows <= kFewShared;
}

void multiply_rows(const Job& job, std::byte* scratch, uint32_t* counters, cudaStream_t stream, int64_t few_rows_max) {
  const StreamKernels& kernels = kernels_for(job.dtype);
  if (is_of_few_rows(job, few_rows_max)) return kernels.few(job, Choice{}, 1, stream);
  Crowd crowd{};
  const Cut cut = cut_of(job, job.rows);
  if (job.x.stored == Stored::kTileOrder) {
    crowd.x = static_cast<const __nv_bfloat16*>(job.x.data), crowd.stride = job.cols;
  } else {
    crowd.x = reinterpret_cast<const __nv_bfloat16*>(scratch), crowd.stride = bf16_stride(job.cols);
    order_rows(job, scratch, stream);
  }
  crowd.tiles = cut.tiles;
  crowd.sharers = sharers_of(kernels, cut);
  crowd.partials = reinterpret_cast<float4*>(scratch + ordered_bytes(job, job.rows));
  crowd.counters = counters;
  kernels.many(job, crowd, cut.eights, static_cast<unsigned>(cut.across), stream);
  launched("MATMUL");
}

void multiply_chosen(const Job& job, const Choice& choice, int64_t experts, std::byte* scratch, cudaStream_t stream) {
  const StreamKernels& kernels = kernels_for(job.dtype);
  const int64_t pairs = job.rows * choice.top_k, x_rows = choice.own_inputs ? pairs : job.rows;
  if ((pairs <= 2 * kFewRows || 2 * pairs <= experts) && kernels.row_shared(job) <= kFewShared) {
    Job one = job;
    one.rows = 1;
    kernels.few(one, choice, static_cast<unsigned>(pairs), stream);
    return launched("GROUPED_MATMUL");
  }
  Crowd crowd{};
  crowd.choice = choice, crowd.tiles = kBlockTiles, crowd.sharers = 1;
  const int eights = eights_for(pairs / std::max<int64_t>(experts, 1));
  const int64_t groups = pairs / (8 * eights) + experts + 2;
  auto* const order = reinterpret_cast<int32_t*>(scratch);
  auto* const table = reinterpret_cast<Group*>(scratch + align(pairs * 4));
  std::byte* const x_at =
      scratch + align(pairs * 4) + align((pairs / 8 + experts + 2) * static_cast<int64_t>(sizeof(Group)));
  sort_pairs<<<1, kSortThreads, static_cast<size_t>(experts + 1) * sizeof(int), stream>>>(
      choice, static_cast<int>(pairs), static_cast<int>(experts), 8 * eights, order, table, static_cast<int>(groups));
  launched("GROUPED_MATMUL");
  crowd.stride = bf16_stride(job.cols);
  auto* const x = reinterpret_cast<__nv_bfloat16*>(x_at);
  kernels.order(job.x, x_rows, job.cols, crowd.stride, x, stream);
  crowd.x = x;
  crowd.groups = table, crowd.order = order;
  kernels.many(job, crowd, eights, static_cast<unsigned>(groups), stream);
  launched("GROUPED_MATMUL");
}

bool prepare_stream() {
  if (attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) < kSharedMax || !has_boxes()) return false;
  for (const Served& served : kServed) {
    if (!served.kernels->built()) return false;
    served.kernels->prepare();
  }
  prepare_serial();
  return true;
}

}  // namespace motley::cuda
