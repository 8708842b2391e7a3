// LaneSet: lanes side by side over the same devices, and what they are expected to do together. Pure.
//
// Pools have sequences of their own: with shares, each its share of them; else the first as many as it holds, each
// further one of those that are left. What a pool gives alone is Prediction's; where its lanes have roles, see below.
// Pools take the same devices' time: with f of its steps, a pool gives f of its tokens and takes f of what it takes of
// each device. All f rise together until some device has no time left; pools that use it stay there, the others rise
// on, to 1.
//
// Roles: a lane that only prefills takes a_i of its own devices' bottleneck for a prompt, and b_i of the time of the
// device that decodes, which attends for it; the tokens of a request take it d. Requests a second are the linear
// program: max sum x_i, x_i a_i <= 1, sum x_i (b_i + d) <= 1. It has one row besides bounds: whoever takes least of the
// decoding device comes first. d depends on how many decode, those of the requests that are not at their prompt:
// iterated.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/memory_model.hpp"
#include "planner/prediction.hpp"

namespace motley {

constexpr double kSlowestReplica = 3;  // in time a token, than the fastest

struct StageTime {
  double step_ns = 0, hop_ns = 0;  // mean over the load's steps
};

struct LaneSet {
  std::vector<LaneOfSet> lanes;
  LanesMemory memory;
  std::vector<uint32_t> micro_batches;         // [lane] 0 = as many as stages
  std::vector<std::vector<StageTime>> stages;  // [lane][stage] of the steps that it runs
  std::vector<Prediction> pools;               // beside the others
  Prediction predicted;                        // of all: the sum of tokens and sequences, the longest times
  std::vector<double> busy;                    // [device] share of its time
  bool fits() const { return memory.missing_bytes == 0; }
};

// What somebody has fixed; 0 or none = free.
struct LaneSetGiven {
  std::vector<PoolTokens> kv_tokens;    // [pool] at most
  std::vector<uint32_t> micro_batches;  // [lane]
};

// Lanes that are sound and share their pools (check_lane, check_pools).
LaneSet evaluate_lanes(Predictor* predictor, std::vector<LaneOfSet> lanes, const LaneSetGiven& given = {});

// Prompts of one kind of lane and what they take, a request. Nanoseconds.
struct PrefillCost {
  double own_ns = 0;      // of the lane itself; 0 = it is no bottleneck
  double decoder_ns = 0;  // of the device that decodes
};
// Requests a nanosecond that each takes, by the linear program above.
std::vector<double> share_prompts(std::span<const PrefillCost> lanes, double decode_ns);

}  // namespace motley
