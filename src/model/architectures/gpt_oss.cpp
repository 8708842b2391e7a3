// gpt-oss (arXiv:2508.10925 and OpenAI's reference code): biases everywhere, an attention sink per head, a window on
// every other layer, beginning with the first; experts with clamped SwiGLU, weighed by the softmax over the chosen.
// The ramp of its YaRN lies between dimensions that are not rounded.
#include "model/architecture.hpp"

namespace motley {
namespace {

void imply(HyperParameters& parameters) {
  parameters.window_period = 2;
  parameters.experts.gating = 3;
  parameters.rope.yarn_whole_bounds = false;
}

void build(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Heads heads = model.project_heads(model.rms_norm(model.residual(), "attn_norm"), Bias::kRequired);
    heads.query = model.rope(heads.query);
    heads.key = model.rope(heads.key);
    const Value attended = model.attend(heads, "attn_sinks");
    model.add_to_residual(model.matmul(attended, "attn_output", model.hidden(), Bias::kRequired));

    model.begin_ffn();
    // The name that GGUF files give the norm before the experts.
    const Value x = model.rms_norm(model.residual(), "post_attention_norm");
    model.add_to_residual(model.experts(x, Gate::kClampedSwiglu, Bias::kRequired));
  });
  model.head();
}

}  // namespace

extern const Architecture kGptOss;
const Architecture kGptOss = {.name = "gpt-oss",
                              .build = build,
                              .imply = imply,
                              .needs_experts = true,
                              .hugging_face_names = {"GptOssForCausalLM"},
                              .hugging_face = {.defaults = R"({"head_dim": 64, "rms_norm_eps": 1e-5,
                                                              "rope_theta": 150000, "sliding_window": 128})",
                                               .post_attention_norm = "post_attention_norm",
                                               .interleaved_experts = true}};

}  // namespace motley
