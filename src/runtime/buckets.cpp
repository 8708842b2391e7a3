#include "runtime/buckets.hpp"

#include <algorithm>
#include <iterator>

#include "model/axes.hpp"
#include "runtime/device_part.hpp"

namespace motley {
namespace {

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

Result<Buckets> buckets_of(const Model& model, const Device& device, const BucketOptions& options) {
  if (options.any_rows) return Buckets{{options.rows_max}};
  const Lane lane = layers_alone(axes_of(model), model.config().layers);
  ASSIGN_OR_RETURN(const ShardGraph shard, shard_graph(model, lane, 0, 0, ShardRole::kDense, 0));
  return buckets_of(segments_of(shard), device, options);
}

Result<Buckets> buckets_of(std::span<const std::unique_ptr<Segment>> segments, const Device& device,
                           const BucketOptions& options) {
  std::vector<uint32_t> rows = options.of.empty() ? row_counts(options.rows_max, options.load) : options.of;
  std::erase_if(rows, [&](uint32_t each) {
    return std::find(options.without.begin(), options.without.end(), each) != options.without.end();
  });
  if (rows.empty()) return error(MOTLEY_UNIMPLEMENTED, "its programs compile for none of the row counts of a step");
  for (;;) {
    Buckets buckets{rows};
    double compile_ns = 0;
    for (const auto& segment : segments) {
      if (segment == nullptr) continue;
      ASSIGN_OR_RETURN(const QueryResult asked, device.query(segment->view(), buckets.rows));
      compile_ns += static_cast<double>(asked.compile_ns);
      buckets.program_bytes += std::min(asked.program_bytes, UINT64_MAX - buckets.program_bytes);
    }
    const bool fit =
        compile_ns <= options.compile_seconds_max * 1e9 && buckets.program_bytes <= options.program_bytes_max;
    if (fit) return buckets;
    if (rows.size() == 1)
      return error(
          MOTLEY_RESOURCE_EXHAUSTED,
          "programs of {} rows alone would take {:.0f} s to compile ({:.0f} may) and {} bytes of memory ({} may); "
          "--compile-limit and --max-num-batched-tokens set such limits",
          rows.back(), compile_ns * 1e-9, options.compile_seconds_max, buckets.program_bytes,
          options.program_bytes_max);
    const size_t fewer = rows.size() - 1;
    rows = fewer_row_counts(std::move(rows), fewer, options.load);
  }
}

std::vector<uint32_t> common_row_counts(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  const uint32_t most = std::min(a.back(), b.back());
  std::vector<uint32_t> common;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
  if (common.empty() || common.back() < most) common.push_back(most);
  return common;
}

}  // namespace motley
