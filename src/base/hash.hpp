// FNV-1a of 64 bits: names for things of this machine, not for what others may choose.
#pragma once

#include <cstddef>
#include <cstdint>

namespace motley {

inline constexpr uint64_t kHashStart = 0xcbf29ce484222325ull;

// `hash` continued by the bytes.
inline uint64_t hash_bytes(uint64_t hash, const void* data, size_t bytes) {
  const auto* byte = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ byte[i]) * 0x100000001b3ull;
  return hash;
}

}  // namespace motley
