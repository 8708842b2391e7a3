#include "cuda/memory.hpp"

#include <cuda_runtime_api.h>

#include <utility>

#include "cuda/stream.hpp"

namespace motley::cuda {

motley_code code_of(int result) {
  switch (static_cast<cudaError_t>(result)) {
    case cudaSuccess: return MOTLEY_OK;
    case cudaErrorMemoryAllocation: return MOTLEY_RESOURCE_EXHAUSTED;
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorContextIsDestroyed:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
    case cudaErrorDevicesUnavailable: return MOTLEY_UNAVAILABLE;
    default: return MOTLEY_INTERNAL;
  }
}

void check(int result, const char* what) {
  const auto code = static_cast<cudaError_t>(result);
  if (code == cudaSuccess) return;
  cudaGetLastError();
  kit::fail(code_of(result), "%s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code));
}

int CudaMemory::processors() const {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, ordinal_), "asking for the processors");
  return count;
}

int CudaMemory::major() const {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal_), "asking for the capability");
  return major;
}

void CudaMemory::use() const { check(cudaSetDevice(ordinal_), "choosing the GPU"); }

std::byte* CudaMemory::allocate(uint64_t bytes) {
  use();
  void* at = nullptr;
  const cudaError_t code = cudaMalloc(&at, bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    kit::fail(MOTLEY_RESOURCE_EXHAUSTED, "%llu bytes of GPU memory are not to be had: %zu of %zu are free",
              static_cast<unsigned long long>(bytes), free, total);
  }
  check(code, "allocating GPU memory");
  const cudaError_t cleared = cudaMemset(at, 0, bytes);
  const cudaError_t done = cleared == cudaSuccess ? cudaStreamSynchronize(nullptr) : cleared;
  if (done != cudaSuccess) cudaFree(at);
  check(done, "clearing GPU memory");
  return static_cast<std::byte*>(at);
}

void CudaMemory::release(std::byte* at, uint64_t) noexcept {
  cudaSetDevice(ordinal_);
  cudaFree(at);
  cudaGetLastError();
}

std::unique_ptr<kit::Stream> CudaMemory::stream() { return std::make_unique<CudaStream>(*this); }

DeviceBytes::DeviceBytes(CudaMemory& memory, const void* from, uint64_t bytes) : memory_(&memory), bytes_(bytes) {
  if (bytes == 0) return;
  data_ = memory.allocate(bytes);
  try {
    memory.upload(data_, from, bytes);
  } catch (...) {
    memory.release(data_, bytes);
    throw;
  }
}

DeviceBytes::DeviceBytes(DeviceBytes&& other) noexcept
    : memory_(other.memory_), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBytes& DeviceBytes::operator=(DeviceBytes&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBytes::~DeviceBytes() {
  if (data_) memory_->release(data_, bytes_);
}

}  // namespace motley::cuda
