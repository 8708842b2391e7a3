#include "runtime/buckets.hpp"

#include <algorithm>

#include "model/axes.hpp"
#include "runtime/device_part.hpp"

namespace motley {
namespace {

constexpr uint32_t kRowsOfFirstBucket = 16, kRowsOfPrompts = 256;  // beyond, rows are dear to pad

// All layers of the model on one device that does not attend; embedding and head elsewhere.
Lane layers_alone(const ModelAxes& axes, uint32_t layers) {
  const auto all = [](int64_t units) {
    return units > 0 ? std::vector<UnitRange>{{0, units}} : std::vector<UnitRange>();
  };
  Stage stage;
  stage.layer_end = layers;
  stage.shards.resize(2);
  Shard& dense = stage.shards[0];
  dense.kv_heads = all(axes.kv_heads), dense.ffn_columns = all(axes.ffn_columns);
  for (int64_t e = 0; e < axes.experts; ++e) dense.experts.push_back(static_cast<int32_t>(e));
  stage.shards[1].vocab_rows = all(axes.vocab);
  Lane lane;
  lane.stages.push_back(std::move(stage));
  return lane;
}

}  // namespace

std::vector<uint32_t> row_buckets(uint32_t rows_max, size_t most) {
  std::vector<uint32_t> steps;
  for (uint32_t rows = kRowsOfFirstBucket; rows < rows_max; rows *= rows < kRowsOfPrompts ? 4 : 2)
    steps.push_back(rows);
  const size_t count = std::min(steps.size() + 1, std::max<size_t>(most, 1));
  std::vector<uint32_t> buckets;
  for (size_t i = 0; i + 1 < count; ++i) buckets.push_back(steps[i * steps.size() / (count - 1)]);
  buckets.push_back(rows_max);
  return buckets;
}

Result<Buckets> buckets_of(const Model& model, const Device& device, const BucketOptions& options) {
  if (options.any_rows) return Buckets{{options.rows_max}};
  const Lane lane = layers_alone(axes_of(model), model.config().layers);
  ASSIGN_OR_RETURN(const ShardGraph shard, shard_graph(model, lane, 0, 0, ShardRole::kDense, 0));
  const auto segments = segments_of(shard);
  for (size_t most = row_buckets(options.rows_max).size();; --most) {
    Buckets buckets{row_buckets(options.rows_max, most)};
    double compile_ns = 0;
    for (const auto& segment : segments) {
      if (segment == nullptr) continue;
      ASSIGN_OR_RETURN(const QueryResult asked, device.query(segment->view(), buckets.rows));
      compile_ns += static_cast<double>(asked.compile_ns);
      buckets.program_bytes += std::min(asked.program_bytes, UINT64_MAX - buckets.program_bytes);
    }
    const bool fit =
        compile_ns <= options.compile_seconds_max * 1e9 && buckets.program_bytes <= options.program_bytes_max;
    if (fit || most == 1) return buckets;
  }
}

}  // namespace motley
