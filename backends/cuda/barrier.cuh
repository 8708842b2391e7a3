// Barriers in shared memory, and the copies that they count (compute capability 9.0). A barrier's phase is over once so
// many have arrived as it was made for and all bytes that it was told of have come.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace motley::cuda {

__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// By one thread, before a barrier of the block.
__device__ inline void make_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Each also with an address in shared memory, for loops that should not find it afresh.
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void arrive(uint64_t* barrier) { arrive(shared_address(barrier)); }
// Tells of bytes as well.
__device__ inline void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void arrive_expecting(uint64_t* barrier, int bytes) {
  arrive_expecting(shared_address(barrier), bytes);
}
// Tells of bytes alone, before the caller arrives.
__device__ inline void expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity is over.
__device__ inline void wait_for_phase(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ inline void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  wait_for_phase(shared_address(barrier), parity);
}

// A box of a matrix that the host has described (CUtensorMap), from a column and a row on; zeros where it has none.
// `to` and `barrier`: in shared memory.
__device__ inline void copy_box(uint32_t to, const void* matrix, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(matrix), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
#endif

}  // namespace motley::cuda
