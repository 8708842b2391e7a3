// Qwen3, dense: the plain decoder, but queries and keys are normalised per head before rope, and rope turns pairs half
// a head apart.
#include "model/architecture.hpp"

namespace motley {

void build_qwen3(GraphBuilder& model);

void build_qwen3(GraphBuilder& model) {
  model.embed();
  model.each_layer([&] {
    model.begin_attention();
    Value x = model.rms_norm(model.residual(), "attn_norm");
    Value query = model.matmul(x, "attn_q", model.query());
    Value key = model.matmul(x, "attn_k", model.key_value());
    const Value value = model.matmul(x, "attn_v", model.key_value());
    query = model.rope(model.head_norm(query, "attn_q_norm"), MOTLEY_ROPE_NEOX, false);
    key = model.rope(model.head_norm(key, "attn_k_norm"), MOTLEY_ROPE_NEOX, false);
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
