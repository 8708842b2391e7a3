#include "make_model/form.hpp"

#include <array>

namespace motley::make_model {
namespace {

constexpr std::array kForms = {
    Form{.architecture = "llama", .may_have_experts = true},
    Form{.architecture = "mistral3", .rope_base = 1000000},
    Form{.architecture = "qwen2", .rope_base = 1000000, .qkv_biases = true},
    Form{.architecture = "qwen2moe", .rope_base = 1000000, .qkv_biases = true, .experts = true, .shared_expert = true},
    Form{.architecture = "qwen3", .rope_base = 1000000, .head_norms = true},
    Form{.architecture = "qwen3moe", .rope_base = 1000000, .head_norms = true, .experts = true},
    Form{.architecture = "gemma2", .post_norms = true, .tied = true, .window = 4096},
    Form{.architecture = "gemma3",
         .rope_base = 1000000,
         .head_norms = true,
         .post_norms = true,
         .tied = true,
         .window = 512},
    Form{.architecture = "phi3", .fused = true},
    Form{.architecture = "gpt-oss",
         .rope_base = 150000,
         .qkv_biases = true,
         .all_biases = true,
         .experts = true,
         .sinks = true,
         .window = 128,
         .ffn_norm = "post_attention_norm"},
};

constexpr std::array kShapes = {
    Shape{"tiny", 2, 256, 4, 2, 64, 512, 512, 320, 4, 2},
    Shape{"1b", 16, 2048, 32, 8, 64, 8192, 131072, 128256, 32, 4},
    Shape{"8b", 32, 4096, 32, 8, 128, 14336, 131072, 128256, 64, 8},
    Shape{"70b", 80, 8192, 64, 8, 128, 28672, 131072, 128256, 128, 8},
};

template <typename Items, typename Name>
auto find(const Items& items, Name name, std::string_view wanted) -> decltype(items.data()) {
  for (const auto& item : items) {
    if (item.*name == wanted) return &item;
  }
  return nullptr;
}

template <typename Items, typename Name>
std::string join(const Items& items, Name name) {
  std::string names;
  for (const auto& item : items) {
    if (!names.empty()) names += ", ";
    names += item.*name;
  }
  return names;
}

}  // namespace

const Form* find_form(std::string_view architecture) { return find(kForms, &Form::architecture, architecture); }
std::string form_names() { return join(kForms, &Form::architecture); }
const Shape* find_shape(std::string_view name) { return find(kShapes, &Shape::name, name); }
std::string shape_names() { return join(kShapes, &Shape::name); }

}  // namespace motley::make_model
