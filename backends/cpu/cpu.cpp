// The CPU plugin: which kernels this machine can run, and the device they make.
// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <string>

#include "cpu/ops.hpp"
#include "cpu/variants.hpp"
#include "cpu/weight.hpp"

namespace motley::cpu {
namespace {

class CpuKernels final : public kit::Kernels {
 public:
  CpuKernels(const KernelSet& set, const kit::OpenOptions& options)
      : set_(set), threads_(kit::Kernels::threads(options)), one_class_(options.deterministic) {}

  const kit::KernelTable& table() const override { return kernel_table(); }
  std::unique_ptr<kit::Weight> pack(const kit::WeightSource& source) const override {
    return std::make_unique<PackedWeight>(source, allocator_, threads_, set_.narrow != nullptr);
  }
  const char* refuse(const kit::Plan&, const kit::PlanOp& op) const override {
    if (op.kind == MOTLEY_OP_PAGED_ATTENTION &&
        op.attr.attention.heads / op.attr.attention.kv_heads > kAttentionQueries) {
      return "more than 64 query heads share a KV head";
    }
    return nullptr;
  }
  void fuse(kit::Plan& plan) const override { cpu::fuse(plan, set_, one_class_); }
  bool attends_partially() const override { return true; }
  kit::KvOrder kv_order() const override { return kit::KvOrder::kKeysByDim; }

 private:
  const KernelSet& set_;
  const uint32_t threads_;
  const bool one_class_;
  mutable SlabAllocator allocator_;
};

class CpuBackend final : public kit::Backend {
 public:
  std::vector<motley_device_desc> devices(std::string*) override {
    motley_device_desc desc{};
    kit::describe_host_cpu(&desc);
    std::snprintf(desc.family, sizeof desc.family, "CPU");
    std::snprintf(desc.variant, sizeof desc.variant, "%s", variants().front()->name);
    desc.tier = MOTLEY_TIER_MEASURED;
    desc.caps = MOTLEY_CAP_DYNAMIC_ROWS | MOTLEY_CAP_PAGED_ATTENTION | MOTLEY_CAP_HOST_MEMORY | MOTLEY_CAP_IMPORT_HOST |
                MOTLEY_CAP_ROW_INVARIANT | MOTLEY_CAP_ONE_CLASS | MOTLEY_CAP_PARTIAL_ATTENTION;
    desc.ops = kit::ops_of(kernel_table());
    desc.weight_dtypes = packed_formats();
    desc.kv_dtypes = kit::kKvDtypes;
    return {desc};
  }

  std::unique_ptr<kit::Kernels> open(uint32_t, const kit::OpenOptions& options) override {
    if (options.variant.empty()) return std::make_unique<CpuKernels>(*variants().front(), options);
    std::string names;
    for (const KernelSet* set : variants()) {
      if (options.variant == set->name) return std::make_unique<CpuKernels>(*set, options);
      names += names.empty() ? "" : ", ";
      names += set->name;
    }
    kit::fail(MOTLEY_NOT_FOUND, "this machine's CPU has no variant \"%s\"; it has: %s", options.variant.c_str(),
              names.c_str());
  }
};

}  // namespace
}  // namespace motley::cpu

MOTLEY_KIT_PLUGIN(motley::cpu::CpuBackend, "cpu", "0.1.0")
