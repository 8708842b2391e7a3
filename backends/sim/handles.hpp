// The ABI's opaque handles are this plugin's objects under another name.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sim/queue.hpp"

namespace motley::sim {

#define MOTLEY_SIM_HANDLE(Type, raw)                                   \
  inline Type* of(raw* from) { return reinterpret_cast<Type*>(from); } \
  inline raw* handle(Type* from) { return reinterpret_cast<raw*>(from); }
MOTLEY_SIM_HANDLE(Device, motley_device)
MOTLEY_SIM_HANDLE(Queue, motley_queue)
MOTLEY_SIM_HANDLE(Buffer, motley_buffer)
MOTLEY_SIM_HANDLE(Weight, motley_weight)
MOTLEY_SIM_HANDLE(Kv, motley_kv)
MOTLEY_SIM_HANDLE(Programs, motley_programs)
#undef MOTLEY_SIM_HANDLE

}  // namespace motley::sim
