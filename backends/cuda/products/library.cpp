#include "cuda/products/library.hpp"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace motley::cuda {

namespace {

// Up to so many rows take an algorithm of their own, more than the last the last one.
constexpr std::array<int64_t, 9> kBuckets = {16, 32, 64, 128, 192, 256, 512, 1024, 2048};
// The library's choices for these are tried for up to kAlsoUpTo rows as well: for few it names slow ones.
constexpr std::array<int64_t, 3> kAlso = {64, 128, 256};
constexpr int64_t kAlsoUpTo = 256;
constexpr size_t kTried = 5, kAlsoTried = 2;  // of the library's choices
constexpr int kCandidates = 16;
// How often algorithms are timed, after a first time: up to kQueuedRows rows, whose times are short, in queues.
constexpr int64_t kQueuedRows = 64;
constexpr size_t kQueued = 4;
constexpr int kTimesQueued = 3, kTimes = 5;
constexpr size_t kCacheBytes = size_t{96} << 20;    // more than the caches hold
constexpr size_t kCopiesBytes = size_t{192} << 20;  // of weights that are timed in turn: more than the caches hold
constexpr size_t kCopiesMax = 16;

#define MOTLEY_TEXT_OF(x) #x
#define MOTLEY_TEXT(x) MOTLEY_TEXT_OF(x)
#define MOTLEY_CUBLAS_MAJOR MOTLEY_TEXT(CUBLAS_VER_MAJOR)

// The release whose headers this was built with, by its name and by that of a development package.
constexpr std::array<const char*, 2> kNames = {"libcublasLt.so." MOTLEY_CUBLAS_MAJOR, "libcublasLt.so"};

void require(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  kit::fail(status == CUBLAS_STATUS_ALLOC_FAILED ? MOTLEY_RESOURCE_EXHAUSTED : MOTLEY_INTERNAL, "cuBLASLt, %s: code %d",
            what, static_cast<int>(status));
}

}  // namespace

struct Library::Entries {
  void* file = nullptr;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_get;

  ~Entries() {
    if (file) dlclose(file);
  }
  template <class F>
  bool find(F& entry, const char* name) {
    entry = reinterpret_cast<F>(dlsym(file, name));
    return entry != nullptr;
  }
  bool find_all() {
    return find(create, "cublasLtCreate") && find(destroy, "cublasLtDestroy") && find(version, "cublasLtGetVersion") &&
           find(matmul, "cublasLtMatmul") && find(desc_create, "cublasLtMatmulDescCreate") &&
           find(desc_destroy, "cublasLtMatmulDescDestroy") && find(desc_set, "cublasLtMatmulDescSetAttribute") &&
           find(layout_create, "cublasLtMatrixLayoutCreate") && find(layout_destroy, "cublasLtMatrixLayoutDestroy") &&
           find(layout_set, "cublasLtMatrixLayoutSetAttribute") &&
           find(preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
           find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
  }
};

struct Library::Way {
  cublasLtMatmulAlgo_t algorithm{};
};

struct Library::Ways {
  std::unique_ptr<Way> first;  // null: the library has none
  std::array<std::unique_ptr<Way>, kBuckets.size()> of_rows;
  std::array<bool, kBuckets.size()> tried{};
  std::optional<bool> agrees;
};

namespace {

template <class T>
using Handle = std::unique_ptr<std::remove_pointer_t<T>, cublasStatus_t (*)(T)>;

}  // namespace

std::shared_ptr<const Library> Library::open(std::string* why) {
  auto entries = std::make_unique<Entries>();
  for (const char* name : kNames) {
    entries->file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (entries->file) break;
    const char* text = dlerror();
    if (why->empty()) *why = text ? text : "unknown reason";
  }
  if (!entries->file) return nullptr;
  if (!entries->find_all()) {
    *why = "cuBLASLt lacks an entry";
    return nullptr;
  }
  if (entries->version() / 10000 != CUBLAS_VER_MAJOR) {
    *why = "cuBLASLt is of release " + std::to_string(entries->version() / 10000) + ", not " MOTLEY_CUBLAS_MAJOR;
    return nullptr;
  }
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = entries->create(&handle); status != CUBLAS_STATUS_SUCCESS) {
    *why = "cuBLASLt does not start: code " + std::to_string(static_cast<int>(status));
    return nullptr;
  }
  return std::shared_ptr<const Library>(new Library(std::move(entries), handle));
}

