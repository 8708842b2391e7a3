// EMBED and the matrix products: which kernels take which rows. Formats without tiles have a kernel of kit's formulas.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/products/element.cuh"
#include "cuda/products/pack.hpp"
#include "cuda/products/packed.cuh"
#include "cuda/products/products.hpp"

namespace motley::cuda {

namespace {

constexpr int kBlockRows = 8;  // activation rows that share a de-quantised weight
constexpr int kWarps = 8;      // of a block

const CudaWeight& weight_of(const kit::OpCall& call, size_t i) {
  return *static_cast<const CudaWeight*>(call.weight[2 * i]);
}
const float* bias_of(const kit::OpCall& call, size_t i) {
  return call.weight[2 * i + 1] ? call.weight[2 * i + 1]->vector() : nullptr;
}

struct Numbering {
  const int32_t* slots;
  float factor;
};

// The held row of this block's token, -1 for none.
__device__ int64_t token_row(const WeightView& w, const DeviceBatch& batch, const int32_t* slots, int64_t r) {
  const int32_t slot = batch.token_slots ? batch.token_slots[r] : -1;
  const bool from_slot = slot >= 0 && slots;
  const int32_t token = from_slot ? slots[slot] : batch.token_ids[r];
  const bool known = token >= 0 && token < w.source_rows && (slot < 0 || from_slot);
  if (!known && threadIdx.x == 0) report(batch.fault, Fault::kToken);
  return !known ? -1 : w.row_of ? w.row_of[token] : token;
}

constexpr unsigned kEmbedBlocks = 4;  // of threads, a row

template <class Block>
__global__ void embed_rows(WeightView w, DeviceBatch batch, Numbering n, float* out) {
  wait_for_earlier();
  const int64_t r = blockIdx.x, row = token_row(w, batch, n.slots, r);
  for (int64_t i = blockIdx.y * blockDim.x + threadIdx.x; i < w.cols; i += gridDim.y * blockDim.x)
    out[r * w.cols + i] = row < 0 ? 0.0f : element<Block>(w, w.data + row * w.row_bytes, i) * n.factor;
}

template <class Kind>
__global__ void embed_tiles(WeightView w, DeviceBatch batch, Numbering n, float* out) {
  wait_for_earlier();
  const int64_t r = blockIdx.x, row = token_row(w, batch, n.slots, r);
  const uint8_t* const tiles = w.data + row / kTileRows * w.row_bytes;
  for (int64_t i = blockIdx.y * blockDim.x + threadIdx.x; i < w.cols; i += gridDim.y * blockDim.x) {
    const uint8_t* const tile = tiles + i / Kind::kColumns * Kind::kTileBytes;
    const float value =
        row < 0 ? 0.0f : Kind::value(tile, static_cast<int>(row % kTileRows), static_cast<int>(i % Kind::kColumns));
    out[r * w.cols + i] = value * n.factor;
  }
}

// A warp a weight row; each lane adds every 32nd product.
template <class Block>
__global__ void multiply(WeightView w, const float* bias, const float* x, int64_t rows, float* out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t first = int64_t{blockIdx.y} * kBlockRows;
  if (n >= w.rows) return;
  const int64_t count = min(int64_t{kBlockRows}, rows - first);
  const uint8_t* row = w.data + n * w.row_bytes;
  float sum[kBlockRows] = {};
  for (int64_t i = lane; i < w.cols; i += kWarp) {
    const float value = element<Block>(w, row, i);
#pragma unroll
    for (int r = 0; r < kBlockRows; ++r)
      if (r < count) sum[r] = fmaf(value, x[(first + r) * w.cols + i], sum[r]);
  }
#pragma unroll
  for (int r = 0; r < kBlockRows; ++r) {
    const float total = warp_sum(sum[r]);
    if (lane == 0 && r < count) out[(first + r) * w.rows + n] = total + (bias ? bias[n] : 0.0f);
  }
}

// A warp for each (row, choice) and weight row.
template <class Block>
__global__ void multiply_choices(WeightView w, const float* bias, const float* x, Choice choice, float* out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t{blockIdx.y} * kWarps + threadIdx.x / kWarp, pair = blockIdx.x;
  if (n >= w.rows) return;
  const int32_t expert = choice.ids[pair];
  const bool known = expert >= 0 && expert < choice.source_experts;
  if (!known && lane == 0) report(choice.fault, Fault::kExpert);
  const int64_t held = !known ? -1 : choice.expert_of ? choice.expert_of[expert] : expert;
  float sum = 0;
  if (held >= 0) {
    const uint8_t* row = w.data + (held * w.rows + n) * w.row_bytes;
    const float* mine = x + (choice.own_inputs ? pair : pair / choice.top_k) * w.cols;
    for (int64_t i = lane; i < w.cols; i += kWarp) sum = fmaf(element<Block>(w, row, i), mine[i], sum);
    sum = warp_sum(sum) + (bias ? bias[held * w.rows + n] : 0.0f);
  }
  if (lane == 0) out[pair * w.rows + n] = sum;
}

unsigned row_blocks(const WeightView& w) { return static_cast<unsigned>((w.rows + kWarps - 1) / kWarps); }

// Rows [first, first + rows) of a call, of one numeric class.
struct Rows {
  int64_t first, count;
};

Job job_of(const kit::OpCall& call, Rows rows) {
  const CudaWeight& w = weight_of(call, 0);
  Job job{};
  job.dtype = w.format;
  job.cols = static_cast<int32_t>(w.cols);
  job.row_bytes = w.view().row_bytes, job.expert_bytes = w.view().expert_bytes;
  job.x = {call.in[0].bytes(rows.first), stored_as(call.in[0])}, job.rows = rows.count;
  for (size_t i = 0; i < call.out.size(); ++i) {
    const WeightView& view = weight_of(call, i).view();
    job.products[i] = {view.data,
                       bias_of(call, i),
                       call.out[i].bytes(rows.first),
                       static_cast<int32_t>(view.rows),
                       job.tiles,
                       call.out[i].dtype == MOTLEY_BF16};
    job.tiles += tiles_of(view.rows);
    ++job.count;
  }
  return job;
}

bool is_ordered(const kit::OpCall& call) { return call.in[0].dtype == kTileOrderType; }
// Whether the library takes a job's rows as they lie; else they go to scratch first.
bool lies_ready(const kit::OpCall& call, const Job& job) {
  return job.x.stored == (is_ordered(call) ? Stored::kTileOrder : Stored::kBf16);
}

bool aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

// Products i and i + 1 of a job can be one call of the library.
bool are_a_batch(const Job& job, int i) {
  if (i + 1 >= job.count) return false;
  const Product &a = job.products[i], &b = job.products[i + 1];
  return a.width == b.width && !a.bias && !b.bias && a.bf16 == b.bf16 && a.data < b.data && a.out < b.out;
}

// The library's calls of a job, each of weight rows [first, first + width) of products from i on: f(i, first, call).
template <class F>
void each_library_call(const kit::OpCall& call, const Job& job, F&& f) {
  const LibraryScratch at = library_scratch(job.rows, job.cols);
  for (int i = 0; i < job.count; ++i) {
    const Product& p = job.products[i];
    const CudaWeight& w = weight_of(call, static_cast<size_t>(i));
    const bool direct = w.view().direct;
    const int64_t step = direct ? p.width : slab_rows(p.width, job.cols);
    LibraryCall one{};
    one.cols = job.cols, one.rows = job.rows, one.out_stride = p.width, one.out_bf16 = p.bf16;
    one.f16 = direct && w.format == MOTLEY_F16;
    const bool ready = lies_ready(call, job);
    if (one.f16 && ready) kit::fail(MOTLEY_INTERNAL, "weights in F16 meet activations in bf16");
    one.x = ready ? job.x.data : call.scratch;
    one.stride = ready ? job.cols : bf16_stride(job.cols);
    if (direct && are_a_batch(job, i)) {
      const Product& next = job.products[i + 1];
      one.batch = 2, one.out_step = (next.at(0) - p.at(0)) / one.out_element(), one.w_step = (next.data - p.data) / 2;
    }
    for (int64_t first = 0; first < p.width; first += step) {
      one.width = std::min(step, p.width - first);
      one.w = direct ? static_cast<const void*>(p.data) : call.scratch + at.slab;
      one.out = p.at(first);
      one.bias = p.bias ? p.bias + first : nullptr;
      f(i, first, one);
    }
    i += static_cast<int>(one.batch) - 1;
  }
}

bool fits_library(const kit::OpCall& call, const Job& job, const Library& library) {
  bool fits = true;
  for (int i = 0; i < job.count; ++i) {
    const Product& p = job.products[i];
    fits = fits && Library::takes(p.width, job.cols) && aligned(p.out) && aligned(p.bias);
  }
  if (fits)
    each_library_call(call, job, [&](int, int64_t, const LibraryCall& one) { fits = fits && library.knows(one); });
  return fits;
}

// Calls of the library, of which the first may run beside the others, on a second stream.
struct Beside {
  const Library& library;
  CudaStream& stream;
  std::byte *workspace, *other;
  bool forked = false;
  ~Beside() {  // the second stream reads and writes what the first one's next program does
    if (!forked) return;
    try {
      stream.join();
    } catch (const kit::Error&) {
      // then nothing more runs on either
    }
  }
  void multiply(const LibraryCall& call, bool beside) {
    if (beside && !forked) {
      forked = true;
      return library.multiply(call, other, stream.fork());
    }
    library.multiply(call, workspace, stream.raw());
  }
  void join() {
    if (std::exchange(forked, false)) stream.join();
  }
};

// The products of few rows run beside each other: one alone does not keep the memory busy. add: to the one product.
void multiply_by_library(const kit::OpCall& call, const Job& job, const Library& library, const float* add = nullptr) {
  constexpr int64_t kBesideRows = 512;
  CudaStream& stream = stream_of(call);
  const LibraryScratch at = library_scratch(job.rows, job.cols);
  if (!lies_ready(call, job) && is_ordered(call))
    order_rows(job, call.scratch, stream.raw());
  else if (!lies_ready(call, job))
    round_rows(job.x, job.rows, job.cols, job.dtype == MOTLEY_F16, call.scratch, bf16_stride(job.cols), stream.raw());
  Beside calls{library, stream, call.scratch + at.workspace, call.scratch + at.beside};
  each_library_call(call, job, [&](int i, int64_t first, LibraryCall one) {
    const CudaWeight& w = weight_of(call, static_cast<size_t>(i));
    one.add = add;
    if (one.w != job.products[i].data)
      to_bf16(w.format, w.view(), first, one.width, is_ordered(call), const_cast<void*>(one.w), stream.raw());
    calls.multiply(one, one.w == job.products[i].data && i + one.batch < job.count && job.rows <= kBesideRows);
  });
  calls.join();
}

// The library's calls of a job as one for own kernels; its products are what is written.
Job job_of_calls(Job job, Library::Calls calls) {
  job.rows = calls[0].rows, job.x = {calls[0].x, Stored::kBf16}, job.tiles = job.count = 0, job.gated = nullptr;
  for (const LibraryCall& call : calls) {
    for (int64_t b = 0; b < call.batch; ++b) {
      job.products[job.count++] = {static_cast<const uint8_t*>(call.w) + 2 * b * call.w_step,
                                   call.bias,
                                   call.out_at(b * call.out_step),
                                   static_cast<int32_t>(call.width),
                                   job.tiles,
                                   call.out_bf16};
      job.tiles += tiles_of(call.width);
    }
  }
  return job;
}

__global__ void add_values(float* out, const float* add, int64_t count) {
  for (int64_t i = first_item(); i < count; i += item_step()) out[i] += add[i];
}

// Whether the sums of the library are those of multiply_serially: all rows may then go either way. add: as above.
bool is_of_one_class(const kit::OpCall& call, const Job& job, const Library& library, const float* add = nullptr) {
  const CudaWeight& w = weight_of(call, 0);
  if (w.format != MOTLEY_BF16 || !w.view().streams || serial_rows_max(job) == 0 || !fits_library(call, job, library))
    return false;
  const cudaStream_t stream = stream_of(call).raw();
  bool agree = true;
  each_library_call(call, job, [&](int, int64_t, LibraryCall one) {
    one.add = add;
    const auto own = [&](const LibraryCall& some) {
      multiply_serially(job_of_calls(job, {&some, 1}), some.stride, stream);
      const int64_t count = some.rows * some.width;
      if (add) add_values<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<float*>(some.out), add, count);
    };
    std::byte* const workspace = call.scratch + library_scratch(job.rows, job.cols).workspace;
    agree = agree && library.agrees(one, std::min(compared_rows(one), serial_rows_max(job)), own, workspace, stream);
  });
  return agree;
}

// By the own kernel, where it takes so many rows and is the faster. True if it multiplied.
bool multiply_serially_if_faster(const kit::OpCall& call, const Job& job, const Library& library) {
  constexpr int64_t kSureRows = 4;  // up to so many it always is
  if (job.rows > serial_rows_max(job)) return false;
  CudaStream& stream = stream_of(call);
  const LibraryScratch at = library_scratch(job.rows, job.cols);
  std::vector<LibraryCall> calls;
  each_library_call(call, job, [&](int, int64_t, const LibraryCall& one) { calls.push_back(one); });
  const auto by_library = [&](Library::Calls some) {
    Beside beside{library, stream, call.scratch + at.workspace, call.scratch + at.beside};
    for (const LibraryCall& one : some) beside.multiply(one, &one != &some.back());
    beside.join();
  };
  const auto own = [&](Library::Calls some) {
    multiply_serially(job_of_calls(job, some), some[0].stride, stream.raw());
  };
  if (job.rows > kSureRows && !library.is_outrun(calls, by_library, own, stream.raw())) return false;
  if (job.x.stored == Stored::kF32)
    round_rows(job.x, job.rows, job.cols, false, call.scratch, calls[0].stride, stream.raw());
  Job ready = job;
  ready.x = {calls[0].x, Stored::kBf16};
  multiply_serially(ready, calls[0].stride, stream.raw());
  return true;
}

void multiply_by_formulas(const kit::OpCall& call, Rows rows) {
  const WeightView& w = weight_of(call, 0).view();
  const dim3 grid(row_blocks(w), static_cast<unsigned>((rows.count + kBlockRows - 1) / kBlockRows));
  kit::blocks::visit(weight_of(call, 0).format, [&]<class Block>(Block) {
    multiply<Block><<<grid, kWarps * kWarp, 0, stream_of(call).raw()>>>(w, bias_of(call, 0), call.in[0].f32(rows.first),
                                                                        rows.count, call.out[0].f32(rows.first));
  });
  launched("MATMUL");
}

// What a step does with its products, where that can be done at once.
struct Also {
  const float* add = nullptr;  // to the one product; the result is then in `sum`
  float* sum = nullptr;
  const kit::Tensor* gated = nullptr;  // SILU_MUL of the two
  int32_t gate = 0;                    // which of them is the gate
};

// Lets an own kernel of few rows write SILU_MUL of a job's two products.
bool take_gate(const Also& also, Job* job) {
  if (!also.gated || job->products[0].width != job->products[1].width) return false;
  job->gated = also.gated->data, job->gated_as = stored_as(*also.gated), job->gate = also.gate;
  return true;
}

// True if `also.gated` is written.
bool multiply_class(const kit::OpCall& call, const ProductData& data, Rows rows, bool prompt, const Also& also) {
  const CudaWeight& w = weight_of(call, 0);
  Job job = job_of(call, rows);
  if (prompt && data.cublaslt && !is_exact(w) && fits_library(call, job, *data.cublaslt)) {
    multiply_by_library(call, job, *data.cublaslt);
    return false;
  }
  if (!w.view().streams) {
    multiply_by_formulas(call, rows);
    return false;
  }
  const bool gated = rows.count == call.in[0].rows && is_of_few_rows(job) && take_gate(also, &job);
  multiply_rows(job, call.scratch, reinterpret_cast<uint32_t*>(data.counters.data()), stream_of(call).raw());
  return gated;
}

}  // namespace

