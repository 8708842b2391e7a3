// Gemma 2 (arXiv:2408.00118): norms before and after each half, GELU gates, capped logits in attention and head, a
// window on every other layer, beginning with the first. Embeddings are multiplied by sqrt(width), in f32 as the
// reference does when it runs in f32. GGUF files hold the norms' weights with the 1 added that the paper adds.
#include <cmath>

#include "model/architecture.hpp"

namespace motley {
namespace {

constexpr uint32_t kLayersOf27B = 46;  // whose queries are scaled by width / heads, not by the head dimension

void imply(HyperParameters& parameters) {
  const ModelConfig& config = parameters.config;
  parameters.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  parameters.window = 4096;
  parameters.window_period = 2;
  parameters.attention_softcap = 50;
  parameters.logit_softcap = 30;
  if (config.layers == kLayersOf27B) {
    parameters.attention_scale = 1 / std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.heads));
  }
}

void build(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Heads heads = model.project_heads(model.rms_norm(model.residual(), "attn_norm"));
    heads.query = model.rope(heads.query);
    heads.key = model.rope(heads.key);
    const Value attended = model.matmul(model.attend(heads), "attn_output", model.hidden());
    model.add_to_residual(model.rms_norm(attended, "post_attention_norm"));

    model.begin_ffn();
    const Value x = model.gated_ffn(model.rms_norm(model.residual(), "ffn_norm"), Gate::kGelu);
    model.add_to_residual(model.rms_norm(x, "post_ffw_norm"));
  });
  model.head();
}

}  // namespace

extern const Architecture kGemma2;
const Architecture kGemma2 = {
    .name = "gemma2",
    .build = build,
    .imply = imply,
    .hugging_face_names = {"Gemma2ForCausalLM"},
    .hugging_face = {.defaults = R"({"head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
                                    "max_position_embeddings": 8192, "rope_theta": 10000, "sliding_window": 4096,
                                    "attn_logit_softcapping": 50, "final_logit_softcapping": 30,
                                    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true})",
                     .activation = "gelu_pytorch_tanh",
                     .post_attention_norm = "post_attention_norm",
                     .norm_offset = 1}};

}  // namespace motley
