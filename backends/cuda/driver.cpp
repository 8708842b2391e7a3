#include "cuda/driver.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
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

namespace {

// Whether code of one name (sm_90a, compute_80) runs at a compute capability; anything else does not.
bool runs(std::string_view code, int major, int minor) {
  const bool intermediate = code.starts_with("compute_");
  if (!intermediate && !code.starts_with("sm_")) return false;
  code.remove_prefix(code.find('_') + 1);
  int number = 0;
  const auto [end, failed] = std::from_chars(code.data(), code.data() + code.size(), number);
  if (failed != std::errc()) return false;
  const std::string_view letter(end, static_cast<size_t>(code.data() + code.size() - end));
  const bool same = major == number / 10, later = minor >= number % 10;
  if (letter == "a") return same && minor == number % 10;
  if (letter == "f" || !intermediate) return same && later;
  return major > number / 10 || (same && later);
}

}  // namespace

bool has_code(std::string_view targets, int major, int minor) {
  constexpr std::string_view kBetween = " ,;[]\"'";
  bool found = false;
  for (size_t at = 0; at < targets.size();) {
    const size_t end = std::min(targets.find_first_of(kBetween, at), targets.size());
    std::string_view word = targets.substr(at, end - at);
    constexpr std::string_view kCode = "code=";
    if (word.starts_with(kCode)) word.remove_prefix(kCode.size());
    found = found || runs(word, major, minor);  // "arch=..." is no code
    at = end + 1;
  }
  return found;
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
    *why += (why->empty() ? "GPU " : "; GPU ") + std::to_string(gpu.ordinal) + " (" + gpu.name +
            ", compute capability " + std::to_string(gpu.major) + "." + std::to_string(gpu.minor) + ") ";
    *why += old ? "is too old: the plugin needs " + std::to_string(kOldestMajor) + ".0"
                : "is left out: this build has no code for it (MOTLEY_CUDA_TARGETS)";
  }
  return found;
}

std::vector<Gpu> find_gpus(std::string* why) { return usable(look(), MOTLEY_CUDA_TARGETS, why); }

}  // namespace motley::cuda
