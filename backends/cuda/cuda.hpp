// The CUDA backend: its devices and what an open one gives to kit.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/stream.hpp"
#include "kit/kit.hpp"

namespace motley::cuda {

class CudaKernels : public kit::Kernels {
 public:
  CudaKernels(int ordinal, bool one_class) : memory_(ordinal, one_class) {}
  const kit::KernelTable& table() const override;
  std::unique_ptr<kit::Weight> pack(const kit::WeightSource& source) const override;
  void fuse(kit::Plan& plan) const override;
  kit::Memory& memory() const override { return memory_; }

 private:
  mutable CudaMemory memory_;
};

class CudaBackend : public kit::Backend {
 public:
  std::vector<motley_device_desc> devices(std::string* why) override;
  std::unique_ptr<kit::Kernels> open(uint32_t index, const kit::OpenOptions& options) override;
};

}  // namespace motley::cuda
