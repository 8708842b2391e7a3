// Mistral 3 (the published configuration and code of Ministral 3): the plain decoder with YaRN, whose magnitude is its
// own. Its queries are scaled up beyond the original context; that is not built, so longer service is refused when the
// file is read. GGUF files hold query and key rows in the order of neighbouring rope pairs.
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
    model.add_to_residual(model.gated_ffn(x, Gate::kSilu));
  });
  model.head();
}

}  // namespace

extern const Architecture kMistral3;
const Architecture kMistral3 = {
    .name = "mistral3", .build = build, .imply = imply, .hugging_face_names = {"Ministral3ForCausalLM"}};

}  // namespace motley
