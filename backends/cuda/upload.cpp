// SPDX-License-Identifier: Apache-2.0
#include "cuda/upload.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <system_error>
#include <thread>
#include <utility>

#include "cuda/memory.hpp"

namespace motley::cuda {

namespace {

constexpr uint64_t kPiece = uint64_t{2} << 20;
constexpr uint64_t kManyPieces = 8;  // fewer are not worth the threads
constexpr unsigned kLanesMax = 8;

}  // namespace

int Uploader::Lane::make() {
  cudaError_t code = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  for (int side = 0; side < 2 && code == cudaSuccess; ++side) {
    code = cudaMallocHost(reinterpret_cast<void**>(&pinned[side]), kPiece);
    if (code == cudaSuccess)
      code = cudaEventCreateWithFlags(&left[side], cudaEventDisableTiming | cudaEventBlockingSync);
  }
  return code;
}

void Uploader::Lane::drop() noexcept {
  for (int side = 0; side < 2; ++side) {
    if (left[side]) cudaEventDestroy(left[side]);
    if (pinned[side]) cudaFreeHost(pinned[side]);
  }
  if (stream) cudaStreamDestroy(stream);
}

Uploader::~Uploader() {
  if (lanes_.empty()) return;
  cudaSetDevice(ordinal_);
  for (Lane& lane : lanes_) lane.drop();
  cudaGetLastError();
}

// As many as there are cores and pinned memory for.
void Uploader::make_lanes() {
  if (std::exchange(made_, true)) return;
  const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, kLanesMax);
  lanes_.reserve(count);
  while (lanes_.size() < count) {
    Lane lane;
    if (lane.make() != cudaSuccess) {
      lane.drop();
      cudaGetLastError();
      break;
    }
    lanes_.push_back(lane);
  }
}

void Uploader::upload(std::byte* to, const void* from, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  check(cudaSetDevice(ordinal_), "choosing the GPU");
  if (bytes >= kManyPieces * kPiece) make_lanes();
  if (bytes < kManyPieces * kPiece || lanes_.empty()) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copying to the GPU");
    return;
  }
  std::atomic<uint64_t> next{0};
  std::atomic<int> failed{cudaSuccess};
  const auto carry = [&](Lane& lane) {
    cudaError_t code = cudaSetDevice(ordinal_);
    for (int side = 0; code == cudaSuccess && failed == cudaSuccess; side ^= 1) {
      const uint64_t at = next.fetch_add(kPiece);
      if (at >= bytes) break;
      const uint64_t count = std::min(kPiece, bytes - at);
      code = cudaEventSynchronize(lane.left[side]);
      if (code != cudaSuccess) break;
      std::memcpy(lane.pinned[side], static_cast<const std::byte*>(from) + at, count);
      code = cudaMemcpyAsync(to + at, lane.pinned[side], count, cudaMemcpyHostToDevice, lane.stream);
      if (code == cudaSuccess) code = cudaEventRecord(lane.left[side], lane.stream);
    }
    for (int side = 0; side < 2 && code == cudaSuccess; ++side) code = cudaEventSynchronize(lane.left[side]);
    if (code == cudaSuccess) return;
    failed = code;
    cudaStreamSynchronize(lane.stream);  // what is under way still reads and writes
  };
  std::vector<std::jthread> others;  // ended and joined however this ends
  others.reserve(lanes_.size());
  for (size_t i = 1; i < lanes_.size(); ++i) {
    try {
      others.emplace_back(carry, std::ref(lanes_[i]));
    } catch (const std::system_error&) {  // then with fewer
      break;
    }
  }
  carry(lanes_[0]);
  others.clear();
  check(failed, "copying to the GPU");
}

}  // namespace motley::cuda
