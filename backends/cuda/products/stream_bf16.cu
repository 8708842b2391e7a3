// Products with weights in bf16.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kBf16Kernels = kernels_of<Bf16Rows<128>, Bf16Rows<64>>();

}  // namespace motley::cuda
