// SAMPLE on the host: kit's own over a copy of the logits, so that tokens and noise are the reference's.
// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <memory>

#include "cuda/ops.hpp"
#include "kit/reference.hpp"

namespace motley::cuda {

namespace {

// A tensor's rows in the host's memory.
class HostCopy {
 public:
  explicit HostCopy(const kit::Tensor& tensor)
      : device_(tensor), bytes_(tensor.data ? static_cast<size_t>(tensor.rows * tensor.row_bytes) : 0) {}
  void read(CudaStream& stream) {
    if (!bytes_.empty()) stream.to_host(bytes_.data(), device_.bytes(), bytes_.size());
  }
  void write(CudaStream& stream) const {
    if (!bytes_.empty()) stream.from_host(device_.bytes(), bytes_.data(), bytes_.size());
  }
  kit::Tensor tensor() {
    kit::Tensor host = device_;
    if (device_.data) host.data = bytes_.data();
    return host;
  }

 private:
  kit::Tensor device_;
  std::vector<std::byte> bytes_;
};

}  // namespace

void sample(const kit::OpCall& call) {
  CudaStream& stream = stream_of(call);
  std::vector<HostCopy> in, out;
  for (const kit::Tensor& tensor : call.in) in.emplace_back(tensor).read(stream);
  for (const kit::Tensor& tensor : call.out) out.emplace_back(tensor);
  check(cudaStreamSynchronize(stream.raw()), "reading the logits");
  std::vector<kit::Tensor> host_in, host_out;
  for (HostCopy& copy : in) host_in.push_back(copy.tensor());
  for (HostCopy& copy : out) host_out.push_back(copy.tensor());
  std::vector<std::byte> scratch(static_cast<size_t>(*static_cast<const int64_t*>(call.op->data.get())) + 64);
  kit::OpCall host = call;
  host.in = host_in, host.out = host_out;
  void* at = scratch.data();
  size_t room = scratch.size();
  host.scratch = static_cast<std::byte*>(std::align(64, room - 64, at, room));
  kit::sample(host);
  for (const HostCopy& copy : out) copy.write(stream);
  in[1].write(stream);  // the slots
  check(cudaStreamSynchronize(stream.raw()), "writing the tokens");
}

}  // namespace motley::cuda
