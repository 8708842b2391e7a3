// Products with weights in f16.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kF16Kernels = kernels_of<F16Rows<128>, F16Rows<64>>();

}  // namespace motley::cuda
