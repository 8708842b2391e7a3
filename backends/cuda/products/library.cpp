#include "cuda/products/library.hpp"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace motley::cuda {

namespace {

constexpr int64_t kManyRows = 2048;  // that a shape's algorithm is chosen for
// Fewer rows take an algorithm that is chosen for so many, up to a half more of them.
constexpr std::array<int64_t, 2> kFewerRows = {128, 512};
constexpr int64_t kComparedRows = 64;
constexpr int kCandidates = 16;

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
           find(preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
           find(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(heuristic, "cublasLtMatmulAlgoGetHeuristic") && find(algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
  }
};

struct Library::Way {
  cublasLtMatmulAlgo_t algorithm;
};

struct Library::Ways {
  std::unique_ptr<Way> many;  // null: the library has none
  std::array<std::unique_ptr<Way>, kFewerRows.size()> fewer;
  std::array<bool, kFewerRows.size()> tried{};
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
    const auto layout = [&](auto& to, cudaDataType_t type, int64_t rows_of_it, int64_t cols_of_it, int64_t stride) {
      cublasLtMatrixLayout_t one = nullptr;
      require(e.layout_create(&one, type, static_cast<uint64_t>(rows_of_it), static_cast<uint64_t>(cols_of_it), stride),
              "describing a matrix");
      to.reset(one);
    };
    layout(w, CUDA_R_16BF, call.cols, call.width, call.cols);
    layout(x, CUDA_R_16BF, call.cols, rows, call.stride);
    layout(out, CUDA_R_32F, call.width, rows, call.out_stride);
  }
  Handle<cublasLtMatmulDesc_t> desc;
  Handle<cublasLtMatrixLayout_t> w, x, out;
};

}  // namespace

// The library's first choice for so many rows that adds each sum in one piece; null if it has none.
std::unique_ptr<Library::Way> Library::find(const LibraryCall& call, int64_t rows) const {
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
  if (answer == CUBLAS_STATUS_NOT_SUPPORTED) return nullptr;
  require(answer, "asking for algorithms");
  for (int i = 0; i < count; ++i) {
    int32_t split = 1;
    size_t written = 0;
    entries_->algo_get(&found[static_cast<size_t>(i)].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                       &written);
    if (split > 1 || found[static_cast<size_t>(i)].workspaceSize > kWorkspace) continue;
    return std::make_unique<Way>(Way{found[static_cast<size_t>(i)].algo});
  }
  return nullptr;
}

Library::Ways& Library::ways_for(const LibraryCall& call) const {
  std::unique_ptr<Ways>& ways = ways_[{call.width, call.cols, call.bias != nullptr, call.out_stride}];
  if (!ways) {
    auto made = std::make_unique<Ways>();
    made->many = find(call, kManyRows);
    ways = std::move(made);
  }
  return *ways;
}

bool Library::knows(const LibraryCall& call) const {
  std::lock_guard lock(mutex_);
  return ways_for(call).many != nullptr;
}

const Library::Way& Library::way_for(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const {
  std::lock_guard lock(mutex_);
  Ways& ways = ways_for(call);
  size_t i = 0;
  while (i < kFewerRows.size() && call.rows > kFewerRows[i] + kFewerRows[i] / 2) ++i;
  if (i == kFewerRows.size()) return *ways.many;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "asking a stream");
  if (!ways.tried[i] && capture == cudaStreamCaptureStatusNone) {
    ways.tried[i] = true;
    auto way = find(call, kFewerRows[i]);
    if (way && agree(call, *way, *ways.many, workspace, stream)) ways.fewer[i] = std::move(way);
  }
  return ways.fewer[i] ? *ways.fewer[i] : *ways.many;
}

// Whether both give the same bits for some of the call's rows. Waits for the stream.
bool Library::agree(const LibraryCall& call, const Way& a, const Way& b, std::byte* workspace,
                    cudaStream_t stream) const {
  LibraryCall some = call;
  some.rows = std::min(call.rows, kComparedRows);
  some.add = nullptr;
  const auto count = static_cast<size_t>((some.rows - 1) * call.out_stride + call.width);
  void* memory = nullptr;
  if (cudaMalloc(&memory, count * sizeof(float)) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  const std::unique_ptr<void, cudaError_t (*)(void*)> held(memory, cudaFree);
  some.out = static_cast<float*>(memory);
  const auto results = [&](const Way& way) {
    run(some, way, workspace, stream);
    std::vector<float> values(count);
    check(cudaMemcpyAsync(values.data(), some.out, count * sizeof(float), cudaMemcpyDeviceToHost, stream),
          "comparing algorithms");
    check(cudaStreamSynchronize(stream), "comparing algorithms");
    return values;
  };
  const std::vector<float> first = results(a), second = results(b);
  for (int64_t row = 0; row < some.rows; ++row)
    if (std::memcmp(&first[static_cast<size_t>(row * call.out_stride)],
                    &second[static_cast<size_t>(row * call.out_stride)],
                    static_cast<size_t>(call.width) * sizeof(float)) != 0)
      return false;
  return true;
}

void Library::multiply(const LibraryCall& call, std::byte* workspace, cudaStream_t stream) const {
  run(call, way_for(call, workspace, stream), workspace, stream);
}

void Library::run(const LibraryCall& call, const Way& way, std::byte* workspace, cudaStream_t stream) const {
  const Shapes shapes(*entries_, call, call.rows);
  const float one = 1, beta = call.add ? 1 : 0;
  require(entries_->matmul(static_cast<cublasLtHandle_t>(handle_), shapes.desc.get(), &one, call.w, shapes.w.get(),
                           call.x, shapes.x.get(), &beta, call.add ? call.add : call.out, shapes.out.get(), call.out,
                           shapes.out.get(), &way.algorithm, workspace, kWorkspace, stream),
          "multiplying");
}

}  // namespace motley::cuda
