// Placement: which device runs what. The planner's result, the runtime's input; a value.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "base/ids.hpp"
#include "base/route.hpp"

namespace motley {

struct UnitRange {
  int64_t begin = 0, end = 0;  // half open
};

int64_t units_in(const std::vector<UnitRange>& ranges);

// A device's part of a stage, as lists of unit ranges. Ranges of all shards of a stage cover each axis exactly
// (KV heads may be replicated: see query_heads).
struct Shard {
  std::string device;
  std::vector<UnitRange> kv_heads, ffn_columns;
  std::vector<UnitRange> vocab_rows;  // of the embedding (first stage) and the head (last stage)
  std::vector<int32_t> experts;
  uint64_t weight_bytes = 0;
  // Of all heads; empty: those of `kv_heads`. Where shards hold the same KV head, each writes it to its own pool and
  // takes these queries alone; the ranges of all shards then cover the query heads exactly, and every KV head is there.
  std::vector<UnitRange> query_heads;
  // Who keeps the KV of these heads and attends for them, where the device cannot; empty: the device itself.
  std::string partner;

  const std::string& kv_owner() const { return partner.empty() ? device : partner; }
};

// Contiguous layers [layer_begin, layer_end) that run together.
struct Stage {
  uint32_t layer_begin = 0, layer_end = 0;
  std::vector<Shard> shards;
  std::vector<std::string> kv_owners;  // of the shards with heads, in their order
};

// Over what two devices meet, whichever is first.
struct PairRoute {
  std::string a, b;
  Route route = Route::kSharedMemory;
  bool operator==(const PairRoute&) const = default;
};

// A further run of a pool's blocks, with an owner of its own.
struct KvSection {
  std::string owner;  // keeps these blocks' KV, of all heads of all layers, and attends to it
  uint32_t blocks = 0;
  bool operator==(const KvSection&) const = default;
};

struct Lane {
  std::vector<Stage> stages;
  uint32_t kv_blocks = 0;                // of its pool, with the shards' owners
  std::vector<KvSection> sections;       // of its pool, behind those: in order, no device twice
  bool prefills = true, decodes = true;  // its role: rows of text that is known, and those behind it
  // Of a sequence's known text in a step beside rows behind it, at most, and of one sequence's alone unless more wait
  // than decode; of a lane that only prefills: of a whole step. 0 = any.
  uint32_t chunk_rows = 0;
  uint32_t pool = 0;  // lanes of one number have the same KV: the same owners, layers, heads and blocks
  double share = 0;   // of all sequences, of its pool; every lane has one, or (0) none: the first pool with room takes
                      // the next sequence
  // Steps of disjoint sequences under way together; 0 = as many as stages, twice that where partners attend. One stage
  // has one, or with partners up to two.
  uint32_t micro_batches = 0;
  std::vector<PairRoute> routes;  // each pair at most once; who is not here meets over shared memory
};

struct Placement {
  Epoch epoch = 0;
  std::vector<Lane> lanes;
  uint32_t block_size = 16;  // positions of a KV block
  int32_t kv_dtype = 0;      // motley_dtype
};

// Of its pool, all sections together.
uint32_t pool_blocks(const Lane& lane);
// Positions that its pools hold.
uint64_t kv_tokens(const Placement& placement);
// Owner, layers, and heads of the KV in the first section of a pool.
using KvPart = std::tuple<std::string, uint32_t, uint32_t, int64_t, int64_t>;
std::set<KvPart> kv_parts(const Placement& placement, uint32_t pool);
// The devices used, partners and owners of sections included, each once, in order of appearance.
std::vector<std::string> devices_of(const Placement& placement);
// Names of devices are the same whatever their case.
bool same_device(std::string_view a, std::string_view b);

}  // namespace motley
