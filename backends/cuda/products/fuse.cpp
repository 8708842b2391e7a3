#include <algorithm>
#include <numeric>

#include "cuda/products/products.hpp"

namespace motley::cuda {

namespace {

constexpr int64_t kSlab = int64_t{128} << 20;  // bytes of de-quantised weights
constexpr int64_t kAlign = 256;

int64_t align(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

const CudaWeight* weight_of(const kit::Plan& plan, const kit::PlanOp& op, size_t i) {
  return static_cast<const CudaWeight*>(plan.weights[static_cast<size_t>(op.weight[i])]);
}

const kit::PlanValue& value_of(const kit::Plan& plan, int32_t id) { return plan.values[static_cast<size_t>(id)]; }

int64_t rows_of(const kit::Plan& plan, int32_t id) {
  const int64_t rows = value_of(plan, id).rows;
  return rows < 0 ? plan.rows_max : rows;
}

bool touches(const kit::PlanOp& op, int32_t value) {
  return std::find(op.in.begin(), op.in.end(), value) != op.in.end() ||
         std::find(op.out.begin(), op.out.end(), value) != op.out.end();
}

bool is_product(const kit::PlanOp& op) { return op.kind == MOTLEY_OP_MATMUL; }

bool may_join(const kit::Plan& plan, const kit::PlanOp& a, const kit::PlanOp& b) {
  if (!is_product(a) || !is_product(b) || a.in[0] != b.in[0] || a.out.size() >= kProductsMax) return false;
  const CudaWeight &v = *weight_of(plan, a, 0), &w = *weight_of(plan, b, 0);
  return v.format == w.format && v.view().row_bytes == w.view().row_bytes && v.view().streams && w.view().streams;
}

// Moves later products of the same input up to the first one, past ops that have nothing to do with their results.
void join_products(kit::Plan& plan) {
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    for (size_t j = i + 1; j < plan.ops.size(); ++j) {
      if (!may_join(plan, plan.ops[i], plan.ops[j])) continue;
      const int32_t x = plan.ops[i].in[0], out = plan.ops[j].out[0];
      const bool apart = std::none_of(
          plan.ops.begin() + static_cast<long>(i), plan.ops.begin() + static_cast<long>(j), [&](const kit::PlanOp& op) {
            return touches(op, out) || std::find(op.out.begin(), op.out.end(), x) != op.out.end();
          });
      if (!apart) break;
      plan.ops[i].out.push_back(out);
      plan.ops[i].weight.insert(plan.ops[i].weight.end(), plan.ops[j].weight.begin(), plan.ops[j].weight.end());
      plan.ops.erase(plan.ops.begin() + static_cast<long>(j--));
    }
  }
}

// Products of one width beside each other, as their weights lie: the library may take them at once.
void sort_products(kit::Plan& plan) {
  for (kit::PlanOp& op : plan.ops) {
    if (!is_product(op) || op.out.size() < 2) continue;
    std::vector<size_t> order(op.out.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto place = [&](size_t i) {
      const CudaWeight& w = *static_cast<const CudaWeight*>(plan.weights[static_cast<size_t>(op.weight[2 * i])]);
      return std::pair(-w.rows, w.view().data);
    };
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return place(a) < place(b); });
    const std::vector<int32_t> out = op.out, weight = op.weight;
    for (size_t i = 0; i < order.size(); ++i) {
      op.out[i] = out[order[i]];
      op.weight[2 * i] = weight[2 * order[i]], op.weight[2 * i + 1] = weight[2 * order[i] + 1];
    }
  }
}

Job shape_of(const kit::Plan& plan, const kit::PlanOp& op) {
  Job job{};
  job.cols = static_cast<int32_t>(value_of(plan, op.in[0]).width);
  for (const int32_t out : op.out) job.tiles += tiles_of(value_of(plan, out).width);
  return job;
}

}  // namespace

int64_t slab_rows(int64_t width, int64_t cols) {
  constexpr int64_t kMultiple = 128;
  return std::min(width, std::max(kSlab / (2 * cols) / kMultiple * kMultiple, kMultiple));
}

LibraryScratch library_scratch(int64_t rows, int64_t cols) {
  LibraryScratch s;
  s.workspace = align(rows * bf16_stride(cols) * 2);
  s.beside = s.workspace + static_cast<int64_t>(Library::kWorkspace);
  s.slab = s.beside + static_cast<int64_t>(Library::kWorkspace);
  s.bytes = s.slab;
  return s;
}

int64_t product_scratch(const kit::Plan& plan, const kit::PlanOp& op) {
  const int64_t rows = rows_of(plan, op.in[0]), cols = value_of(plan, op.in[0]).width;
  const CudaWeight* const w = op.weight[0] == MOTLEY_NONE ? nullptr : weight_of(plan, op, 0);
  if (op.kind == MOTLEY_OP_GROUPED_MATMUL) {
    const int64_t pairs = rows * value_of(plan, op.in[1]).width;
    return choice_scratch(pairs, w ? (cols != w->cols ? pairs : rows) : pairs, w ? w->cols : cols,
                          w ? w->experts : 1024);
  }
  int64_t bytes = stream_scratch(shape_of(plan, op), rows);
  const LibraryScratch library = library_scratch(rows, cols);
  int64_t slab = 0;
  for (size_t i = 0; i < op.out.size(); ++i) {
    const int64_t width = value_of(plan, op.out[i]).width;
    if (!w || !w->view().direct) slab = std::max(slab, slab_rows(width, cols) * cols * 2);
  }
  return std::max(bytes, library.bytes + align(slab));
}

void fuse_products(kit::Plan& plan, CudaMemory& memory, const std::shared_ptr<const Library>& library) {
  join_products(plan);
  sort_products(plan);
  for (kit::PlanOp& op : plan.ops) {
    if (op.kind != MOTLEY_OP_MATMUL && op.kind != MOTLEY_OP_GROUPED_MATMUL) continue;
    op.scratch_bytes = product_scratch(plan, op);
    if (!is_product(op)) continue;
    auto data = std::make_shared<ProductData>();
    data->cublaslt = library;
    data->head = value_of(plan, op.in[0]).rows == MOTLEY_DIM_HEAD_ROWS;
    const int64_t counters = stream_counters(shape_of(plan, op), rows_of(plan, op.in[0]));
    data->counters = kit::Allocation(memory, static_cast<uint64_t>(counters) * sizeof(uint32_t));
    op.data = std::move(data);
  }
}

}  // namespace motley::cuda