Library::Library(std::unique_ptr<Entries> entries, void* handle) : entries_(std::move(entries)), handle_(handle) {}

Library::~Library() {
  if (handle_) entries_->destroy(static_cast<cublasLtHandle_t>(handle_));
}

uint64_t Library::version() const { return entries_->version(); }

namespace {

// What a call is for the library: column-major, so out^T = w x^T.
struct Shapes {
  template <class E>
  Shapes(const E& e, const LibraryCall& call, int64_t rows)
      : desc(nullptr, e.desc_destroy),
        w(nullptr, e.layout_destroy),
        x(nullptr, e.layout_destroy),
        out(nullptr, e.layout_destroy) {
    cublasLtMatmulDesc_t made = nullptr;
    require(e.desc_create(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    desc.reset(made);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    require(e.desc_set(made, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed), "describing a product");
    if (call.bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      require(e.desc_set(made, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), "describing a bias");
      require(e.desc_set(made, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &call.bias, sizeof call.bias), "describing a bias");
    }
    const auto batch = static_cast<int32_t>(call.batch);
    const auto layout = [&](auto& to, cudaDataType_t type, int64_t rows_of_it, int64_t cols_of_it, int64_t stride,
                            int64_t step) {
      cublasLtMatrixLayout_t one = nullptr;
      require(e.layout_create(&one, type, static_cast<uint64_t>(rows_of_it), static_cast<uint64_t>(cols_of_it), stride),
              "describing a matrix");
      to.reset(one);
      if (batch == 1) return;
      require(e.layout_set(one, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch), "describing a batch");
      require(e.layout_set(one, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step), "describing a batch");
    };
    const cudaDataType_t type = call.f16 ? CUDA_R_16F : CUDA_R_16BF;
    layout(w, type, call.cols, call.width, call.cols, call.w_step);
    layout(x, type, call.cols, rows, call.stride, 0);
    layout(out, call.out_bf16 ? CUDA_R_16BF : CUDA_R_32F, call.width, rows, call.out_stride, call.out_step);
  }
  Handle<cublasLtMatmulDesc_t> desc;
  Handle<cublasLtMatrixLayout_t> w, x, out;
};

}  // namespace

// The library's choices for so many rows that add each sum in one piece, the best first.
std::vector<Library::Way> Library::find(const LibraryCall& call, int64_t rows) const {
  const Shapes shapes(*entries_, call, rows);
  cublasLtMatmulPreference_t made = nullptr;
  require(entries_->preference_create(&made), "asking for algorithms");
  const Handle<cublasLtMatmulPreference_t> preference(made, entries_->preference_destroy);
  require(entries_->preference_set(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspace, sizeof kWorkspace),
          "asking for algorithms");
  const uint32_t one_piece = CUBLASLT_REDUCTION_SCHEME_NONE;
  require(entries_->preference_set(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &one_piece, sizeof one_piece),
          "asking for algorithms");
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
  int count = 0;
  const cublasStatus_t answer =
      entries_->heuristic(static_cast<cublasLtHandle_t>(handle_), shapes.desc.get(), shapes.w.get(), shapes.x.get(),
                          shapes.out.get(), shapes.out.get(), made, kCandidates, found.data(), &count);
  if (answer == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  require(answer, "asking for algorithms");
  std::vector<Way> ways;
  for (int i = 0; i < count; ++i) {
    int32_t split = 1;
    size_t written = 0;
    entries_->algo_get(&found[static_cast<size_t>(i)].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                       &written);
    if (split > 1 || found[static_cast<size_t>(i)].workspaceSize > kWorkspace) continue;
    ways.emplace_back().algorithm = found[static_cast<size_t>(i)].algo;
  }
  return ways;
}

namespace {

std::array<int64_t, 5> shape_of(const LibraryCall& call) {
  return {call.width, call.cols,
          (call.bias ? 1 : 0) + (call.add ? 2 : 0) + (call.out_bf16 ? 4 : 0) + (call.f16 ? 8 : 0), call.out_stride,
          call.batch};
}

// Of kBuckets.
size_t bucket_of(int64_t rows) {
  size_t i = 0;
  while (i + 1 < kBuckets.size() && rows > kBuckets[i]) ++i;
  return i;
}

}  // namespace

Library::Ways& Library::ways_for(const LibraryCall& call) const {
  std::unique_ptr<Ways>& ways = ways_[shape_of(call)];
  if (!ways) {
    auto made = std::make_unique<Ways>();
    if (const std::vector<Way> found = find(call, kBuckets.back()); !found.empty())
      made->first = std::make_unique<Way>(found.front());
    ways = std::move(made);
  }
  return *ways;
}

bool Library::knows(const LibraryCall& call) const {
  std::lock_guard lock(mutex_);
  return ways_for(call).first != nullptr;
}

namespace {

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "asking a stream");
  return capture != cudaStreamCaptureStatusNone;
}

using Memory = std::unique_ptr<void, cudaError_t (*)(void*)>;
Memory borrow(size_t bytes) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, bytes) != cudaSuccess) cudaGetLastError();
  return {memory, cudaFree};
}

