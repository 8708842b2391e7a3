// How many units a model has of each axis along which it can be cut.
#pragma once

#include <cstdint>

#include "model/model.hpp"

namespace motley {

struct ModelAxes {
  int64_t kv_heads = 0;
  int64_t ffn_columns = 0;  // of the dense FFN, or of the expert that every token goes to; 0 = neither
  int64_t experts = 0;      // that tokens choose from; cut by whole experts
  int64_t vocab = 0;
};

ModelAxes axes_of(const Model& model);

}  // namespace motley
