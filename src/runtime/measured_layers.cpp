#include "runtime/measured_layers.hpp"

#include <algorithm>
#include <array>
#include <vector>

namespace motley {
namespace {

// Layers are measured in turn until they hold this much, at most so many: more than the caches next to the cores keep.
constexpr uint64_t kLayersBytes = 64u << 20;
constexpr uint32_t kLayersMax = 64;
constexpr uint64_t kMemoryParts = 4;  // of which they may take one
constexpr uint32_t kChunkRows = 64, kManyChunkRows = 256, kChunkContext = 4096;

// Rows, columns and experts of a layer's weights, and their bytes.
struct LayerWeights {
  std::vector<std::array<int64_t, 3>> sizes;
  uint64_t bytes = 0;
};

std::vector<LayerWeights> layer_weights(const Model& model) {
  std::vector<LayerWeights> layers(model.config().layers);
  const std::vector<GraphWeight>& weights = model.graph().weights;
  for (size_t w = 0; w < weights.size(); ++w) {
    if (weights[w].layer < 0 || static_cast<size_t>(weights[w].layer) >= layers.size()) continue;
    LayerWeights& layer = layers[static_cast<size_t>(weights[w].layer)];
    layer.sizes.push_back({weights[w].rows, weights[w].cols, weights[w].experts});
    layer.bytes += model.weight(w).bytes;
  }
  return layers;
}

// Of a layer in the pool of a probe, in f32.
uint64_t kv_bytes(const Model& model, size_t layer) {
  if (layer >= model.kv_layers().size()) return 0;
  const KvLayer& kv = model.kv_layers()[layer];
  return 2 * sizeof(float) * kv.kv_heads * kv.head_dim * ProbeShare{}.kv_blocks * Probe::kBlockSize;
}

}  // namespace

uint32_t window_of(const Model& model, size_t layer) {
  return layer < model.kv_layers().size() ? model.kv_layers()[layer].window : 0;
}

LayerRange measured_layers(const Model& model, uint64_t memory_free, uint32_t least) {
  const std::vector<LayerWeights> layers = layer_weights(model);
  const auto seen = [&](size_t layer) {
    const uint32_t window = window_of(model, layer);
    return window == 0 ? kMeasuredContext : std::min(window, kMeasuredContext);
  };
  const size_t middle = layers.size() / 2;
  const auto alike = [&](size_t layer) {
    return layer + 1 < layers.size() && layers[layer].sizes == layers[middle].sizes && seen(layer) == seen(middle);
  };
  const uint64_t resident = layers[middle].bytes + kv_bytes(model, middle);
  size_t begin = middle, end = middle + 1;
  const auto enough = [&] {
    const uint64_t count = end - begin;
    return count >= kLayersMax || (count >= least && count * layers[middle].bytes >= kLayersBytes) ||
           (count + 1) * resident > memory_free / kMemoryParts;
  };
  while (!enough() && alike(end)) ++end;
  while (!enough() && begin > 1 && alike(begin - 1)) --begin;
  return {static_cast<uint32_t>(begin), static_cast<uint32_t>(end - begin)};
}

LayerRange few_layers(const Model& model, bool attends) {
  LayerRange layers = measured_layers(model, UINT64_MAX, attends ? 1 : 2);
  layers.count = std::min(layers.count, attends ? 1u : 2u);
  return layers;
}

std::vector<int64_t> unit_points(int64_t units, int64_t grain, bool brief) {
  std::vector<int64_t> points;
  for (const int64_t part : {units / 4, units / 2, units}) {
    if (brief && part == units / 2 && units >= 4 * grain) continue;
    const int64_t rounded = part == units ? units : part / grain * grain;
    if (rounded > 0 && (points.empty() || points.back() < rounded)) points.push_back(rounded);
  }
  return points;
}

uint64_t measuring_bytes(const Model& model) {
  uint64_t most = 0;
  for (const LayerWeights& layer : layer_weights(model)) most = std::max(most, layer.bytes);
  return 2 * most;
}

ProbeLoad rows_of_one(uint32_t rows, uint32_t context) {
  return {.rows = rows, .context = context, .one_sequence = true, .prompt = rows > kTurnRowsMax};
}
ProbeLoad prompt_of(uint32_t rows) { return rows_of_one(rows, rows); }

ChunkLoads chunk_loads(const Model& model, LayerRange layers, bool own_memory, uint32_t rows_max, uint32_t positions) {
  uint32_t seen = kMeasuredContext;
  if (own_memory) {
    seen = std::min(kChunkContext, model.config().context_length);
    for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
      if (const uint32_t window = window_of(model, layer); window > 0) seen = std::min(seen, window);
    }
  }
  seen = std::min(seen, positions);
  const uint32_t rows = std::max(1u, std::min({own_memory ? kManyChunkRows : kChunkRows, rows_max, seen / 2}));
  return {prompt_of(rows), rows_of_one(rows, std::max(rows, seen))};
}

ProbeLoad mixed_load() {
  ProbeLoad load = prompt_of(kMixedRows - kMixedDecoding);
  load.rows = kMixedRows, load.decoding = kMixedDecoding;
  return load;
}

}  // namespace motley
