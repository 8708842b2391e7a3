#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <optional>

#include "cuda/products/products.hpp"
#include "cuda/stream.hpp"
#include "cuda/weight.hpp"

namespace motley::cuda {

namespace {

constexpr int64_t kWeightsLeast = int64_t{1} << 22;  // of products: choosing for fewer takes a step no time to speak of
constexpr int64_t kHeadRowsMost = 256;               // steps want few rows of logits

// A product's operands for `rows` rows, of one content all over. Throws Error where there is no memory for them.
class Trial {
 public:
  Trial(const kit::Plan& plan, const kit::PlanOp& op, CudaMemory& memory, CudaStream& stream, int64_t rows)
      : scratch_(memory, static_cast<uint64_t>(op.scratch_bytes)) {
    const auto tensor = [&](int32_t id) -> kit::Tensor {
      if (id == MOTLEY_NONE) return {};
      const kit::PlanValue& value = plan.values[static_cast<size_t>(id)];
      auto& held = values_[id];
      if (!held) {
        held.emplace(memory, static_cast<uint64_t>(rows * value.row_bytes));
        constexpr int kSmall = 0x3c;  // as bytes of a float or a bf16
        check(cudaMemsetAsync(held->data(), kSmall, static_cast<size_t>(rows * value.row_bytes), stream.raw()),
              "preparing products");
      }
      return {held->data(), rows, value.width, value.row_bytes, value.width, value.dtype};
    };
    for (const int32_t id : op.in) in_.push_back(tensor(id));
    for (const int32_t id : op.out) out_.push_back(tensor(id));
    for (const int32_t id : op.weight)
      weights_.push_back(id == MOTLEY_NONE ? nullptr : plan.weights[static_cast<size_t>(id)]);
    generated_.assign(static_cast<size_t>(rows), 0);
    batch_.rows = static_cast<uint32_t>(rows), batch_.generated = generated_.data();
    call_.op = &op, call_.in = in_, call_.out = out_, call_.weight = weights_, call_.batch = &batch_;
    call_.scratch = scratch_.data(), call_.stream = &stream;
  }
  void run() const { call_.op->kernel(call_); }

 private:
  kit::Allocation scratch_;
  std::map<int32_t, std::optional<kit::Allocation>> values_;
  std::vector<kit::Tensor> in_, out_;
  std::vector<const kit::Weight*> weights_;
  std::vector<uint8_t> generated_;
  motley_batch batch_{};
  kit::OpCall call_;
};

bool is_head(const kit::Plan& plan, const kit::PlanOp& product) {
  return plan.values[static_cast<size_t>(product.in[0])].rows == MOTLEY_DIM_HEAD_ROWS;
}

// What choices hang on; empty: nothing is to be chosen.
std::vector<int64_t> key_of(const kit::Plan& plan, const kit::PlanOp& op) {
  if (op.kind != MOTLEY_OP_MATMUL || op.weight[0] == MOTLEY_NONE) return {};
  const bool head = is_head(plan, op);
  const auto& first = *static_cast<const CudaWeight*>(plan.weights[static_cast<size_t>(op.weight[0])]);
  if (is_exact(first) || (head && !first.view().direct)) return {};  // which the library does not multiply
  std::vector<int64_t> key = {head, first.format, first.cols, static_cast<int64_t>(op.in.size()),
                              static_cast<int64_t>(op.weight.size())};
  int64_t rows = 0;
  for (const int32_t id : op.out) {
    if (id == MOTLEY_NONE) continue;
    key.push_back(plan.values[static_cast<size_t>(id)].width), rows += key.back();
  }
  return rows * first.cols < kWeightsLeast ? std::vector<int64_t>() : key;
}

}  // namespace

void prepare_products(const kit::Plan& plan, CudaMemory& memory, const Library& library) {
  std::optional<CudaStream> stream;
  for (const kit::PlanOp& op : plan.ops) {
    std::vector<int64_t> key = key_of(plan, op);
    if (key.empty()) continue;
    const int64_t most = is_head(plan, op) ? std::min(plan.rows_max, kHeadRowsMost) : plan.rows_max;
    for (const int64_t bucket : Library::row_counts()) {
      const int64_t rows = std::min(bucket, most);
      key.push_back(rows);
      const bool known = !library.add_prepared(key);
      key.pop_back();
      if (!known) {
        if (!stream) stream.emplace(memory);
        try {
          Trial(plan, op, memory, *stream, rows).run();
        } catch (const kit::Error&) {  // too little memory: a step chooses
          return;
        }
        check(cudaStreamSynchronize(stream->raw()), "preparing products");
      }
      if (bucket >= most) break;
    }
  }
}

}  // namespace motley::cuda
