// The CUDA backend: its devices and what an open one gives to kit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/products/library.hpp"
#include "cuda/stream.hpp"
#include "kit/kit.hpp"

namespace motley::cuda {

class CudaKernels : public kit::Kernels {
 public:
  // one_class: prompt rows go the way of generated ones.
  CudaKernels(int ordinal, bool one_class, std::string* why_no_library);
  const kit::KernelTable& table() const override;
  std::unique_ptr<kit::Weight> pack(const kit::WeightSource& source) const override;
  void fuse(kit::Plan& plan) const override;
  kit::Memory& memory() const override { return memory_; }
  bool attends_partially() const override { return true; }

 private:
  mutable CudaMemory memory_;
  bool streaming_ = false;
  std::shared_ptr<const Library> library_;
};

class CudaBackend : public kit::Backend {
 public:
  std::vector<motley_device_desc> devices(std::string* why) override;
  std::unique_ptr<kit::Kernels> open(uint32_t index, const kit::OpenOptions& options) override;
};

}  // namespace motley::cuda
