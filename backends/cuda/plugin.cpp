// The plugin's one exported symbol.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/cuda.hpp"

MOTLEY_KIT_PLUGIN(motley::cuda::CudaBackend, "cuda", "0.1.0")
