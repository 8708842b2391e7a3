#include "model/architecture.hpp"

#include <array>

namespace motley {

void build_llama(GraphBuilder& model);
void build_qwen3(GraphBuilder& model);

namespace {
constexpr std::array kArchitectures = {
    Architecture{"llama", build_llama},
    Architecture{"qwen3", build_qwen3},
};
}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
  }
  return nullptr;
}

}  // namespace motley