void embed(const kit::OpCall& call) {
  if (call.out[0].rows == 0) return;
  const CudaStream& stream = stream_of(call);
  const auto& weight = *static_cast<const CudaWeight*>(call.weight[0]);
  const dim3 blocks(static_cast<unsigned>(call.out[0].rows), kEmbedBlocks);
  const Numbering numbering{static_cast<const int32_t*>(call.in[0].data), call.op->attr.embed.scale};
  if (weight.view().tiled) {
    visit_packed(weight.format, [&]<class Kind>(Kind) {
      launch_early(stream, embed_tiles<Kind>, blocks, kThreads, 0, weight.view(), stream.batch(), numbering,
                   call.out[0].f32());
    });
  } else {
    kit::blocks::visit(weight.format, [&]<class Block>(Block) {
      launch_early(stream, embed_rows<Block>, blocks, kThreads, 0, weight.view(), stream.batch(), numbering,
                   call.out[0].f32());
    });
  }
  launched("EMBED");
}

namespace {

// Of so many rows cuBLASLt adds to a product as it ends; for fewer the algorithms that do so are slow.
constexpr int64_t kAddedRows = 1024;

// Prompt rows may be of another class than the others: runs of equal rows are products of their own. True if
// `also` is done.
bool multiply(const kit::OpCall& call, const Also& also) {
  const auto& data = *static_cast<const ProductData*>(call.op->data.get());
  const int64_t rows = call.in[0].rows;
  if (rows == 0) return false;
  Job all = job_of(call, {0, rows});
  if (data.cublaslt && is_of_one_class(call, all, *data.cublaslt)) {
    Job gated = all;
    const bool takes = take_gate(also, &gated);
    if (multiply_serially_if_faster(call, gated, *data.cublaslt)) return takes;
    const float* const add = also.add;
    const bool adds = add && rows > kAddedRows && aligned(add) && aligned(also.sum) && !all.products[0].bias &&
                      is_of_one_class(call, all, *data.cublaslt, add);
    if (adds) all.products[0].out = also.sum;
    multiply_by_library(call, all, *data.cublaslt, adds ? add : nullptr);
    return adds;
  }
  const auto is_prompt = [&](int64_t r) { return data.cublaslt && !data.head && call.batch->generated[r] == 0; };
  bool done = false;
  for (int64_t first = 0; first < rows;) {
    int64_t end = first + 1;
    while (end < rows && is_prompt(end) == is_prompt(first)) ++end;
    done = multiply_class(call, data, {first, end - first}, is_prompt(first), also);
    first = end;
  }
  return done;
}

}  // namespace

