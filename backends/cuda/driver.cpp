#include "cuda/driver.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

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

std::vector<Gpu> usable(const Sight& sight, std::string* why) {
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
  for (const Gpu& gpu : sight.gpus)
    if (gpu.major >= kOldestMajor) found.push_back(gpu);
  if (found.empty()) {
    const Gpu& first = sight.gpus.front();
    *why = first.name + " is too old: compute capability " + std::to_string(first.major) + "." +
           std::to_string(first.minor) + ", the plugin needs " + std::to_string(kOldestMajor) + ".0";
  }
  return found;
}

std::vector<Gpu> find_gpus(std::string* why) { return usable(look(), why); }

}  // namespace motley::cuda
