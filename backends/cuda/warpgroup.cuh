// What kernels of warpgroups' instructions share (compute capability 9.0a).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/barrier.cuh"

namespace motley::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Operands of an instruction's sums.
#define MOTLEY_FOUR_SUMS(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last kLeft that were closed are done.
template <int kLeft>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// What was copied, but for bulk copies, is seen by the tensor cores from here on.
__device__ inline void show_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// An operand as the tensor cores find it: address, 1024 bytes from 8 rows to the next 8, 128-byte swizzle. Where rows
// are added over, `apart` is from a panel of 64 columns to the next; else it says nothing.
__device__ inline uint64_t describe_pieces(uint32_t at, uint32_t apart = 16) {
  return uint64_t{(at & 0x3ffffu) >> 4} | uint64_t{apart >> 4} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

#endif

}  // namespace motley::cuda
