// Products with weights in Q4_K, Q5_K and Q6_K.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kQ4KKernels = kernels_of<PackedQ4K>();
const StreamKernels kQ5KKernels = kernels_of<PackedQ5K>();
const StreamKernels kQ6KKernels = kernels_of<PackedQ6K>();

}  // namespace motley::cuda
