// LLaMA and what shares its form (Llama 2 and 3, SmolLM2, older Mistral): pre-norm, grouped-query attention with rope
// on neighbouring pairs, SwiGLU. Llama 3's long-context scaling comes as frequency divisors in the file.
#include "model/architecture.hpp"

namespace motley {

void build_llama(GraphBuilder& model);

void build_llama(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Value x = model.rms_norm(model.residual(), "attn_norm");
    Value query = model.matmul(x, "attn_q", model.query());
    Value key = model.matmul(x, "attn_k", model.key_value());
    const Value value = model.matmul(x, "attn_v", model.key_value());
    query = model.rope(query, MOTLEY_ROPE_NORM, true);
    key = model.rope(key, MOTLEY_ROPE_NORM, true);
    model.kv_write(key, value);
    const Value attended = model.paged_attention(query);
    model.add_to_residual(model.matmul(attended, "attn_output", model.hidden()));

    model.begin_ffn();
    x = model.rms_norm(model.residual(), "ffn_norm");
    const Value gate = model.matmul(x, "ffn_gate", model.ffn());
    const Value up = model.matmul(x, "ffn_up", model.ffn());
    model.add_to_residual(model.matmul(model.silu_mul(gate, up), "ffn_down", model.hidden()));
  });
  model.head();
}

}  // namespace motley
