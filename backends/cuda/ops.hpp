// The kernels of kit's table, by op. Each enqueues on the stream of its call.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cuda/stream.hpp"
#include "kit/kit.hpp"

namespace motley::cuda {

void embed(const kit::OpCall& call);
void matmul(const kit::OpCall& call);
void grouped_matmul(const kit::OpCall& call);
// in: x, addend; out0: the product, or anything; out1: its sum with the addend; out2: the norm of that. weight: the
// product's two, the norm's; more_attrs: the norm's.
void matmul_add_rmsnorm(const kit::OpCall& call);
// out0, out1: the two products, or anything; out2: SILU_MUL of them, of which product `gate` is the gate.
template <int gate>
void matmul_silu_mul(const kit::OpCall& call);

void add(const kit::OpCall& call);
void mul(const kit::OpCall& call);
void scale(const kit::OpCall& call);
void silu_mul(const kit::OpCall& call);
void gelu_mul(const kit::OpCall& call);
void softcap(const kit::OpCall& call);
void sigmoid_mul(const kit::OpCall& call);
void clamped_swiglu(const kit::OpCall& call);
void rmsnorm(const kit::OpCall& call);
void add_rmsnorm(const kit::OpCall& call);     // in0 + in1 -> out0, its norm -> out1
void select_rmsnorm(const kit::OpCall& call);  // the batch's head rows of in0, normalised
// x (+ more) -> sum, its norm -> out. more null: x is the sum.
void rmsnorm_of_sum(const kit::OpCall& call, const float* x, const float* more, const kit::Tensor& sum,
                    const kit::Tensor& out, const motley_attr& attr, const kit::Weight& weight);
void rope_turns(const kit::OpCall& call);  // out0: cosine and sine of each row's pairs
void rope(const kit::OpCall& call);        // in1: those
void rope_kv_write(
    const kit::OpCall& call);  // in: q, k, v, turns; out0: q turned. attr: q's; more_attrs: k's, KV_WRITE's
// in: as rope_kv_write; out: as paged_attention, before the last one q turned, or anything. attr: PAGED_ATTENTION's;
// more_attrs: q's, k's, KV_WRITE's.
void rope_kv_write_attention(const kit::OpCall& call);
void split(const kit::OpCall& call);
void concat(const kit::OpCall& call);
void cast(const kit::OpCall& call);
void select_rows(const kit::OpCall& call);
void topk_router(const kit::OpCall& call);
void combine_experts(const kit::OpCall& call);

void kv_write(const kit::OpCall& call);
void paged_attention(const kit::OpCall& call);
void attn_merge(const kit::OpCall& call);

void sample(const kit::OpCall& call);
int64_t sample_scratch(int processors);  // bytes

// Rewrites a checked plan: ops get their data, neighbours are joined.
void fuse(kit::Plan& plan, CudaMemory& memory);

// PAGED_ATTENTION's data: which of ProgramNeeds::shapes it is.
struct AttentionOp {
  size_t shape = 0;
};

inline CudaStream& stream_of(const kit::OpCall& call) { return *static_cast<CudaStream*>(call.stream); }

}  // namespace motley::cuda
