// Small copies between the GPU and pinned memory, by a kernel.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch.cuh"

namespace motley::cuda {

namespace {

constexpr int kCopyThreads = 1024;

// What the host has written is read while earlier work ends. Kernels behind may look at a batch before they wait for
// all that is ahead of them: none starts before it is there.
template <class T>
__global__ void __launch_bounds__(kCopyThreads) copy_once(T* to, const T* from, int count, bool from_host) {
  constexpr int kEach = static_cast<int>(kKernelCopyMax / kCopyThreads / sizeof(T));
  T v[kEach]{};
  const auto each = [&](auto&& f) {
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      if (const int i = k * kCopyThreads + static_cast<int>(threadIdx.x); i < count) f(k, i);
  };
  const auto read = [&] { each([&](int k, int i) { v[k] = from[i]; }); };
  if (from_host) read();
  wait_for_earlier(!from_host);
  if (!from_host) read();
  each([&](int k, int i) { to[i] = v[k]; });
  if (from_host) __threadfence();
}

template <class T>
void launch(const CudaStream& stream, std::byte* to, const std::byte* from, uint64_t bytes, bool from_host) {
  const auto count = static_cast<int>(bytes / sizeof(T));
  const int threads = count < kCopyThreads ? (count + kWarp - 1) / kWarp * kWarp : kCopyThreads;
  launch_early(stream, copy_once<T>, 1, static_cast<unsigned>(threads), 0, reinterpret_cast<T*>(to),
               reinterpret_cast<const T*>(from), count, from_host);
  launched("a small copy");
}

}  // namespace

bool copy_by_kernel(const CudaStream& stream, std::byte* to, const std::byte* from, uint64_t bytes, bool from_host) {
  const uint64_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (bytes == 0 || bytes > kKernelCopyMax || places % sizeof(uint32_t) != 0) return false;
  (places % sizeof(uint4) == 0 ? launch<uint4> : launch<uint32_t>)(stream, to, from, bytes, from_host);
  return true;
}

}  // namespace motley::cuda
