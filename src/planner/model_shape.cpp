#include "planner/model_shape.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include "model/dtype.hpp"

namespace motley {
namespace {

constexpr int64_t kCountMax = int64_t{1} << 31;

// Columns of the FFN lie along the rows of ffn_down, where a quantised block must stay whole in its sub-blocks.
int64_t sub_block(int32_t dtype) {
  switch (dtype) {
    case MOTLEY_Q2_K:
    case MOTLEY_Q3_K:
    case MOTLEY_Q6_K: return 16;
    default: {
      const DtypeInfo* info = find_dtype(dtype);
      return info == nullptr || info->block_elements == 1 ? 1 : 32;
    }
  }
}

// 64 where it divides, so that tiles stay whole; else the least that every format allows.
int64_t column_unit(int64_t columns, int64_t least) {
  for (const int64_t unit : {int64_t{64}, int64_t{32}, int64_t{16}}) {
    if (unit >= least && columns % unit == 0) return unit;
  }
  return least > 1 && columns % least == 0 ? least : (least > 1 ? columns : 1);
}

bool is_of(const std::string& name, const char* what) { return name.find(what) != std::string::npos; }

// Sorts one weight's bytes into the shape.
class ShapeReader {
 public:
  ShapeReader(const ModelConfig& config, ModelShape* shape) : config_(config), shape_(*shape) {}

  void add(const GraphWeight& weight, uint64_t bytes, int32_t dtype) {
    if (weight.layer < 0 || static_cast<size_t>(weight.layer) >= shape_.layers.size()) return add_outer(weight, bytes);
    LayerShape& layer = shape_.layers[static_cast<size_t>(weight.layer)];
    const auto heads = static_cast<uint64_t>(shape_.heads), kv_heads = static_cast<uint64_t>(shape_.kv_heads);
    if (weight.experts > 1 || is_of(weight.name, "_exps.")) {
      layer.has_experts = true;
      layer.expert_bytes += bytes / static_cast<uint64_t>(std::max<int64_t>(shape_.experts, 1));
    } else if (is_of(weight.name, "attn_qkv")) {  // query, key and value heads in one
      const uint64_t part = bytes / (heads + 2 * kv_heads);
      layer.query_head_bytes += part;
      layer.kv_head_bytes += 2 * part;
    } else if (has(weight, Axis::kHeads)) {
      layer.query_head_bytes += bytes / heads;
    } else if (has(weight, Axis::kKvHeads)) {
      layer.kv_head_bytes += bytes / kv_heads;
    } else if (has(weight, Axis::kFfn) || is_of(weight.name, "ffn_up.")) {  // gate and up may be one
      layer.has_ffn = true;
      layer.ffn_column_bytes +=
          static_cast<double>(bytes) / static_cast<double>(std::max<int64_t>(shape_.ffn_columns, 1));
      if (weight.col_axis == Axis::kFfn) least_unit_ = std::max(least_unit_, sub_block(dtype));
    } else {
      layer.replicated_bytes += bytes;
    }
  }

  int64_t least_unit() const { return least_unit_; }

 private:
  static bool has(const GraphWeight& weight, Axis axis) { return weight.row_axis == axis || weight.col_axis == axis; }

  void add_outer(const GraphWeight& weight, uint64_t bytes) {
    if (has(weight, Axis::kVocab)) {
      if (config_.tied_head) {
        shape_.embedding_bytes = shape_.head_bytes = bytes;
      } else if (is_of(weight.name, "token_embd")) {
        shape_.embedding_bytes += bytes;
      } else {
        shape_.head_bytes += bytes;
      }
      return;
    }
    shape_.final_norm_bytes += bytes;
  }

