// Gemma 3, text (arXiv:2503.19786): norms before and after each half and per head of queries and keys, GELU gates. Five
// layers with a window and a rope base of their own, then one that sees everything; only there rope may be scaled.
// Embeddings are multiplied by sqrt(width), in f32 as the reference does when it runs in f32. GGUF files hold the
// norms' weights with the 1 added that the reference adds.
#include <cmath>

#include "model/architecture.hpp"

namespace motley {
namespace {

constexpr uint32_t kLayersOf27B = 62;  // whose queries are scaled by width / heads, not by the head dimension

void imply(HyperParameters& parameters) {
  const ModelConfig& config = parameters.config;
  parameters.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  parameters.window_period = 6;
  parameters.rope.window_base = 10000;
  if (config.layers == kLayersOf27B) {
    parameters.attention_scale = 1 / std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.heads));
  }
}

void build(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Heads heads = model.project_heads(model.rms_norm(model.residual(), "attn_norm"));
    heads.query = model.rope(model.head_norm(heads.query, "attn_q_norm"));
    heads.key = model.rope(model.head_norm(heads.key, "attn_k_norm"));
    const Value attended = model.matmul(model.attend(heads), "attn_output", model.hidden());
    model.add_to_residual(model.rms_norm(attended, "post_attention_norm"));

    model.begin_ffn();
    const Value x = model.gated_ffn(model.rms_norm(model.residual(), "ffn_norm"), Gate::kGelu);
    model.add_to_residual(model.rms_norm(x, "post_ffw_norm"));
  });
  model.head();
}

}  // namespace

extern const Architecture kGemma3;
const Architecture kGemma3 = {
    .name = "gemma3",
    .build = build,
    .imply = imply,
    .hugging_face_names = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
    .hugging_face = {.defaults = R"({"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
                                    "head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
                                    "max_position_embeddings": 131072, "rope_theta": 1000000,
                                    "rope_local_base_freq": 10000, "sliding_window": 4096,
                                    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true})",
                     .activation = "gelu_pytorch_tanh",
                     .post_attention_norm = "post_attention_norm",
                     .norm_offset = 1}};

}  // namespace motley
