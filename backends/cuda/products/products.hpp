// How products are prepared: which run together, by what, and in how much scratch.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/products/library.hpp"
#include "cuda/products/stream.hpp"
#include "kit/kit.hpp"
#include "kit/memory.hpp"

namespace motley::cuda {

// PlanOp::data of a MATMUL. Its input: x; its weights: weight and bias of each product.
struct ProductData {
  std::shared_ptr<const Library> cublaslt;  // null: own kernels take all rows
  kit::Allocation counters;                 // of multiply_rows, zero between calls
  bool head = false;                        // no prompt rows
};

// Where a product by the library has its parts, and how many bytes it needs.
struct LibraryScratch {
  int64_t workspace, beside, slab, bytes;  // beside: another workspace
};
LibraryScratch library_scratch(int64_t rows, int64_t cols);
// Weight rows that are de-quantised at once.
int64_t slab_rows(int64_t width, int64_t cols);

// Of a MATMUL or a GROUPED_MATMUL; without weights the most that any need.
int64_t product_scratch(const kit::Plan& plan, const kit::PlanOp& op);

// Joins products of one input, takes an addition into the product before it, and prepares them.
void fuse_products(kit::Plan& plan, CudaMemory& memory, const std::shared_ptr<const Library>& library);

// Whether a weight's numbers are never rounded to bf16; the library does not multiply it then.
bool is_exact(const CudaWeight& weight);

// Runs large products of a fused plan once for each number of rows that has an algorithm of its own, so that no step
// waits while one is chosen: a second or so in all, once for each shape of a device.
void prepare_products(const kit::Plan& plan, CudaMemory& memory, const Library& library);

}  // namespace motley::cuda