// In bf16, between -4 and 4; as bits of f16, between -2.5 and 2.5.
std::vector<uint16_t> random_numbers(size_t count) {
  std::vector<uint16_t> numbers(count);
  uint32_t state = 1;
  for (uint16_t& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = kit::f32_to_bf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-29f);
  }
  return numbers;
}

}  // namespace

const Library::Way& Library::way_for(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const {
  std::lock_guard lock(mutex_);
  Ways& ways = ways_for(call);
  const size_t i = bucket_of(call.rows);
  if (!ways.tried[i] && !is_capturing(stream)) {
    ways.tried[i] = true;
    ways.of_rows[i] = fastest(call, kBuckets[i], *ways.first, workspace, stream);
  }
  return ways.of_rows[i] ? *ways.of_rows[i] : *ways.first;
}

// Times calls whose weights are not in the GPU's caches: those of few rows as steps have them, queued behind others,
// with copies of the weights in turn, where there is memory for it.
struct Library::Timer {
  Timer(Calls of, int64_t rows, cudaStream_t on) : calls(of.begin(), of.end()), stream(on), other(borrow(kCacheBytes)) {
    for (const LibraryCall& call : calls) {
      places.push_back(step);
      step += (bytes_of(call) * static_cast<size_t>(call.batch) + 255) / 256 * 256;
    }
    count = std::min(kCopiesMax, (kCopiesBytes + step - 1) / step);
    if (rows <= kQueuedRows) copies = borrow(step * count);
    check(cudaEventCreate(&from), "making an event");
    check(cudaEventCreate(&to), "making an event");
    for (size_t i = 0; copies && i < count; ++i) copy(i);
  }
  ~Timer() {
    cudaEventDestroy(from);
    cudaEventDestroy(to);
  }
  // Of the calls, or of kQueued times the calls; infinite where one is refused.
  template <class F>
  float ms_of(F&& run) {
    // For as long, the host can run ahead.
    if (other) check(cudaMemsetAsync(other.get(), 0, kCacheBytes, stream), "emptying the caches");
    check(cudaEventRecord(from, stream), "timing algorithms");
    std::vector<LibraryCall> some = calls;
    for (size_t i = 0; i < (copies ? kQueued : 1); ++i) {
      for (size_t k = 0; copies && k < some.size(); ++k)
        some[k].w = place(i % count, k), some[k].w_step = some[k].width * some[k].cols;
      if (!run(Calls(some))) return std::numeric_limits<float>::infinity();
    }
    check(cudaEventRecord(to, stream), "timing algorithms");
    check(cudaEventSynchronize(to), "timing algorithms");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, from, to), "timing algorithms");
    return ms;
  }
  void copy(size_t i) {
    for (size_t k = 0; k < calls.size(); ++k)
      for (int64_t b = 0; b < calls[k].batch; ++b)
        check(cudaMemcpyAsync(place(i, k) + static_cast<size_t>(b) * bytes_of(calls[k]),
                              static_cast<const std::byte*>(calls[k].w) + 2 * b * calls[k].w_step, bytes_of(calls[k]),
                              cudaMemcpyDeviceToDevice, stream),
              "copying weights");
  }
  static size_t bytes_of(const LibraryCall& call) { return static_cast<size_t>(call.width * call.cols) * 2; }
  std::byte* place(size_t copy, size_t k) const {
    return static_cast<std::byte*>(copies.get()) + copy * step + places[k];
  }
  std::vector<LibraryCall> calls;
  cudaStream_t stream;
  std::vector<size_t> places;  // of each call's weights in a copy
  size_t step = 0, count = 0;  // bytes of a copy, copies
  Memory copies{nullptr, cudaFree}, other;
  cudaEvent_t from = nullptr, to = nullptr;
};

