// SPDX-License-Identifier: Apache-2.0
#include "cuda/boxes.hpp"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "kit/kit.hpp"

namespace motley::cuda {

namespace {

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result) !=
        cudaSuccess)
      cudaGetLastError();
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry) : nullptr;
  }();
  return found;
}

}  // namespace

bool has_boxes() { return encoder() != nullptr; }

bool is_boxed(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

CUtensorMap describe_boxes(const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows) {
  CUtensorMap map;
  const cuuint64_t size[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t apart[] = {static_cast<cuuint64_t>(stride) * 2};  // bytes
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)}, each[] = {1, 1};
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), size, apart,
                                    box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) kit::fail(MOTLEY_INTERNAL, "describing a matrix: code %d", static_cast<int>(result));
  return map;
}

}  // namespace motley::cuda
