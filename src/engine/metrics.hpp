// EngineMetrics: counters and histograms from the updates of requests. Not thread-safe; the engine guards it.
#pragma once

#include "engine/engine.hpp"
#include "engine/sequence.hpp"

namespace motley {

class EngineMetrics {
 public:
  explicit EngineMetrics(uint32_t max_model_len);
  void on_step(uint32_t lane, size_t rows);
  void on_update(const Sequence& sequence, const RequestUpdate& update, int64_t now_ns);
  // Another executor serves, after one that was lost or by plan.
  void on_replacement(bool lost, int64_t pause_ns);
  // KV, from one pool to another.
  void on_moved(size_t blocks, uint64_t bytes);
  EngineStats& stats() { return stats_; }
  const EngineStats& stats() const { return stats_; }

 private:
  void on_tokens(const Sequence& sequence, size_t tokens);
  void on_finish(const Sequence& sequence, FinishReason reason, int64_t now_ns);

  EngineStats stats_;
};

}  // namespace motley
