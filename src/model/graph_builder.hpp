// GraphBuilder: the words in which an architecture's file is written. Each word adds one node and returns its value.
//
// A weight named without a dot-separated layer ("attn_q") is the current layer's: "blk.N.attn_q.weight". Shapes come
// from the words: [rows, width] in, [rows, width] out. Contradictions between words are programmer errors (CHECK);
// whether the file holds the weights is checked when they are bound (model/gguf_model.cpp).
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "model/gguf.hpp"
#include "model/hyper_parameters.hpp"
#include "model/model.hpp"

namespace motley {

// The size of a last axis and what it means.
struct Width {
  int64_t size = 0;
  Axis axis = Axis::kNone;
};

// A value of the graph under construction.
struct Value {
  int32_t id = MOTLEY_NONE;
};

class GraphBuilder {
 public:
  GraphBuilder(const GgufFile& file, const HyperParameters& parameters);

  const ModelConfig& config() const { return parameters_.config; }
  Width hidden() const { return {config().hidden, Axis::kHidden}; }
  Width query() const { return {int64_t{config().heads} * config().head_dim, Axis::kHeads}; }
  Width key_value() const { return {int64_t{config().kv_heads} * config().head_dim, Axis::kKvHeads}; }
  Width ffn() const { return {config().ffn, Axis::kFfn}; }
  Width vocabulary() const { return {config().vocab_size, Axis::kVocab}; }

  // token ids -> residual [ROWS, hidden]
  void embed(float scale = 1);
  // Calls `layer` with 0 .. layers - 1 as the current layer; begin_* says which half follows.
  void each_layer(const std::function<void()>& layer);
  void begin_attention() { part_ = Part::kAttention; }
  void begin_ffn() { part_ = Part::kFfn; }

  Value residual() const { return residual_; }
  void add_to_residual(Value x);  // in place

  Value matmul(Value x, std::string_view weight, Width out);
  Value rms_norm(Value x, std::string_view weight);
  // A norm over each run of head_dim elements.
  Value head_norm(Value x, std::string_view weight);
  // Uses the divisors of "rope_freqs.weight" if `frequency_divisors` and the file has them.
  Value rope(Value x, motley_rope_style style, bool frequency_divisors);
  void kv_write(Value key, Value value);
  Value paged_attention(Value query);
  Value silu_mul(Value gate, Value up);

  // Rows whose logits are asked for -> norm -> logits -> sampled ids. The output matrix is the embedding's where the
  // head is tied.
  void head();

  Graph take() { return std::move(graph_); }

 private:
  Value new_value(std::string name, int32_t dtype, int64_t rows, Width width);
  Value like(Value x, std::string_view name, Width width);
  int32_t matrix(const std::string& name, Width rows, Width cols, uint32_t use);
  int32_t vector(const std::string& name, Width width);
  int32_t find_or_add(GraphWeight weight);
  Value add_norm(Value x, const std::string& weight, int64_t group, Axis axis);
  std::string layer_weight(std::string_view name) const;
  std::string label(std::string_view what) const;
  Width width_of(Value x) const;
  motley_op& add_node(motley_op_kind kind);

  const GgufFile& file_;
  const HyperParameters& parameters_;
  Graph graph_;
  Part part_ = Part::kEmbed;
  int32_t layer_ = -1;
  Value residual_;
};

}  // namespace motley
