// The parts of the reference that lie in files of their own, and formulas that other backends share.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kit/kit.hpp"

namespace motley::kit {

using rope_attr = decltype(motley_attr::rope);
// The angle by which pair `pair` turns at `position`.
double rope_angle(const rope_attr& attr, int32_t position, int32_t pair, float divisor);

void kv_write(const OpCall& call);
void paged_attention(const OpCall& call);
int64_t paged_attention_scratch(const Plan& plan, const PlanOp& op);
void attn_merge(const OpCall& call);

// SAMPLE (docs/contracts/sampling.md); fast enough to be every host backend's kernel.
void sample(const OpCall& call);
int64_t sample_scratch(const Plan& plan, const PlanOp& op);

}  // namespace motley::kit
