// ModelShape: what the planner reads of a model. A value; sizes only, in the file's bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "model/model.hpp"

namespace motley {

struct LayerShape {
  uint32_t window = 0;  // positions that it sees; 0 = all
  bool has_ffn = true, has_experts = false;
  uint64_t query_head_bytes = 0;  // of weights, of one query head
  uint64_t kv_head_bytes = 0;     // of one KV head's key and value
  double ffn_column_bytes = 0;
  uint64_t expert_bytes = 0;      // of one expert
  uint64_t replicated_bytes = 0;  // norms, router: whole on every shard of its stage
  uint32_t kind = 0;              // layers of one kind cost the same time
};

struct ModelShape {
  std::string name;
  int64_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, context_length = 0;
  int64_t vocab = 0;
  int64_t ffn_columns = 0;  // of the dense or shared FFN; 0 = none
  int64_t ffn_unit = 1;     // columns that cannot be parted: cuts lie at multiples of it
  int64_t experts = 0;      // routed; 0 = none
  int64_t expert_ffn = 0;   // columns of one
  bool tied_head = false;
  uint64_t embedding_bytes = 0;  // all rows
  uint64_t head_bytes = 0;       // all rows; tied: the same bytes again, held once where both are on one device
  uint64_t final_norm_bytes = 0;
  std::vector<LayerShape> layers;

  int64_t query_heads_per_kv() const { return heads / kv_heads; }
  uint64_t layer_bytes(size_t layer) const;  // whole
  uint64_t weight_bytes() const;             // whole; a tied head once
  uint32_t kinds() const;
};

// Gives layers that cost the same time the same `kind`, numbered from 0 in order of appearance.
void number_layer_kinds(ModelShape* shape);

// INVALID_ARGUMENT where sizes contradict one another, UNIMPLEMENTED for layers that differ in KV heads.
Result<ModelShape> shape_of(const Model& model);

Status check_shape(const ModelShape& shape);

}  // namespace motley
