// The reference device: kit's own kernels, one thread unless told otherwise. What other devices are judged by.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>

#include "kit/kit.hpp"

namespace motley::kit {

class RefKernels : public Kernels {
 public:
  const KernelTable& table() const override { return reference_kernels(); }
  std::unique_ptr<Weight> pack(const WeightSource& source) const override { return pack_reference(source); }
  bool attends_partially() const override { return true; }
  uint32_t threads(const OpenOptions& options) const override { return options.threads ? options.threads : 1; }
};

class RefBackend : public Backend {
 public:
  std::vector<motley_device_desc> devices(std::string*) override {
    motley_device_desc desc{};
    describe_host_cpu(&desc);
    std::snprintf(desc.family, sizeof desc.family, "REF");
    std::snprintf(desc.variant, sizeof desc.variant, "naive");
    desc.tier = MOTLEY_TIER_MEASURED;
    desc.caps = MOTLEY_CAP_DYNAMIC_ROWS | MOTLEY_CAP_PAGED_ATTENTION | MOTLEY_CAP_HOST_MEMORY | MOTLEY_CAP_IMPORT_HOST |
                MOTLEY_CAP_ROW_INVARIANT | MOTLEY_CAP_ONE_CLASS | MOTLEY_CAP_PARTIAL_ATTENTION;
    desc.ops = ops_of(reference_kernels());
    desc.weight_dtypes = weight_formats();
    desc.kv_dtypes = kKvDtypes;
    desc.threads = 1;
    return {desc};
  }
  std::unique_ptr<Kernels> open(uint32_t, const OpenOptions& options) override {
    if (!options.variant.empty() && options.variant != "naive")
      fail(MOTLEY_NOT_FOUND, "the reference has no variant \"%s\"; it has: naive", options.variant.c_str());
    return std::make_unique<RefKernels>();
  }
};

}  // namespace motley::kit
