// SPDX-License-Identifier: Apache-2.0
#include "cpu/variants.hpp"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace motley::cpu {
namespace {

// Bits of CPUID and XCR0 (Intel SDM vol. 1 §14-15, vol. 2 CPUID).
constexpr uint32_t kFma = 1u << 12, kOsXsave = 1u << 27, kF16c = 1u << 29;  // leaf 1 ecx
constexpr uint32_t kAvx2 = 1u << 5;                                         // leaf 7 ebx
constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;     // F, DQ, BW, VL; ebx
constexpr uint32_t kVnni = 1u << 11;                                        // leaf 7 ecx
constexpr uint32_t kTiles = 1u << 22 | 1u << 24 | 1u << 25;                 // AMX-BF16, -TILE, -INT8; leaf 7 edx
constexpr uint32_t kAvxVnni = 1u << 4, kBf16 = 1u << 5;                     // leaf 7, part 1, eax
constexpr uint64_t kYmmState = 0x6, kZmmState = 0xe6, kTileState = 0x60000;
constexpr int kTileData = 18;

bool all(uint64_t bits, uint64_t of) { return (bits & of) == of; }

uint64_t enabled_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Tiles are large: Linux saves them only for a process that has asked for it, once for all of its threads.
bool ask_for_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// AMD's cores multiply bf16 pairs twice as fast as f32, Intel's half as fast: there f32 is the better one.
bool bf16_is_fast() {
  uint32_t a, vendor[3];
  return __get_cpuid(0, &a, &vendor[0], &vendor[2], &vendor[1]) && std::memcmp(vendor, "AuthenticAMD", 12) == 0;
}

std::vector<const KernelSet*> find_variants() {
  std::vector<const KernelSet*> found = {&kPortableKernels};
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, kFma | kOsXsave | kF16c)) return found;
  const uint64_t state = enabled_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !all(b, kAvx2) || !all(state, kYmmState)) return found;
  found.insert(found.begin(), &kAvx2Kernels);
  const bool avx512 = all(b, kAvx512) && all(c, kVnni) && all(state, kZmmState);
  const bool tiles = avx512 && all(d, kTiles) && all(state, kTileState);
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) a = 0;
  if (all(a, kAvxVnni)) found.insert(found.begin(), &kAvxVnniKernels);
  if (avx512) found.insert(found.begin(), &kAvx512Kernels);
  if (avx512 && all(a, kBf16)) found.insert(found.begin() + (bf16_is_fast() ? 0 : 1), &kAvx512Bf16Kernels);
  if (tiles && ask_for_tiles()) found.insert(found.begin(), &kAmxKernels);
  return found;
}

}  // namespace

const std::vector<const KernelSet*>& variants() {
  static const std::vector<const KernelSet*> found = find_variants();
  return found;
}

}  // namespace motley::cpu
