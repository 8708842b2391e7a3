// Qwen3, dense (arXiv:2505.09388): the plain decoder, but queries and keys are normalised per head before rope.
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
    model.add_to_residual(model.gated_ffn(x, Gate::kSilu));
  });
  model.head();
}

}  // namespace

extern const Architecture kQwen3;
const Architecture kQwen3 = {.name = "qwen3",
                             .build = build,
                             .hugging_face_names = {"Qwen3ForCausalLM"},
                             .hugging_face = {.defaults = R"({"head_dim": 128, "use_sliding_window": false})"}};

}  // namespace motley
