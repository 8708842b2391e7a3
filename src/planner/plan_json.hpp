// A plan as JSON: what `motley plan --json` prints and `--plan FILE` reads.
//
// {"model": {"name", "digest"}, "machine", "stages": [{"layers": [first, end], "shards": [{"device", "kv_heads",
//   "query_heads"?, "ffn_columns", "vocab_rows", "experts": [ids], "weight_bytes", "format"}], "kv_owners": [names]}],
//  "micro_batches"?, "chunk_rows"?, "routes"?: [{"a", "b", "route"?: "shared-memory" or "gloo"}], "predicted":
//  {"tokens_per_s", "ttft_ms", "tpot_ms", "keeps_slo"?}, "bound_tokens_per_s", "gap", "kv_capacity_tokens", "moved"?,
//  "left_out": [{"device", "reason"}], "alternatives": [{"devices", "tokens_per_s"}]}
// Where there are several lanes, each says its own: {"lanes": [{"pool", "kv_capacity_tokens", "role"?: "prefill" or
//   "decode", "share"?, "stages", "micro_batches"?, "chunk_rows"?, "routes"?}], ...}. Lanes of one pool share its
//   sequences. With "share", in every lane, pools get these parts of all sequences; else the first with room the next.
// The kv_capacity_tokens beside "lanes" is the sum over pools: another one is refused.
// Counts; ranges follow the order of the shards. query_heads stands only where KV heads are replicated, micro_batches
// (in flight together) only with several stages, chunk_rows (of a prompt beside rows that decode) likewise, or (of a
// step) where a lane only prefills, routes only of
// pairs that do not meet over shared memory: who is not there does, keeps_slo only where limits were asked for. By
// hand, "stages" alone will do; a stage's only shard may leave its counts out: it takes everything.
#pragma once

#include <string>
#include <string_view>

#include "base/status.hpp"
#include "planner/search.hpp"

namespace motley {

inline constexpr size_t kPlanFileBytesMax = 4u << 20;

// What a plan is for: both are digests that whoever calls has computed.
struct PlanIdentity {
  std::string model_digest, machine;
};

std::string to_json(const PlanReport& report, const ModelShape& shape, const PlanIdentity& identity);

// The placement, with the devices' names as `input` spells them and weight_bytes as they come out here. kv_blocks is
// what the file's capacity says and micro_batches its number, 0 where it says none. INVALID_ARGUMENT, one
// line: what is no plan, not of this model or machine, names devices that are not there, does not cover each layer and
// axis once, or is not what `request` forces. Of `input`, the devices' names decide that; their figures, weight_bytes.
Result<Placement> read_plan(std::string_view json, const ModelShape& shape, const PlanInput& input,
                            const PlanRequest& request, const PlanIdentity& identity);

}  // namespace motley
