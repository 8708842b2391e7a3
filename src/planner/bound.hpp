// The certified upper bound of output tokens/s over every plan of these devices, whatever its stages and splits.
//
// For C sequences in M micro-batches, T = the time of all M. Every device has at most T, so
// - a device alone in its stage runs at most L_d(T) whole layers, a whole number, within its memory;
// - a device in a stage of several runs at most max over l of l x, where x is the part of each of l layers that it does
//   within T / (M l) less two all-reduces with its nearest peer, again within its memory;
// - these parts must sum to all layers; the head is either on one device alone, whose time it takes, or a part of what
//   devices of shared stages do.
// And every row passes through all layers: T >= the sum over layers of the least time that any device, or all of them
// together without a loss, needs for one. The least such T bounds every plan of this C and M and kind of chunks; the
// best over those that plans are made of (workload.hpp), with C within what all memory holds, is the quick bound.
//
// Where that is above what some plan gives, the loads that could give so much are looked at again: with few devices by
// every grouping of them into stages (grouping_bound.hpp), with many by a linear program over sets of types
// (fleet_bound.hpp). There an all-reduce of many devices costs each of them what it costs. KV heads are taken as whole,
// except where there is one: its queries may be parted.
// Plans with partners (a device computes, another attends for it) overlap two steps, and these figures do not hold of
// them: they are bounded by the FFNs or experts of all layers, shared by all devices without a loss. Where a device
// cannot attend, or the plan has several lanes, the greater of both is the bound: each row passes through some FFN, at
// the rate of a step of all sequences or of half of them.
#pragma once

#include "planner/grouping_bound.hpp"
#include "planner/prediction.hpp"

namespace motley {

// Bounds below `known_tokens_per_s`, what some plan is known to give, are of no interest: it is returned instead.
// More than `groupings_devices_max` devices are looked at as a fleet.
double tokens_per_s_bound(Predictor* predictor, double known_tokens_per_s = 0, bool several_lanes = false,
                          size_t groupings_devices_max = GroupingBound::kDevicesMax);

}  // namespace motley
