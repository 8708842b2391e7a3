// While products multiply, memory is idle: they ask for the KV that the next attention reads. Results do not change.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "cpu/ops.hpp"

namespace motley::cpu {

// Notes in each product of a fused plan (MatmulData::fetch) the attention behind it, and its part of the work up to
// there.
void share_fetches(kit::Plan& plan);

// What a thread asks for in one product: its part of the blocks that generated rows see, of as many as its caches hold
// beside the other threads'. For the time of a step; points into itself.
class KvFetch {
 public:
  KvFetch() = default;
  KvFetch(const KvFetch&) = delete;
  KvFetch& operator=(const KvFetch&) = delete;
  KvLines* of(const kit::OpCall& call, const FetchShare& share);  // once; null: there is nothing to ask for

 private:
  static constexpr size_t kRunsMax = 1024;  // more is not asked for in one product
  std::array<const uint8_t*, kRunsMax> runs_;
  KvLines fetch_;
};

}  // namespace motley::cpu
