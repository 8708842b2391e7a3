#include "model/dtype.hpp"

#include <array>
#include <string>

#include "motley/types.h"

namespace motley {
namespace {

constexpr bool kBuilt = true, kNotInGguf = false;

// Formats without a motley_dtype are here so that a file that holds them is measured and refused by name.
constexpr std::array kDtypes = {
    DtypeInfo{MOTLEY_F32, "F32", 1, 4, kBuilt},
    DtypeInfo{MOTLEY_F16, "F16", 1, 2, kBuilt},
    DtypeInfo{MOTLEY_BF16, "BF16", 1, 2, kBuilt},
    DtypeInfo{MOTLEY_Q8_0, "Q8_0", 32, 34, kBuilt},
    DtypeInfo{MOTLEY_Q4_0, "Q4_0", 32, 18, kBuilt},
    DtypeInfo{MOTLEY_Q4_1, "Q4_1", 32, 20, kBuilt},
    DtypeInfo{MOTLEY_Q5_0, "Q5_0", 32, 22, kBuilt},
    DtypeInfo{MOTLEY_Q5_1, "Q5_1", 32, 24, kBuilt},
    DtypeInfo{MOTLEY_Q2_K, "Q2_K", 256, 84, kBuilt},
    DtypeInfo{MOTLEY_Q3_K, "Q3_K", 256, 110, kBuilt},
    DtypeInfo{MOTLEY_Q4_K, "Q4_K", 256, 144, kBuilt},
    DtypeInfo{MOTLEY_Q5_K, "Q5_K", 256, 176, kBuilt},
    DtypeInfo{MOTLEY_Q6_K, "Q6_K", 256, 210, kBuilt},
    DtypeInfo{MOTLEY_IQ4_NL, "IQ4_NL", 32, 18, kBuilt},
    DtypeInfo{MOTLEY_IQ4_XS, "IQ4_XS", 256, 136, kBuilt},
    DtypeInfo{MOTLEY_MXFP4, "MXFP4", 32, 17, kBuilt},
    DtypeInfo{MOTLEY_F8_E4M3_S64, "F8_E4M3", 64, 68, kBuilt, kNotInGguf},
    DtypeInfo{9, "Q8_1", 32, 36},
    DtypeInfo{15, "Q8_K", 256, 292},
    DtypeInfo{16, "IQ2_XXS", 256, 66},
    DtypeInfo{17, "IQ2_XS", 256, 74},
    DtypeInfo{18, "IQ3_XXS", 256, 98},
    DtypeInfo{19, "IQ1_S", 256, 50},
    DtypeInfo{21, "IQ3_S", 256, 110},
    DtypeInfo{22, "IQ2_S", 256, 82},
    DtypeInfo{MOTLEY_I8, "I8", 1, 1},
    DtypeInfo{25, "I16", 1, 2},
    DtypeInfo{MOTLEY_I32, "I32", 1, 4},
    DtypeInfo{27, "I64", 1, 8},
    DtypeInfo{28, "F64", 1, 8},
    DtypeInfo{29, "IQ1_M", 256, 56},
    DtypeInfo{34, "TQ1_0", 256, 54},
    DtypeInfo{35, "TQ2_0", 256, 66},
    DtypeInfo{40, "NVFP4", 64, 36},
    DtypeInfo{41, "Q1_0", 128, 18},
    DtypeInfo{42, "Q2_0", 64, 18},
};

}  // namespace

const DtypeInfo* find_dtype(int32_t id) {
  for (const DtypeInfo& info : kDtypes) {
    if (info.id == id) return &info;
  }
  return nullptr;
}

const DtypeInfo* find_dtype(std::string_view name) {
  for (const DtypeInfo& info : kDtypes) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

std::string_view weight_dtype_names() {
  static const std::string names = [] {
    std::string joined;
    for (const DtypeInfo& info : kDtypes) {
      if (!info.is_weight || !info.in_gguf) continue;
      if (!joined.empty()) joined += ", ";
      joined += info.name;
    }
    return joined;
  }();
  return names;
}

}  // namespace motley