bool is_exact(const CudaWeight& w) { return w.format == MOTLEY_F32 || (w.format == MOTLEY_F16 && !w.view().direct); }

void matmul(const kit::OpCall& call) { multiply(call, {}); }

template <int gate>
void matmul_silu_mul(const kit::OpCall& call) {
  kit::OpCall product = call, silu = call;
  product.out = call.out.first(2);
  if (multiply(product, {.gated = &call.out[2], .gate = gate})) return;
  const std::array<kit::Tensor, 2> in = {call.out[gate], call.out[1 - gate]};
  silu.in = in, silu.out = call.out.subspan(2);
  silu_mul(silu);
}
template void matmul_silu_mul<0>(const kit::OpCall& call);
template void matmul_silu_mul<1>(const kit::OpCall& call);

void matmul_add_rmsnorm(const kit::OpCall& call) {
  kit::OpCall product = call;
  product.in = call.in.first(1), product.out = call.out.first(1), product.weight = call.weight.first(2);
  const float* const add = call.in[1].f32();
  const kit::Tensor& sum = call.out[1];
  const bool added = multiply(product, {.add = add, .sum = sum.f32()});
  rmsnorm_of_sum(call, added ? sum.f32() : call.out[0].f32(), added ? nullptr : add, sum, call.out[2],
                 call.op->more_attrs[0], *call.weight[2]);
}

void grouped_matmul(const kit::OpCall& call) {
  const int64_t rows = call.in[0].rows, top_k = call.in[1].width, pairs = rows * top_k;
  if (pairs == 0) return;
  const CudaWeight& weight = weight_of(call, 0);
  const WeightView& w = weight.view();
  const CudaStream& stream = stream_of(call);
  const Choice choice{call.in[1].i32(),
                      w.expert_of,
                      static_cast<int32_t>(w.source_experts),
                      static_cast<int32_t>(top_k),
                      call.in[0].width != w.cols,
                      stream.batch().fault};
  if (w.streams) return multiply_chosen(job_of(call, {0, rows}), choice, weight.experts, call.scratch, stream.raw());
  const dim3 grid(static_cast<unsigned>(pairs), row_blocks(w));
  kit::blocks::visit(weight.format, [&]<class Block>(Block) {
    multiply_choices<Block>
        <<<grid, kWarps * kWarp, 0, stream.raw()>>>(w, bias_of(call, 0), call.in[0].f32(), choice, call.out[0].f32());
  });
  launched("GROUPED_MATMUL");
}

}  // namespace motley::cuda
