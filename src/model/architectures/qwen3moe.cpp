// Qwen3 with experts (arXiv:2505.09388): queries and keys are normalised per head before rope; a token goes to a few of
// many small experts, whose weights are divided by their sum. There is no shared expert.
#include "model/architecture.hpp"

namespace motley {
namespace {

void build(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Heads heads = model.project_heads(model.rms_norm(model.residual(), "attn_norm"));
    heads.query = model.rope(model.head_norm(heads.query, "attn_q_norm"));
    heads.key = model.rope(model.head_norm(heads.key, "attn_k_norm"));
    model.add_to_residual(model.matmul(model.attend(heads), "attn_output", model.hidden()));

    model.begin_ffn();
    const Value x = model.rms_norm(model.residual(), "ffn_norm");
    model.add_to_residual(model.experts(x, Gate::kSilu));
  });
  model.head();
}

}  // namespace

extern const Architecture kQwen3Moe;
const Architecture kQwen3Moe = {
    .name = "qwen3moe",
    .build = build,
    .needs_experts = true,
    .hugging_face_names = {"Qwen3MoeForCausalLM"},
    .hugging_face = {.defaults = R"({"norm_topk_prob": false, "use_sliding_window": false})"}};

}  // namespace motley
