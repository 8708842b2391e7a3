// For sources that nvcc compiles: launching kernels, and what their threads share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <utility>

#include "cuda/ops.hpp"

namespace motley::cuda {

constexpr int kThreads = 256;  // of a block, where nothing else asks for another number
constexpr int kWarp = 32;
constexpr int64_t kGridMax = 65535;

// Enough blocks for `count` threads, or as many as take turns.
inline unsigned blocks_for(int64_t count, int64_t per_block = kThreads) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kGridMax ? blocks : kGridMax);
}

// For kernels that begin with wait_for_earlier(): their blocks may be set up while the kernel before them ends.
template <class... Parameter, class... Argument>
void launch_early(const CudaStream& stream, void (*kernel)(Parameter...), dim3 grid, unsigned threads, size_t shared,
                  Argument&&... argument) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = shared;
  config.stream = stream.raw(), config.attrs = &early, config.numAttrs = stream.starts_early() ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, Parameter(std::forward<Argument>(argument))...);
}
// What was enqueued before is done, and seen, from here on. Where it is little that this kernel does, the next one may
// start at once: products then ask for weights while this one waits. (Blocks that wait would be in the way of more.)
constexpr unsigned kLittle = 16;  // blocks
__device__ inline void wait_for_earlier(bool little) {
#if __CUDA_ARCH__ >= 900
  if (little) asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void wait_for_earlier() { wait_for_earlier(gridDim.x <= kLittle); }
// Lets a kernel have so much dynamic shared memory, once for each GPU.
template <auto kernel>
void allow_shared(size_t bytes, const char* what) {
  static std::atomic<uint64_t> allowed{0};
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), what);
  const uint64_t bit = uint64_t{1} << (ordinal % 64);
  if (ordinal < 64 && allowed.load() & bit) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), what);
  allowed |= bit;
}
// For four numbers at once.
inline bool is_aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % sizeof(float4) == 0; }
inline void launched(const char* what) { check(cudaGetLastError(), what); }

// This thread's first item and the distance to its next one.
__device__ inline int64_t first_item() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline int64_t item_step() { return int64_t{gridDim.x} * blockDim.x; }

__device__ inline float warp_sum(float x) {
  for (int apart = kWarp / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int apart = kWarp / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
  return x;
}

__device__ inline void report(const FaultPlace* place, Fault what) {
  atomicCAS(place->at, 0, static_cast<int32_t>(what));
}

}  // namespace motley::cuda
