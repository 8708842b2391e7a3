// Qwen2 and Qwen2.5, dense (arXiv:2407.10671): the plain decoder with biases on queries, keys and values.
#include "model/architecture.hpp"

namespace motley {
namespace {

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
    model.add_to_residual(model.gated_ffn(x, Gate::kSilu));
  });
  model.head();
}

}  // namespace

extern const Architecture kQwen2;
const Architecture kQwen2 = {.name = "qwen2",
                             .build = build,
                             .hugging_face_names = {"Qwen2ForCausalLM"},
                             .hugging_face = {.defaults = R"({"use_sliding_window": false})"}};

}  // namespace motley
