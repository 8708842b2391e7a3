#include "model/axes.hpp"

#include <algorithm>

namespace motley {

ModelAxes axes_of(const Model& model) {
  ModelAxes axes;
  axes.kv_heads = model.config().kv_heads;
  axes.vocab = model.config().vocab_size;
  for (const GraphWeight& weight : model.graph().weights) {
    if (weight.experts > 1) axes.experts = std::max(axes.experts, weight.experts);
    if (weight.experts == 1 && weight.rows > 1 && weight.col_axis == Axis::kFfn)
      axes.ffn_columns = std::max(axes.ffn_columns, weight.cols);
  }
  return axes;
}

}  // namespace motley
