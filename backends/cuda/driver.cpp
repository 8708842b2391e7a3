#include "cuda/driver.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <charconv>
#include <memory>

namespace motley::cuda {

namespace {

struct Closer {
  void operator()(void* library) const { dlclose(library); }
};
using Library = std::unique_ptr<void, Closer>;

// NVML's free memory, which needs no context on the GPU. The few declarations used, so that its header is not needed.
class Nvml {
 public:
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (!library_) return;
    init_ = load<int (*)()>("nvmlInit_v2");
    shutdown_ = load<int (*)()>("nvmlShutdown");
    handle_ = load<int (*)(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2");
    memory_ = load<int (*)(void*, Memory*)>("nvmlDeviceGetMemoryInfo");
    ready_ = init_ && shutdown_ && handle_ && memory_ && init_() == 0;
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml() {
    if (ready_) shutdown_();
  }
  // `otherwise` if NVML does not say.
  uint64_t free_memory(const char* bus_id, uint64_t otherwise) const {
    void* device = nullptr;
    Memory memory{};
    if (!ready_ || handle_(bus_id, &device) != 0 || memory_(device, &memory) != 0) return otherwise;
    return memory.free;
  }

 private:
  struct Memory {
    unsigned long long total, free, used;
  };
  template <class F>
  F load(const char* name) const {
    return reinterpret_cast<F>(dlsym(library_.get(), name));
  }
  Library library_;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*handle_)(const char*, void**) = nullptr;
  int (*memory_)(void*, Memory*) = nullptr;
  bool ready_ = false;
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Sight look() {
  Sight sight;
  const Library driver(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL));
  if (!driver) {
    const char* text = dlerror();
    sight.load_error = text ? text : "unknown reason";
    return sight;
  }
  cudaRuntimeGetVersion(&sight.runtime_version);
  cudaDriverGetVersion(&sight.driver_version);
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  sight.code = code, sight.code_text = cudaGetErrorString(code);
  if (code != cudaSuccess) {
    cudaGetLastError();
    return sight;
  }
  const Nvml nvml;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      cudaGetLastError();
      continue;
    }
    char bus_id[32] = "";
    cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, i);
    const uint64_t total = properties.totalGlobalMem;
    sight.gpus.push_back(
        {i, properties.name, properties.major, properties.minor, total, nvml.free_memory(bus_id, total)});
  }
  return sight;
}

}  // namespace

bool has_code(std::string_view targets, int major, int minor) {
  constexpr std::string_view kCode = "code=";
  for (size_t at = targets.find(kCode); at != std::string_view::npos; at = targets.find(kCode, at)) {
    at += kCode.size();
    const std::string_view code = targets.substr(at, targets.find_first_of(" ,", at) - at);
    const size_t digits = code.find('_') + 1;
    int number = 0;
    const auto [end, failed] = std::from_chars(code.data() + digits, code.data() + code.size(), number);
    if (digits == 0 || failed != std::errc()) continue;
    const int asked_major = number / 10, asked_minor = number % 10;
    const char letter = end == code.data() + code.size() ? ' ' : *end;
    const bool later = minor >= asked_minor;
    if (letter == 'a'                              ? major == asked_major && minor == asked_minor
        : letter == 'f' || code.starts_with("sm_") ? major == asked_major && later
                                                   : major > asked_major || (major == asked_major && later))
      return true;
  }
  return false;
}

std::vector<Gpu> usable(const Sight& sight, std::string_view targets, std::string* why) {
  if (!sight.load_error.empty()) {
    *why = "no NVIDIA driver: " + sight.load_error;
    return {};
  }
  if (sight.code == cudaErrorInsufficientDriver) {
    *why = "the NVIDIA driver is too old: it serves CUDA " + version_text(sight.driver_version) +
           ", the plugin needs " + version_text(sight.runtime_version);
    return {};
  }
  if (sight.code == cudaErrorNoDevice || (sight.code == cudaSuccess && sight.gpus.empty())) {
    *why = "an NVIDIA driver, but no GPU that this process may use";
    return {};
  }
  if (sight.code != cudaSuccess) {
    *why = "the NVIDIA driver does not start: " + sight.code_text;
    return {};
  }
  std::vector<Gpu> found;
  for (const Gpu& gpu : sight.gpus) {
    const bool old = gpu.major < kOldestMajor;
    if (!old && has_code(targets, gpu.major, gpu.minor)) {
      found.push_back(gpu);
      continue;
    }
    *why += (why->empty() ? "" : "; ") + gpu.name + (old ? " is too old: " : " is left out: ") + "compute capability " +
            std::to_string(gpu.major) + "." + std::to_string(gpu.minor) + ", the plugin ";
    *why += old ? "needs " + std::to_string(kOldestMajor) + ".0"
                : "was built for " + std::string(targets) + " (MOTLEY_CUDA_TARGETS)";
  }
  return found;
}

std::vector<Gpu> find_gpus(std::string* why) { return usable(look(), MOTLEY_CUDA_TARGETS, why); }

}  // namespace motley::cuda
