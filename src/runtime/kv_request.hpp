// The KV pool that is asked of a device, in the ABI's terms.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/model.hpp"
#include "motley/backend.h"

namespace motley {

// The vectors back the pointers of `desc`.
struct KvRequest {
  std::vector<int32_t> kv_heads, head_dim, windows;
  motley_kv_desc desc{};
  KvRequest(std::span<const KvLayer> layers, int32_t dtype, uint32_t block_size, uint32_t blocks) {
    for (const KvLayer& layer : layers) {
      kv_heads.push_back(static_cast<int32_t>(layer.kv_heads));
      head_dim.push_back(static_cast<int32_t>(layer.head_dim));
      windows.push_back(static_cast<int32_t>(layer.window));
    }
    desc.struct_size = sizeof desc;
    desc.dtype = dtype;
    desc.block_size = block_size;
    desc.blocks = blocks;
    desc.layers = static_cast<uint32_t>(kv_heads.size());
    desc.kv_heads = kv_heads.data();
    desc.head_dim = head_dim.data();
    desc.windows = windows.data();
  }
  KvRequest(const KvRequest&) = delete;
  KvRequest& operator=(const KvRequest&) = delete;
};

}  // namespace motley