// Algorithms to be tried for a call of `rows` rows.
std::vector<Library::Way> Library::candidates(const LibraryCall& call, int64_t rows) const {
  std::vector<Way> ways;
  const auto take = [&](int64_t named_for, size_t most) {
    for (const Way& way : find(call, named_for)) {
      const bool known = std::any_of(ways.begin(), ways.end(), [&](const Way& one) {
        return std::memcmp(&one.algorithm, &way.algorithm, sizeof way.algorithm) == 0;
      });
      if (!known && most-- > 0) ways.push_back(way);
      if (most == 0) return;
    }
  };
  take(rows, kTried);
  for (const int64_t also : kAlso)
    if (rows <= kAlsoUpTo) take(also, kAlsoTried);
  return ways;
}

// The fastest way whose results are those of `first`; null: none. What the call writes is overwritten.
std::unique_ptr<Library::Way> Library::fastest(const LibraryCall& call, int64_t rows, const Way& first,
                                               std::byte* workspace, cudaStream_t stream) const {
  std::vector<Way> ways = candidates(call, rows);
  LibraryCall timed = call;
  Memory elsewhere(nullptr, cudaFree);
  if (call.add) {  // it may be where the results go
    elsewhere = borrow(static_cast<size_t>(call.rows * call.out_stride) * sizeof(float));
    if (!elsewhere) return nullptr;
    timed.out = elsewhere.get();
  }
  Timer timer({&timed, 1}, rows, stream);
  std::vector<std::pair<float, size_t>> times;  // the least of each
  for (size_t i = 0; i < ways.size(); ++i) times.emplace_back(std::numeric_limits<float>::infinity(), i);
  for (int turn = 0; turn <= (timer.copies ? kTimesQueued : kTimes); ++turn) {  // in turns, as clocks change
    for (auto& [least, i] : times) {
      const float ms = timer.ms_of([&](Calls one) { return try_run(one[0], ways[i], workspace, stream); });
      if (turn > 0) least = std::min(least, ms);  // the first one may load code
    }
  }
  std::sort(times.begin(), times.end());
  const auto by = [&](const Way& way) { return [&](const LibraryCall& few) { try_run(few, way, workspace, stream); }; };
  for (const auto& [ms, i] : times)
    if (std::isfinite(ms) && same(call, compared_rows(call), by(ways[i]), by(first), stream))
      return std::make_unique<Way>(ways[i]);
  return nullptr;
}

std::span<const int64_t> Library::row_counts() { return kBuckets; }

bool Library::add_prepared(const std::vector<int64_t>& key) const {
  std::lock_guard lock(mutex_);
  return prepared_.insert(key).second;
}