  const ModelConfig& config_;
  ModelShape& shape_;
  int64_t least_unit_ = 1;
};

// The widths that only the weights tell.
void read_widths(const Model& model, ModelShape* shape) {
  for (const GraphWeight& weight : model.graph().weights) {
    if (weight.layer < 0) continue;
    if (weight.experts > 1) {
      shape->experts = std::max(shape->experts, weight.experts);
      if (weight.col_axis == Axis::kFfn) shape->expert_ffn = weight.cols;
    } else if (weight.row_axis == Axis::kFfn && weight.rows > 1) {
      shape->ffn_columns = std::max(shape->ffn_columns, weight.rows);
    } else if (weight.col_axis == Axis::kFfn && weight.rows > 1) {
      shape->ffn_columns = std::max(shape->ffn_columns, weight.cols);
    }
  }
}

}  // namespace

uint64_t ModelShape::layer_bytes(size_t layer) const {
  const LayerShape& l = layers[layer];
  return l.query_head_bytes * static_cast<uint64_t>(heads) + l.kv_head_bytes * static_cast<uint64_t>(kv_heads) +
         (l.has_ffn ? static_cast<uint64_t>(l.ffn_column_bytes * static_cast<double>(ffn_columns)) : 0) +
         (l.has_experts ? l.expert_bytes * static_cast<uint64_t>(experts) : 0) + l.replicated_bytes;
}

uint64_t ModelShape::weight_bytes() const {
  uint64_t bytes = embedding_bytes + (tied_head ? 0 : head_bytes) + final_norm_bytes;
  for (size_t l = 0; l < layers.size(); ++l) bytes += layer_bytes(l);
  return bytes;
}

uint32_t ModelShape::kinds() const {
  uint32_t most = 0;
  for (const LayerShape& layer : layers) most = std::max(most, layer.kind + 1);
  return most;
}

void number_layer_kinds(ModelShape* shape) {
  std::map<std::tuple<uint32_t, bool, bool>, uint32_t> kinds;
  for (LayerShape& layer : shape->layers) {
    const auto key = std::make_tuple(layer.window, layer.has_ffn, layer.has_experts);
    layer.kind = kinds.emplace(key, static_cast<uint32_t>(kinds.size())).first->second;
  }
}

Status check_shape(const ModelShape& shape) {
  const std::pair<const char*, int64_t> counts[] = {{"hidden", shape.hidden},     {"heads", shape.heads},
                                                    {"kv_heads", shape.kv_heads}, {"head_dim", shape.head_dim},
                                                    {"vocab", shape.vocab},       {"ffn_unit", shape.ffn_unit}};
  for (const auto& [name, count] : counts) {
    if (count < 1 || count > kCountMax)
      return invalid_argument("{}: {} {}: 1 to {}", shape.name, name, count, kCountMax);
  }
  if (shape.layers.empty() || shape.layers.size() > 4096) {
    return invalid_argument("{}: {} layers: 1 to 4096", shape.name, shape.layers.size());
  }
  if (shape.heads % shape.kv_heads != 0) {
    return invalid_argument("{}: {} heads are no multiple of {} KV heads", shape.name, shape.heads, shape.kv_heads);
  }
  if (shape.ffn_columns < 0 || shape.ffn_columns > kCountMax || shape.experts < 0 || shape.experts > 65536) {
    return invalid_argument("{}: {} FFN columns, {} experts", shape.name, shape.ffn_columns, shape.experts);
  }
  return ok_status();
}

Result<ModelShape> shape_of(const Model& model) {
  const ModelConfig& config = model.config();
  ModelShape shape;
  shape.name = config.name;
  shape.hidden = config.hidden;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.context_length = config.context_length;
  shape.vocab = config.vocab_size;
  shape.tied_head = config.tied_head;
  shape.layers.resize(config.layers);
  read_widths(model, &shape);
  RETURN_IF_ERROR(check_shape(shape));
  for (size_t l = 0; l < model.kv_layers().size() && l < shape.layers.size(); ++l) {
    const KvLayer& kv = model.kv_layers()[l];
    if (kv.kv_heads != config.kv_heads || kv.head_dim != config.head_dim) {
      return error(MOTLEY_UNIMPLEMENTED,
                   "{}: layer {} has {} KV heads of {}, others {} of {}; such models run on one "
                   "device only",
                   config.name, l, kv.kv_heads, kv.head_dim, config.kv_heads, config.head_dim);
    }
    shape.layers[l].window = kv.window;
  }
  for (LayerShape& layer : shape.layers) layer.has_ffn = false;
  ShapeReader reader(config, &shape);
  for (size_t i = 0; i < model.graph().weights.size(); ++i) {
    reader.add(model.graph().weights[i], model.weight(i).bytes, model.weight(i).dtype);
  }
  shape.ffn_unit = column_unit(shape.ffn_columns, reader.least_unit());
  if (shape.ffn_unit < 1) shape.ffn_unit = 1;
  number_layer_kinds(&shape);
  return shape;
}

}  // namespace motley
