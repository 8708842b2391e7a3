#include "cuda/memory.hpp"

#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>

namespace motley::cuda {

namespace {

constexpr uint64_t kStageStart = uint64_t{1} << 16;  // bytes
constexpr uint64_t kStageAlign = 16;

// After these the process's context on the GPU is of no more use.
bool is_fatal(cudaError_t code) {
  switch (code) {
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
    case cudaErrorDevicesUnavailable: return true;
    default: return false;
  }
}

const char* text_of(Fault fault) {
  switch (fault) {
    case Fault::kToken: return "EMBED: a token slot holds no id of the vocabulary";
    case Fault::kExpert: return "GROUPED_MATMUL: an expert id is out of range";
    default: return "a kernel reported an unknown fault";
  }
}

// Puts arrays of the host one behind the other.
class Layout {
 public:
  // Where an array of `count` will lie; nothing for a null one.
  template <class T>
  void add(const T* from, uint64_t count, const T** place) {
    if (!from || count == 0) return;
    items_.push_back({from, count * sizeof(T), bytes_, reinterpret_cast<const void**>(place)});
    bytes_ += (count * sizeof(T) + kStageAlign - 1) / kStageAlign * kStageAlign;
  }
  uint64_t bytes() const { return bytes_; }
  void write(std::byte* staged, const std::byte* arrived) const {
    std::memset(staged, 0, kStageAlign);
    for (const Item& item : items_) {
      std::memcpy(staged + item.offset, item.from, item.bytes);
      *item.place = arrived + item.offset;
    }
  }

 private:
  struct Item {
    const void* from;
    uint64_t bytes, offset;
    const void** place;
  };
  std::vector<Item> items_;
  uint64_t bytes_ = kStageAlign;  // the fault comes first
};

}  // namespace

void check(int result, const char* what) {
  const auto code = static_cast<cudaError_t>(result);
  if (code == cudaSuccess) return;
  cudaGetLastError();
  const motley_code as = code == cudaErrorMemoryAllocation ? MOTLEY_RESOURCE_EXHAUSTED
                         : is_fatal(code)                  ? MOTLEY_UNAVAILABLE
                                                           : MOTLEY_INTERNAL;
  kit::fail(as, "%s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code));
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
  const cudaError_t code = cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice);
  if (code != cudaSuccess) memory.release(data_, bytes);
  check(code, "copying to the GPU");
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

CudaStream::CudaStream(CudaMemory& memory) : memory_(memory) {
  memory_.use();
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
}

CudaStream::~CudaStream() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
  cudaFreeHost(staged_);
  if (arrived_) memory_.release(arrived_, room_);
  cudaGetLastError();
}

void CudaStream::copy(std::byte* to, const std::byte* from, uint64_t bytes) {
  memory_.use();
  if (to >= from + bytes || from >= to + bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "a copy inside the GPU");
    return;
  }
  std::byte* const between = memory_.allocate(bytes);  // the places overlap
  const cudaError_t out = cudaMemcpyAsync(between, from, bytes, cudaMemcpyDeviceToDevice, stream_);
  const cudaError_t back = cudaMemcpyAsync(to, between, bytes, cudaMemcpyDeviceToDevice, stream_);
  const cudaError_t done = cudaStreamSynchronize(stream_);
  memory_.release(between, bytes);
  for (const cudaError_t code : {out, back, done}) check(code, "a copy inside the GPU");
}

void CudaStream::to_host(void* to, const std::byte* from, uint64_t bytes) {
  memory_.use();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "a copy from the GPU");
}

void CudaStream::from_host(std::byte* to, const void* from, uint64_t bytes) {
  memory_.use();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "a copy to the GPU");
}

// Room for a batch on both sides.
void CudaStream::stage(uint64_t bytes) {
  if (bytes <= room_) return;
  const uint64_t room = std::max(bytes * 2, kStageStart);
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
  cudaFreeHost(std::exchange(staged_, nullptr));
  if (arrived_) memory_.release(std::exchange(arrived_, nullptr), room_);
  room_ = 0;
  check(cudaMallocHost(reinterpret_cast<void**>(&staged_), room), "allocating pinned memory");
  arrived_ = memory_.allocate(room);
  room_ = room;
}

void CudaStream::begin(const motley_batch& b, std::span<const int32_t> row_sequence) {
  memory_.use();
  batch_ = DeviceBatch{};
  batch_.rows = static_cast<int32_t>(b.rows);
  Layout layout;
  layout.add(b.token_ids, b.rows, &batch_.token_ids);
  layout.add(b.token_slots, b.rows, &batch_.token_slots);
  layout.add(b.positions, b.rows, &batch_.positions);
  layout.add(b.kv_slots, b.rows, &batch_.kv_slots);
  layout.add(b.head_rows, b.head_row_count, &batch_.head_rows);
  if (!row_sequence.empty()) {  // the rest is checked for what attends only
    layout.add(row_sequence.data(), row_sequence.size(), &batch_.row_sequence);
    layout.add(b.seq_block_begin, uint64_t{b.seqs} + 1, &batch_.seq_block_begin);
    layout.add(b.blocks, b.seq_block_begin[b.seqs], &batch_.blocks);
  }
  stage(layout.bytes());
  layout.write(staged_, arrived_);
  batch_.fault = reinterpret_cast<int32_t*>(arrived_);
  check(cudaMemcpyAsync(arrived_, staged_, layout.bytes(), cudaMemcpyHostToDevice, stream_), "copying a batch");
  in_program_ = true;
}

void CudaStream::finish() {
  memory_.use();
  if (std::exchange(in_program_, false))
    check(cudaMemcpyAsync(staged_, arrived_, sizeof(int32_t), cudaMemcpyDeviceToHost, stream_), "reading the outcome");
  else if (staged_)
    std::memset(staged_, 0, sizeof(int32_t));
  check(cudaStreamSynchronize(stream_), "work on the GPU");
  const auto fault = staged_ ? static_cast<Fault>(*reinterpret_cast<const int32_t*>(staged_)) : Fault::kNone;
  if (fault != Fault::kNone) kit::fail(MOTLEY_OUT_OF_RANGE, "%s", text_of(fault));
}

}  // namespace motley::cuda
