// Qwen's first models with experts (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B; arXiv:2407.10671): biases on queries, keys and
// values; a token goes to a few small experts, whose weights keep their share of the softmax over all, and to one that
// is shared and weighed by a sigmoid.
#include "model/architecture.hpp"

namespace motley {
namespace {

void imply(HyperParameters& parameters) {
  Experts& experts = parameters.experts;
  experts.normalise = false;
  if (experts.shared_ffn == 0) experts.shared_ffn = parameters.config.ffn;
}

void build(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Heads heads = model.project_heads(model.rms_norm(model.residual(), "attn_norm"), Bias::kRequired);
    heads.query = model.rope(heads.query);
    heads.key = model.rope(heads.key);
    model.add_to_residual(model.matmul(model.attend(heads), "attn_output", model.hidden()));

    model.begin_ffn();
    const Value x = model.rms_norm(model.residual(), "ffn_norm");
    const Value chosen = model.experts(x, Gate::kSilu);
    model.add_to_residual(model.add(chosen, model.shared_expert(x, Gate::kSilu)));
  });
  model.head();
}

}  // namespace

extern const Architecture kQwen2Moe;
const Architecture kQwen2Moe = {.name = "qwen2moe",
                                .build = build,
                                .imply = imply,
                                .needs_experts = true,
                                .hugging_face_names = {"Qwen2MoeForCausalLM"},
                                .hugging_face = {.defaults = R"({"use_sliding_window": false})"}};

}  // namespace motley
