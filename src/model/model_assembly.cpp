#include "model/model_assembly.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "base/quote.hpp"
#include "model/dtype.hpp"
#include "model/gguf.hpp"
#include "model/graph_builder.hpp"

namespace motley {
namespace {

constexpr uint32_t kUseVector = 4;  // MOTLEY_WEIGHT_VECTOR

// "64 x 32": fastest first, without what is 1 at the end.
std::string sizes_of(const std::array<int64_t, 4>& ne) {
  size_t count = ne.size();
  while (count > 1 && ne[count - 1] == 1) --count;
  return fmt::format("{}", fmt::join(ne.begin(), ne.begin() + static_cast<ptrdiff_t>(count), " x "));
}

class AssembledModel : public Model {
 public:
  AssembledModel(ModelParts parts, Graph graph, std::vector<KvLayer> kv_layers)
      : parts_(std::move(parts)), graph_(std::move(graph)), kv_layers_(std::move(kv_layers)) {}

  // Finds each weight of the graph in the store.
  Status bind() {
    for (const GraphWeight& weight : graph_.weights) {
      const size_t index = store().find(weight.name);
      if (index == store().size()) {
        return invalid_argument("tensor {}: is missing; {}", in_quotes(store().spelled(weight.name)), store().remedy());
      }
      RETURN_IF_ERROR(check(weight, store().at(index), store().remedy()).annotate(store().place(index)));
      sources_.push_back({.dtype = store().at(index).dtype,
                          .experts = weight.experts,
                          .rows = weight.rows,
                          .cols = weight.cols,
                          .bytes = store().at(index).bytes});
      stored_.push_back(index);
    }
    return refuse_unused();
  }

  const ModelConfig& config() const override { return parts_.parameters.config; }
  const Graph& graph() const override { return graph_; }
  const std::vector<KvLayer>& kv_layers() const override { return kv_layers_; }
  const WeightSource& weight(size_t index) const override {
    CHECK(index < sources_.size(), "weight {} of {}", index, sources_.size());
    return sources_[index];
  }
  Result<WeightBytes> read(size_t index) const override {
    CHECK(index < stored_.size(), "weight {} of {}", index, stored_.size());
    ASSIGN_OR_RETURN(WeightBytes bytes, store().read(stored_[index]));
    CHECK(bytes.data.size() == sources_[index].bytes, "{}: {} bytes", graph_.weights[index].name, bytes.data.size());
    return bytes;
  }
  void release(size_t index) const override {
    CHECK(index < stored_.size(), "weight {} of {}", index, stored_.size());
    store().release(stored_[index]);
  }
  const TokenizerData& tokenizer() const override { return parts_.tokenizer; }
  uint64_t file_bytes() const override { return store().file_bytes(); }

 private:
  const WeightStore& store() const { return *parts_.weights; }

  static Status check(const GraphWeight& weight, const StoredWeight& stored, std::string_view remedy) {
    const DtypeInfo& dtype = *find_dtype(stored.dtype);
    const bool vector = (weight.uses & kUseVector) != 0;
    const auto& ne = stored.ne;
    const bool fits = vector ? weight.cols % ne[0] == 0 && ne[1] == weight.cols / ne[0] && ne[2] == 1 && ne[3] == 1
                             : ne[0] == weight.cols && ne[1] == weight.rows && ne[2] == weight.experts && ne[3] == 1;
    if (!fits) {
      return invalid_argument("is {}, but the model's parameters ask for {}; {}", sizes_of(ne),
                              sizes_of({weight.cols, weight.rows, weight.experts, 1}), remedy);
    }
    if (!dtype.is_weight) {
      return error(MOTLEY_UNIMPLEMENTED, "type {} is not built; use a model with weights in {}", dtype.name,
                   weight_dtype_names());
    }
    if (vector && dtype.block_elements != 1) {
      return error(MOTLEY_UNIMPLEMENTED, "is {}; norms and other vectors are read as F32, F16 or BF16: {}", dtype.name,
                   kConvertAgain);
    }
    return ok_status();
  }

  // A bias, or anything else inside a layer, that the graph does not use would make the model another one. Tensors
  // outside the layers that nobody knows are left alone.
  Status refuse_unused() const {
    // Tables that old converters wrote and no graph reads.
    constexpr std::string_view kHarmless = ".attn_rot_embd";
    std::vector<size_t> used = stored_;
    std::sort(used.begin(), used.end());
    for (size_t i = 0; i < store().size(); ++i) {
      if (std::binary_search(used.begin(), used.end(), i)) continue;
      const std::string_view name = store().at(i).name;
      const bool counts = name.starts_with("blk.") || name.ends_with(".bias");
      if (!counts || name.find(kHarmless) != std::string_view::npos) continue;
      return error(MOTLEY_UNIMPLEMENTED, "{}: is not part of this architecture as it is built; use another model",
                   store().place(i));
    }
    return ok_status();
  }

  ModelParts parts_;
  Graph graph_;
  std::vector<KvLayer> kv_layers_;
  std::vector<WeightSource> sources_;  // by weight of the graph
  std::vector<size_t> stored_;         // their indices in the store
};

}  // namespace

uint32_t window_of_layer(const HyperParameters& parameters, uint32_t layer) {
  if (!parameters.windows.empty()) {
    CHECK(layer < parameters.windows.size(), "layer {}", layer);
    return parameters.windows[layer];
  }
  const uint32_t period = parameters.window_period;
  return period > 1 && layer % period == period - 1 ? 0 : parameters.window;
}

Result<std::unique_ptr<Model>> assemble_model(const Architecture& architecture, ModelParts parts) {
  CHECK(parts.weights != nullptr);
  ModelConfig& config = parts.parameters.config;
  if (architecture.needs_experts && parts.parameters.experts.count == 0) {
    return invalid_argument("the model's parameters name no experts, which its architecture {} needs; {}",
                            in_quotes(architecture.name), kConvertAgain);
  }
  config.tied_head = !parts.weights->has("output.weight");
  GraphBuilder builder(*parts.weights, parts.parameters);
  architecture.build(builder);
  std::vector<KvLayer> kv_layers;
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    kv_layers.push_back({config.kv_heads, config.head_dim, window_of_layer(parts.parameters, layer)});
  }
  auto model = std::make_unique<AssembledModel>(std::move(parts), builder.take(), std::move(kv_layers));
  RETURN_IF_ERROR(model->bind());
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace motley
