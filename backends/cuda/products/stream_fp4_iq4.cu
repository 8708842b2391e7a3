// Products with weights in IQ4_NL, IQ4_XS and MXFP4.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/products/packed.cuh"
#include "cuda/products/stream.cuh"

namespace motley::cuda {

const StreamKernels kIq4NlKernels = kernels_of<PackedIq4Nl>();
const StreamKernels kIq4XsKernels = kernels_of<PackedIq4Xs>();
const StreamKernels kMxfp4Kernels = kernels_of<PackedMxfp4>();

}  // namespace motley::cuda
