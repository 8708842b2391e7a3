// Phi-3, Phi-3.5 and Phi-4 (arXiv:2404.14219): the plain decoder with queries, keys and values in one matrix, gate and
// up rows in another. Rope may turn a part of each head, and its divisors may depend on the served length (LongRoPE,
// arXiv:2402.13753).
#include "model/architecture.hpp"

namespace motley {
namespace {

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
    model.add_to_residual(model.fused_gated_ffn(x, Gate::kSilu));
  });
  model.head();
}

}  // namespace

extern const Architecture kPhi3;
const Architecture kPhi3 = {.name = "phi3", .build = build, .hugging_face_names = {"Phi3ForCausalLM"}};

}  // namespace motley
