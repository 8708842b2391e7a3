#include "model/architecture.hpp"

#include <algorithm>

namespace motley {

extern const Architecture kGemma2, kGemma3, kGptOss, kLlama, kMistral3, kPhi3, kQwen2, kQwen2Moe, kQwen3, kQwen3Moe;

namespace {
constexpr std::array kArchitectures = {&kLlama,    &kMistral3, &kQwen2,  &kQwen2Moe, &kQwen3,
                                       &kQwen3Moe, &kGemma2,   &kGemma3, &kPhi3,     &kGptOss};
}  // namespace

std::span<const Architecture* const> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture* architecture : kArchitectures) {
    if (architecture->name == name) return architecture;
  }
  return nullptr;
}

const Architecture* find_hugging_face_architecture(std::string_view name) {
  for (const Architecture* architecture : kArchitectures) {
    const auto& names = architecture->hugging_face_names;
    if (!name.empty() && std::find(names.begin(), names.end(), name) != names.end()) return architecture;
  }
  return nullptr;
}

std::string architecture_names() {
  std::string names;
  for (const Architecture* architecture : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += architecture->name;
  }
  return names;
}

}  // namespace motley
