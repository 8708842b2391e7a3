// Makes a process's GPU fail for good, to see that only its worker ends. The driver loads this library into processes
// whose environment has CUDA_INJECTION64_PATH=.../libmotley_cuda_trap.so, and starts it. Once a file of its name and
// ".strike" lies beside it, a process that has a context takes that away and launches a kernel that traps, on its first
// GPU: all that it asks of that fails from then on, as after any fault of a kernel.
// SPDX-License-Identifier: Apache-2.0
#include <cuda.h>
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

namespace {

constexpr const char* kTrap =
    ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry motley_trap() { trap; ret; }\n";

template <class F>
F* driver(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}

// The first GPU that this process has a context on; false: none yet.
bool find_device(void* library, CUdevice* device) {
  const auto state = driver<decltype(cuDevicePrimaryCtxGetState)>(library, "cuDevicePrimaryCtxGetState");
  unsigned flags = 0;
  int active = 0;
  for (*device = 0; state && state(*device, &flags, &active) == CUDA_SUCCESS; ++*device) {
    if (active) return true;
  }
  return false;
}

bool launch_trap(void* library, CUdevice device) {
  const auto retain = driver<decltype(cuDevicePrimaryCtxRetain)>(library, "cuDevicePrimaryCtxRetain");
  const auto set = driver<decltype(cuCtxSetCurrent)>(library, "cuCtxSetCurrent");
  const auto load = driver<decltype(cuModuleLoadData)>(library, "cuModuleLoadData");
  const auto get = driver<decltype(cuModuleGetFunction)>(library, "cuModuleGetFunction");
  const auto launch = driver<decltype(cuLaunchKernel)>(library, "cuLaunchKernel");
  CUcontext context = nullptr;
  CUmodule module = nullptr;
  CUfunction kernel = nullptr;
  return retain && set && load && get && launch && retain(&context, device) == CUDA_SUCCESS &&
         set(context) == CUDA_SUCCESS && load(&module, kTrap) == CUDA_SUCCESS &&
         get(&kernel, module, "motley_trap") == CUDA_SUCCESS &&
         launch(kernel, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr) == CUDA_SUCCESS;
}

void wait_for(const std::string& file) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  CUdevice device = 0;
  while (library && !(find_device(library, &device) && std::remove(file.c_str()) == 0))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::fprintf(stderr, "trap: %s\n", library && launch_trap(library, device) ? "launched" : "could not be launched");
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  Dl_info own{};
  if (dladdr(reinterpret_cast<void*>(&InitializeInjection), &own) == 0) return 0;
  std::thread(wait_for, std::string(own.dli_fname) + ".strike").detach();
  return 1;
}
