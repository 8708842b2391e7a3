// Functions that kernels of more than one file apply: the bits are the same wherever that is done.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace motley::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float silu_times(float gate, float x) { return gate * sigmoid(gate) * x; }

}  // namespace motley::cuda
