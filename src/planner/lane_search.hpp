// Further lanes: where one lane's KV pool is short of the load, or prompts are better computed elsewhere. Pure.
#pragma once

#include <optional>
#include <span>

#include "planner/lane_set.hpp"

namespace motley {

// *KV lanes*: a start's shards, on the same weights, with the KV of all heads with one owner, which attends; as many
// owners as pay, while sequences of the load are left over. *Roles*: a start on one device decodes and keeps the KV;
// others compute prompts for it. *Replicas*: several starts on devices of their own, each with a share of the
// sequences.
// The best of these, if it is worth 5 % more tokens/s than the first start (replicas: any more, where that is a
// pipeline), or takes in a quarter more of the load's sequences at no loss; the starts' order is theirs by score.
// `forced`: the devices of the first start are; KV lanes alone are tried.
std::optional<LaneSet> find_lanes(Predictor* predictor, std::span<const Candidate> starts, bool forced);

// The start's lane with its KV with `owner`.
LanePlan with_kv_owner(LanePlan plan, size_t owner);

}  // namespace motley
