#include "cuda/cuda.hpp"

#include <cstdio>

#include "cuda/driver.hpp"
#include "cuda/ops.hpp"
#include "cuda/products/products.hpp"
#include "cuda/weight.hpp"

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

motley_device_desc describe(const Gpu& gpu) {
  motley_device_desc desc{};
  std::snprintf(desc.family, sizeof desc.family, "GPU");
  std::snprintf(desc.vendor, sizeof desc.vendor, "NVIDIA");
  std::snprintf(desc.model, sizeof desc.model, "%s", gpu.name.c_str());
  std::snprintf(desc.variant, sizeof desc.variant, "sm_%d%d", gpu.major, gpu.minor);
  desc.kind = MOTLEY_KIND_GPU;
  desc.tier = gpu.major == 9 ? MOTLEY_TIER_MEASURED : MOTLEY_TIER_CONTRACT_TESTED;  // ran on H100 and H200
  desc.alignment = 256;                                                             // cudaMalloc's
  desc.memory_total = gpu.memory_total, desc.memory_free = gpu.memory_free;
  desc.caps = MOTLEY_CAP_DYNAMIC_ROWS | MOTLEY_CAP_PAGED_ATTENTION | MOTLEY_CAP_ROW_INVARIANT | MOTLEY_CAP_ONE_CLASS |
              MOTLEY_CAP_PARTIAL_ATTENTION;
  desc.ops = kit::ops_of(kernels());
  desc.weight_dtypes = kit::weight_formats();
  desc.kv_dtypes = kit::kKvDtypes;
  return desc;
}

}  // namespace

const kit::KernelTable& CudaKernels::table() const { return kernels(); }

std::unique_ptr<kit::Weight> CudaKernels::pack(const kit::WeightSource& source) const {
  return std::make_unique<CudaWeight>(memory_, source, streaming_);
}

CudaKernels::CudaKernels(int ordinal, bool one_class, std::string* why_no_library) : memory_(ordinal, one_class) {
  memory_.use();
  streaming_ = prepare_stream();
  if (!one_class) library_ = Library::open(why_no_library);
}

void CudaKernels::fuse(kit::Plan& plan) const {
  fuse_products(plan, memory_, library_);
  cuda::fuse(plan, memory_);
  if (library_) {
    memory_.use();
    prepare_products(plan, memory_, *library_);
  }
}

std::vector<motley_device_desc> CudaBackend::devices(std::string* why) {
  std::vector<motley_device_desc> found;
  for (const Gpu& gpu : find_gpus(why)) found.push_back(describe(gpu));
  return found;
}

std::unique_ptr<kit::Kernels> CudaBackend::open(uint32_t index, const kit::OpenOptions& options) {
  std::string left_out, why;
  const std::vector<Gpu> gpus = find_gpus(&left_out);
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
