// Products with weights in Q2_K and Q3_K.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kQ2KKernels = kernels_of<PackedQ2K>();
const StreamKernels kQ3KKernels = kernels_of<PackedQ3K>();

}  // namespace motley::cuda
