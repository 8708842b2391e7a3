// LLaMA (arXiv:2302.13971) and what shares its form (Llama 2 and 3, Mistral, SmolLM2): pre-norm, grouped-query
// attention, SwiGLU; with experts Mixtral (arXiv:2401.04088). Llama 3's long-context scaling comes as frequency
// divisors. GGUF files hold query and key rows in the order of neighbouring rope pairs.
#include "model/architecture.hpp"

namespace motley {
namespace {

void imply(HyperParameters& parameters) { parameters.rope.style = MOTLEY_ROPE_NORM; }

void build(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Heads heads = model.project_heads(model.rms_norm(model.residual(), "attn_norm"));
    heads.query = model.rope(heads.query);
    heads.key = model.rope(heads.key);
    model.add_to_residual(model.matmul(model.attend(heads), "attn_output", model.hidden()));

    model.begin_ffn();
    const Value x = model.rms_norm(model.residual(), "ffn_norm");
    model.add_to_residual(model.has_experts() ? model.experts(x, Gate::kSilu) : model.gated_ffn(x, Gate::kSilu));
  });
  model.head();
}

}  // namespace

extern const Architecture kLlama;
const Architecture kLlama = {
    .name = "llama",
    .build = build,
    .imply = imply,
    .hugging_face_names = {"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"},
};

}  // namespace motley
