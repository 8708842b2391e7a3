// Products with weights in Q8_0.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kQ80Kernels = kernels_of<PackedQ80>();

}  // namespace motley::cuda
