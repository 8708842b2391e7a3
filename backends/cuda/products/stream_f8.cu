// Products with weights in FP8.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kF8Kernels = kernels_of<PackedF8>();

}  // namespace motley::cuda
