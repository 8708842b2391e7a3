// What one device of a stage computes: the model's graph, narrowed to its units and cut where shards meet.
//
// Every value of the graph is, on a shard, whole (each shard computes all of it), cut (its last axis holds this shard's
// heads, columns or vocabulary rows) or partial (a summand; the sum over the shards is the value). A partial value
// becomes whole at a *reduce*, which stands before the first op that is not linear in it. Ops of which this shard has
// no unit are left out: it then only receives the sum. Where one shard holds all units of the stage's layers, nothing
// is cut in them: the others, which hold vocabulary, wait, and have the residual stream handed over at the end.
//
// A shard with a partner is two parts: all but attention on its device, and attention with its KV on the partner's.
// They meet twice a layer: queries, keys and values go over, and what attention makes of them comes back.
//
// Where the lane's pool has several sections (docs/adr/0018), each is one part more, which attends to what lies there.
// The device gets a result and a log-sum-exp of each, and merges them in the order of the sections.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.hpp"
#include "model/model.hpp"
#include "motley/backend.h"
#include "planner/placement.hpp"

namespace motley {

// A weight of the narrowed graph: which of the model's, and what is kept of it. No ranges = all of that axis.
struct ShardWeight {
  size_t source = 0;
  std::vector<motley_range> rows, cols, experts;
};

// Which part of a shard: see above.
enum class ShardRole { kWhole, kDense, kAttention };

// Programs of layers in which nothing is summed: one of all that follow one another, one of each layer (of a dense
// part, as before: one between two meetings), or as where several shards have units of them, though no other has.
enum class LayerPrograms { kTogether, kEach, kParts };

// A run of nodes that is compiled into one program, or the meeting with others after it.
struct ShardPiece {
  enum class Kind {
    kProgram,  // nodes [node_begin, node_end) of the graph
    kReduce,   // `value` (f32 [ROWS, hidden]) is summed over the shards; no summand from here if !contributes
    kPartner,  // `gives` (f32 [ROWS, n] each) go to the shard's other parts, then `takes` come from them
    kLogits    // `value` (f32 [HEAD_ROWS, own vocabulary rows]) is gathered where tokens are sampled
  };
  Kind kind = Kind::kProgram;
  motley_cut cut = MOTLEY_CUT_STAGE;
  int32_t layer_begin = 0, layer_end = 0;
  size_t node_begin = 0, node_end = 0;
  int32_t value = -1;
  bool contributes = true;
  std::vector<int32_t> gives, takes;  // takes: as many from each of the other parts, in their order
};

struct ShardGraph {
  ShardRole role = ShardRole::kWhole;
  uint32_t section = 0;          // of the pool: the blocks that it keeps
  std::vector<uint32_t> others;  // the sections of those that attend for it, ascending
  Graph graph;
  std::vector<ShardWeight> weights;  // by the graph's weights
  std::vector<ShardPiece> pieces;    // in the order in which they run
  int32_t layer_begin = 0;           // of the stage
  // Layers of the part's KV pool, [layer - layer_begin], and the heads of each; empty where it keeps no KV.
  std::vector<KvLayer> kv_layers;
  std::vector<UnitRange> kv_heads;
  bool embeds = false;     // reads tokens
  bool samples = false;    // the first shard with vocabulary rows of the last stage
  int64_t vocab_rows = 0;  // of the head; 0 = none
};

// Somebody who attends for a shard: its partner to what lies in section 0, another owner to what lies in a further one.
struct Attendant {
  uint32_t section = 0;
  std::string device;
};
std::vector<Attendant> attendants_of(const Lane& lane, const Shard& shard);  // ascending

// What shard `shard` of stage `stage` of the lane computes in that role: kWhole of one without a partner, kDense of one
// with, kAttention of an attendant, whose section it is.
// INVALID_ARGUMENT where the shards' ranges do not cover an axis exactly once or fall where a weight's format cannot be
// cut; UNIMPLEMENTED where the model has an op that cannot be computed in parts.
Result<ShardGraph> shard_graph(const Model& model, const Lane& lane, size_t stage, size_t shard, ShardRole role,
                               uint32_t section, LayerPrograms programs = LayerPrograms::kTogether);

}  // namespace motley
