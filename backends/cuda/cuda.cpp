#include "cuda/cuda.hpp"

#include <cstdio>

#include "cuda/driver.hpp"
#include "cuda/ops.hpp"
#include "cuda/products/products.hpp"
#include "cuda/weight.hpp"
#include "kit/reference.hpp"

namespace motley::cuda {

namespace {

using kit::OpCall;

kit::KernelTable make_table() {
  kit::KernelTable t{};
  t[MOTLEY_OP_EMBED] = {embed, nullptr};
  t[MOTLEY_OP_MATMUL] = {matmul, product_scratch};
  t[MOTLEY_OP_ADD] = {add, nullptr};
  t[MOTLEY_OP_MUL] = {mul, nullptr};
  t[MOTLEY_OP_SCALE] = {scale, nullptr};
  t[MOTLEY_OP_RMSNORM] = {rmsnorm, nullptr};
  t[MOTLEY_OP_ROPE] = {rope, nullptr};
  t[MOTLEY_OP_SILU_MUL] = {silu_mul, nullptr};
  t[MOTLEY_OP_GELU_MUL] = {gelu_mul, nullptr};
  t[MOTLEY_OP_SOFTCAP] = {softcap, nullptr};
  t[MOTLEY_OP_SPLIT] = {split, nullptr};
  t[MOTLEY_OP_CONCAT] = {concat, nullptr};
  t[MOTLEY_OP_CAST] = {cast, nullptr};
  t[MOTLEY_OP_KV_WRITE] = {kv_write, nullptr};
  t[MOTLEY_OP_PAGED_ATTENTION] = {paged_attention, nullptr};
  t[MOTLEY_OP_ATTN_MERGE] = {attn_merge, nullptr};
  t[MOTLEY_OP_SELECT_ROWS] = {select_rows, nullptr};
  t[MOTLEY_OP_SAMPLE] = {sample, nullptr};
  t[MOTLEY_OP_TOPK_ROUTER] = {topk_router, nullptr};
  t[MOTLEY_OP_GROUPED_MATMUL] = {grouped_matmul, product_scratch};
  t[MOTLEY_OP_COMBINE_EXPERTS] = {combine_experts, nullptr};
  t[MOTLEY_OP_SIGMOID_MUL] = {sigmoid_mul, nullptr};
  t[MOTLEY_OP_CLAMPED_SWIGLU] = {clamped_swiglu, nullptr};
  return t;
}

const kit::KernelTable& kernels() {
  static const kit::KernelTable table = make_table();
  return table;
}

// By how much each pair turns from one position to the next; the angle is linear in the position.
std::shared_ptr<const void> rope_turns(CudaMemory& memory, const kit::Plan& plan, const kit::PlanOp& op) {
  const float* divisors = nullptr;
  if (op.weight[0] != MOTLEY_NONE)
    divisors = static_cast<const CudaWeight*>(plan.weights[static_cast<size_t>(op.weight[0])])->host_vector().data();
  std::vector<double> turns(static_cast<size_t>(op.attr.rope.n_rot / 2));
  for (size_t j = 0; j < turns.size(); ++j)
    turns[j] = kit::rope_angle(op.attr.rope, 1, static_cast<int32_t>(j), divisors ? divisors[j] : 1.0f);
  return std::make_shared<DeviceBytes>(memory, turns.data(), turns.size() * sizeof(double));
}

motley_device_desc describe(const Gpu& gpu) {
  motley_device_desc desc{};
  std::snprintf(desc.family, sizeof desc.family, "GPU");
  std::snprintf(desc.vendor, sizeof desc.vendor, "NVIDIA");
  std::snprintf(desc.model, sizeof desc.model, "%s", gpu.name.c_str());
  std::snprintf(desc.variant, sizeof desc.variant, "sm_%d%d", gpu.major, gpu.minor);
  desc.kind = MOTLEY_KIND_GPU;
  desc.tier = gpu.major == 9 ? MOTLEY_TIER_MEASURED : MOTLEY_TIER_CONTRACT_TESTED;  // ran on an H100 alone
  desc.alignment = 256;                                                             // cudaMalloc's
  desc.memory_total = gpu.memory_total, desc.memory_free = gpu.memory_free;
  desc.caps = MOTLEY_CAP_DYNAMIC_ROWS | MOTLEY_CAP_PAGED_ATTENTION | MOTLEY_CAP_ROW_INVARIANT | MOTLEY_CAP_ONE_CLASS;
  desc.ops = kit::ops_of(kernels());
  desc.weight_dtypes = kit::weight_formats();
  desc.kv_dtypes =
      uint64_t{1} << MOTLEY_F32 | uint64_t{1} << MOTLEY_F16 | uint64_t{1} << MOTLEY_BF16 | uint64_t{1} << MOTLEY_I8;
  return desc;
}

}  // namespace

const kit::KernelTable& CudaKernels::table() const { return kernels(); }

std::unique_ptr<kit::Weight> CudaKernels::pack(const kit::WeightSource& source) const {
  return std::make_unique<CudaWeight>(memory_, source, streaming_);
}

CudaKernels::CudaKernels(int ordinal, bool one_class, std::string* why_no_library) : memory_(ordinal) {
  memory_.use();
  streaming_ = prepare_stream();
  if (!one_class) library_ = Library::open(why_no_library);
}

void CudaKernels::fuse(kit::Plan& plan) const {
  fuse_products(plan, memory_, library_);
  for (kit::PlanOp& op : plan.ops) {
    if (op.kind == MOTLEY_OP_ROPE) op.data = rope_turns(memory_, plan, op);
    if (op.kind == MOTLEY_OP_SAMPLE) op.data = std::make_shared<int64_t>(kit::sample_scratch(plan, op));
  }
}

std::vector<motley_device_desc> CudaBackend::devices(std::string* why) {
  std::vector<motley_device_desc> found;
  for (const Gpu& gpu : find_gpus(why)) found.push_back(describe(gpu));
  return found;
}

std::unique_ptr<kit::Kernels> CudaBackend::open(uint32_t index, const kit::OpenOptions& options) {
  std::string why;
  const std::vector<Gpu> gpus = find_gpus(&why);
  if (index >= gpus.size()) kit::fail(MOTLEY_NOT_FOUND, "device %u of %zu", index, gpus.size());
  const std::string variant = describe(gpus[index]).variant;
  if (!options.variant.empty() && options.variant != variant)
    kit::fail(MOTLEY_NOT_FOUND, "this GPU has no variant \"%s\"; it has: %s", options.variant.c_str(), variant.c_str());
  auto kernels = std::make_unique<CudaKernels>(gpus[index].ordinal, options.deterministic, &why);
  if (!why.empty() && options.log)
    options.log(options.log_user, 1, ("prompts go through the plugin's own kernels: " + why).c_str());
  return kernels;
}

}  // namespace motley::cuda
