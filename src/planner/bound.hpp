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
// best over those that plans are made of (workload.hpp), with C within what all memory holds, is the bound.
#pragma once

#include "planner/prediction.hpp"

namespace motley {

double tokens_per_s_bound(Predictor* predictor);

}  // namespace motley
