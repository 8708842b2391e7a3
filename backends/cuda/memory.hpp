// A GPU's memory, behind kit's interface.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/upload.hpp"
#include "kit/kit.hpp"

namespace motley::cuda {

// What a cudaError_t means here. UNAVAILABLE: after it the process's context on the GPU is of no more use.
motley_code code_of(int result);
// Throws Error for a CUDA call that failed; `result` is a cudaError_t, `what` was tried.
void check(int result, const char* what);

class CudaMemory : public kit::Memory {
 public:
  // `one_class`: prompt rows are computed as generated ones are.
  explicit CudaMemory(int ordinal, bool one_class = false)
      : ordinal_(ordinal), one_class_(one_class), uploader_(ordinal) {}
  bool in_host() const override { return false; }
  std::byte* allocate(uint64_t bytes) override;
  void release(std::byte* at, uint64_t bytes) noexcept override;
  std::unique_ptr<kit::Stream> stream() override;
  bool runs_ahead() const override { return true; }
  bool one_class() const { return one_class_; }
  int processors() const;
  int major() const;  // compute capability
  // Of the host, to memory of this GPU; see Uploader.
  void upload(std::byte* to, const void* from, uint64_t bytes) { uploader_.upload(to, from, bytes); }
  // Makes this GPU the calling thread's.
  void use() const;

 private:
  const int ordinal_;
  const bool one_class_;
  Uploader uploader_;
};

// Bytes of the host, copied to the GPU at once.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(CudaMemory& memory, const void* from, uint64_t bytes);
  DeviceBytes(DeviceBytes&& other) noexcept;
  DeviceBytes& operator=(DeviceBytes&& other) noexcept;
  ~DeviceBytes();
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  CudaMemory* memory_ = nullptr;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace motley::cuda
