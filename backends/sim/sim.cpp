// SPDX-License-Identifier: Apache-2.0
#include "sim/abi.hpp"

extern "C" __attribute__((visibility("default"))) const motley_backend* motley_backend_entry(uint32_t);
extern "C" __attribute__((visibility("default"))) const motley_backend* motley_backend_entry(uint32_t abi) {
  return abi == MOTLEY_BACKEND_ABI ? &motley::sim::table() : nullptr;
}
