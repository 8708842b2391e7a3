// Products with weights in Q4_0 and Q4_1.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kQ40Kernels = kernels_of<PackedQ40>();
const StreamKernels kQ41Kernels = kernels_of<PackedQ41>();

}  // namespace motley::cuda
