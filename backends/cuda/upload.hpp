// Bytes of the host that go to a GPU while weights are loaded. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

typedef struct CUstream_st* cudaStream_t;  // as the CUDA runtime has them, whose header is not everywhere
typedef struct CUevent_st* cudaEvent_t;

namespace motley::cuda {

// Many bytes are taken by several threads, piece by piece through pinned memory: to bring a mapped file's pages in and
// to copy them is more than one thread's work. The memory (two pieces a thread, 32 MiB at most) is kept for the next.
class Uploader {
 public:
  explicit Uploader(int ordinal) : ordinal_(ordinal) {}
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;
  // Returns once they are there. Throws Error. From any thread, one at a time.
  void upload(std::byte* to, const void* from, uint64_t bytes);

 private:
  // What a thread has.
  struct Lane {
    cudaStream_t stream = nullptr;
    std::byte* pinned[2] = {};
    cudaEvent_t left[2] = {};  // of either piece
    int make();                // a cudaError_t
    void drop() noexcept;
  };
  void make_lanes();

  const int ordinal_;
  std::mutex mutex_;
  bool made_ = false;
  std::vector<Lane> lanes_;
};

}  // namespace motley::cuda