bool Library::is_outrun(Calls calls, const Runs& by_library, const Runs& own, cudaStream_t stream) const {
  std::vector<int64_t> key = {static_cast<int64_t>(bucket_of(calls[0].rows))};
  for (const LibraryCall& call : calls) {
    const std::array<int64_t, 5> shape = shape_of(call);
    key.insert(key.end(), shape.begin(), shape.end());
  }
  {
    std::lock_guard lock(mutex_);
    if (const auto known = outrun_.find(key); known != outrun_.end()) return known->second;
  }
  if (is_capturing(stream)) return false;
  by_library(calls);  // its algorithms are chosen
  Timer timer(calls, calls[0].rows, stream);
  float theirs = std::numeric_limits<float>::infinity(), ours = theirs;  // the least
  for (int turn = 0; turn <= kTimesQueued; ++turn) {
    const auto ms_of = [&](const Runs& run) { return timer.ms_of([&](Calls some) { return run(some), true; }); };
    const float a = ms_of(by_library), b = ms_of(own);
    if (turn > 0) theirs = std::min(theirs, a), ours = std::min(ours, b);  // the first one may load code
  }
  std::lock_guard lock(mutex_);
  return outrun_[key] = ours < theirs;
}

bool Library::agrees(const LibraryCall& call, int64_t rows, const Other& other, std::byte* workspace,
                     cudaStream_t stream) const {
  std::lock_guard lock(mutex_);
  Ways& ways = ways_for(call);
  if (!ways.agrees) {
    if (is_capturing(stream)) kit::fail(MOTLEY_INTERNAL, "a product is recorded before it ran");
    ways.agrees = same(
        call, rows, other, [&](const LibraryCall& some) { try_run(some, *ways.first, workspace, stream); }, stream);
  }
  return *ways.agrees;
}

// Whether both give the same bits for rows of random numbers. Waits for the stream.
bool Library::same(const LibraryCall& call, int64_t rows, const Other& a, const Other& b, cudaStream_t stream) const {
  constexpr uint8_t kUnwritten = 0xff;  // as bytes of a number: a NaN
  LibraryCall some = call;
  some.rows = rows, some.out_step = rows * call.out_stride, some.stride = call.cols;
  const auto element = static_cast<size_t>(call.out_element());
  const auto bytes = static_cast<size_t>(call.batch * some.out_step) * element;
  const std::vector<uint16_t> x = random_numbers(static_cast<size_t>(rows * call.cols));
  const Memory memory = borrow(bytes), inputs = borrow(x.size() * sizeof x[0]);
  if (!memory || !inputs) return false;
  check(cudaMemcpyAsync(inputs.get(), x.data(), x.size() * sizeof x[0], cudaMemcpyHostToDevice, stream),
        "comparing algorithms");
  some.x = inputs.get(), some.out = memory.get();
  const auto results = [&](const Other& write) {
    check(cudaMemsetAsync(some.out, kUnwritten, bytes, stream), "comparing algorithms");
    write(some);
    std::vector<uint8_t> values(bytes);
    check(cudaMemcpyAsync(values.data(), some.out, bytes, cudaMemcpyDeviceToHost, stream), "comparing algorithms");
    check(cudaStreamSynchronize(stream), "comparing algorithms");
    return values;
  };
  const std::vector<uint8_t> first = results(a), second = results(b);
  for (const auto* values : {&first, &second})  // nothing was written: an algorithm refused
    if (std::all_of(values->begin(), values->begin() + static_cast<long>(element),
                    [](uint8_t byte) { return byte == kUnwritten; }))
      return false;
  for (int64_t row = 0; row < call.batch * rows; ++row) {
    const size_t at = static_cast<size_t>(row * call.out_stride) * element;
    if (std::memcmp(&first[at], &second[at], static_cast<size_t>(call.width) * element) != 0) return false;
  }
  return true;
}

void Library::multiply(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const {
  if (!try_run(call, way_for(call, workspace, stream), workspace, stream))
    kit::fail(MOTLEY_INTERNAL, "cuBLASLt does not multiply as it said that it would");
}

bool Library::try_run(const LibraryCall& call, const Way& way, std::byte* workspace, cudaStream_t stream) const {
  const Shapes shapes(*entries_, call, call.rows);
  const float one = 1, beta = call.add ? 1 : 0;
  return entries_->matmul(static_cast<cublasLtHandle_t>(handle_), shapes.desc.get(), &one, call.w, shapes.w.get(),
                          call.x, shapes.x.get(), &beta, call.add ? call.add : call.out, shapes.out.get(), call.out,
                          shapes.out.get(), &way.algorithm, workspace, kWorkspace, stream) == CUBLAS_STATUS_SUCCESS;
}

}  // namespace motley::cuda
