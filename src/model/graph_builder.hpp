// GraphBuilder: the words in which an architecture's file is written. Each word adds nodes and returns their value.
//
// A weight named without a dot-separated layer ("attn_q") is the current layer's: "blk.N.attn_q.weight". Shapes come
// from the words: [rows, width] in, [rows, width] out. Contradictions between words are programmer errors (CHECK);
// whether the files hold the weights is checked when they are bound (model/model_assembly.cpp).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/hyper_parameters.hpp"
#include "model/model.hpp"
#include "model/weight_store.hpp"

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

struct Heads {
  Value query, key, value;
};

// A matrix's bias has its name with the suffix ".bias".
enum class Bias { kIfPresent, kRequired };

// What the gate goes through before it multiplies the other half of a gated FFN.
enum class Gate { kSilu, kGelu, kClampedSwiglu };

class GraphBuilder {
 public:
  // Both outlive the builder.
  GraphBuilder(const WeightNames& weights, const HyperParameters& parameters);

  const HyperParameters& parameters() const { return parameters_; }
  const ModelConfig& config() const { return parameters_.config; }
  bool has_experts() const { return parameters_.experts.count > 0; }
  Width hidden() const { return {config().hidden, Axis::kHidden}; }
  Width query() const { return {int64_t{config().heads} * config().head_dim, Axis::kHeads}; }
  Width key_value() const { return {int64_t{config().kv_heads} * config().head_dim, Axis::kKvHeads}; }
  Width ffn() const { return {config().ffn, Axis::kFfn}; }
  Width vocabulary() const { return {config().vocab_size, Axis::kVocab}; }

  // token ids -> residual [ROWS, hidden], times parameters().embedding_scale
  void embed();
  // Calls `layer` with 0 .. layers - 1 as the current layer; begin_* says which half follows.
  void each_layer(const std::function<void()>& layer);
  void begin_attention() { part_ = Part::kAttention; }
  void begin_ffn() { part_ = Part::kFfn; }

  Value residual() const { return residual_; }
  void add_to_residual(Value x);  // in place

  Value matmul(Value x, std::string_view weight, Width out, Bias bias = Bias::kIfPresent);
  Value add(Value a, Value b);
  Value rms_norm(Value x, std::string_view weight);
  // A norm over each run of head_dim elements.
  Value head_norm(Value x, std::string_view weight);

  // attn_q, attn_k and attn_v, or attn_qkv where the model has them in one.
  Heads project_heads(Value x, Bias bias = Bias::kIfPresent);
  // As parameters().rope says for the current layer.
  Value rope(Value x);
  // Stores key and value; the query attends to what its layer sees. `sinks`: a weight [heads], or empty.
  Value attend(const Heads& heads, std::string_view sinks = {});

  // ffn_down(gate(ffn_gate) * ffn_up)
  Value gated_ffn(Value x, Gate gate);
  // The same where ffn_up holds the rows of the gate, then those of the other half.
  Value fused_gated_ffn(Value x, Gate gate);
  // ffn_gate_inp chooses; the chosen experts' gated FFNs (ffn_*_exps), weighed.
  Value experts(Value x, Gate gate, Bias bias = Bias::kIfPresent);
  // The expert that every token is sent to (ffn_*_shexp), times the sigmoid of ffn_gate_inp_shexp.
  Value shared_expert(Value x, Gate gate);

  // Rows whose logits are asked for -> norm -> logits, capped if parameters() say so -> sampled ids. The output matrix
  // is the embedding's where the head is tied.
  void head();

  Graph take() { return std::move(graph_); }

 private:
  Value new_value(std::string name, int32_t dtype, std::vector<int64_t> dims, Axis axis);
  Value like(Value x, std::string_view name, Width width);
  int32_t matrix(const std::string& name, Width rows, Width cols, uint32_t use, int64_t experts = 1);
  int32_t vector(const std::string& name, Width width);
  int32_t find_or_add(GraphWeight weight);
  void use_bias(motley_op* op, std::string_view weight, Width width, int64_t experts, Bias bias);
  Value binary(motley_op_kind kind, Value a, Value b, std::string_view name);
  std::vector<Value> split(Value x, std::string_view name, const std::vector<Width>& parts);
  Value add_norm(Value x, const std::string& weight, int64_t group, Axis axis);
  Value activate(Gate kind, Value gate, Value up);
  // What a token's choice of experts gives: ids and weights [rows, used].
  struct Choice {
    Value ids, weights;
  };
  Choice choose_experts(Value x, Bias bias);
  Value grouped_matmul(Value x, Value ids, std::string_view weight, Width out, Bias bias);
  void add_logits(Value normed);
  void add_sample();
  bool has(std::string_view weight) const;
  std::string layer_weight(std::string_view name, std::string_view suffix = ".weight") const;
  std::string label(std::string_view what) const;
  Width width_of(Value x) const;
  motley_op& add_node(motley_op_kind kind);

  const WeightNames& weights_;
  const HyperParameters& parameters_;
  Graph graph_;
  Part part_ = Part::kEmbed;
  int32_t layer_ = -1;
  Value residual_;
};

}  // namespace motley
