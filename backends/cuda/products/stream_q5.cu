// Products with weights in Q5_0 and Q5_1.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kQ50Kernels = kernels_of<PackedQ50>();
const StreamKernels kQ51Kernels = kernels_of<PackedQ51>();

}  // namespace motley::cuda
