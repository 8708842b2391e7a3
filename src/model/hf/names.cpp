#include "model/hf/names.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>

namespace motley::hf {
namespace {

struct NamePair {
  std::string_view ours, ggufs;
};

constexpr std::array kTopNames = {NamePair{"embed_tokens", "token_embd"}, NamePair{"norm", "output_norm"},
                                  NamePair{"lm_head", "output"}};

constexpr std::array kLayerNames = {
    NamePair{"input_layernorm", "attn_norm"},
    NamePair{"self_attn.q_proj", "attn_q"},
    NamePair{"self_attn.k_proj", "attn_k"},
    NamePair{"self_attn.v_proj", "attn_v"},
    NamePair{"self_attn.qkv_proj", "attn_qkv"},
    NamePair{"self_attn.o_proj", "attn_output"},
    NamePair{"self_attn.q_norm", "attn_q_norm"},
    NamePair{"self_attn.k_norm", "attn_k_norm"},
    NamePair{"pre_feedforward_layernorm", "ffn_norm"},
    NamePair{"post_feedforward_layernorm", "post_ffw_norm"},
    NamePair{"mlp.gate_proj", "ffn_gate"},
    NamePair{"mlp.up_proj", "ffn_up"},
    NamePair{"mlp.gate_up_proj", "ffn_up"},  // rows of the gate first, as GGUF has them
    NamePair{"mlp.down_proj", "ffn_down"},
    NamePair{"block_sparse_moe.gate", "ffn_gate_inp"},
    NamePair{"mlp.gate", "ffn_gate_inp"},
    NamePair{"mlp.router", "ffn_gate_inp"},
    NamePair{"mlp.shared_expert_gate", "ffn_gate_inp_shexp"},
    NamePair{"mlp.shared_expert.gate_proj", "ffn_gate_shexp"},
    NamePair{"mlp.shared_expert.up_proj", "ffn_up_shexp"},
    NamePair{"mlp.shared_expert.down_proj", "ffn_down_shexp"},
};

constexpr std::string_view kPostAttentionNorm = "post_attention_layernorm";  // its GGUF name depends on the class

constexpr std::array kExpertNames = {NamePair{"w1", "ffn_gate_exps"},    NamePair{"w3", "ffn_up_exps"},
                                     NamePair{"w2", "ffn_down_exps"},    NamePair{"gate_proj", "ffn_gate_exps"},
                                     NamePair{"up_proj", "ffn_up_exps"}, NamePair{"down_proj", "ffn_down_exps"}};

constexpr std::array<std::string_view, 4> kPrefixes = {"language_model.model.", "model.language_model.", "model.",
                                                       "language_model."};
constexpr std::array<std::string_view, 3> kIgnoredPrefixes = {"vision_tower.", "multi_modal_projector", "rotary_emb"};
constexpr std::array<std::string_view, 9> kIgnoredParts = {
    "input_scale", "input_scale_ub", "input_zero_point", "input_global_scale", "output_scale",
    "k_scale",     "v_scale",        "q_scale",          "masked_bias"};
constexpr std::string_view kLayers = "layers.";
constexpr std::array<std::string_view, 2> kExperts = {"mlp.experts", "block_sparse_moe.experts"};

std::optional<std::string_view> look_up(std::span<const NamePair> table, std::string_view name) {
  const auto at = std::find_if(table.begin(), table.end(), [&](const NamePair& pair) { return pair.ours == name; });
  if (at == table.end()) return std::nullopt;
  return at->ggufs;
}

// A number in front of a point or the end, which it takes off `text`; written without leading zeros.
std::optional<uint32_t> take_number(std::string_view* text) {
  uint32_t number = 0;
  const auto [end, failure] = std::from_chars(text->data(), text->data() + text->size(), number);
  const auto length = static_cast<size_t>(end - text->data());
  if (failure != std::errc() || fmt::format("{}", number).size() != length) return std::nullopt;
  text->remove_prefix(length);
  if (text->empty()) return number;
  if (text->front() != '.') return std::nullopt;
  text->remove_prefix(1);
  return number;
}

struct LayerModule {
  uint32_t layer = 0;
  std::string_view module;
};

// Nullopt outside of the layers.
Result<std::optional<LayerModule>> take_layer(std::string_view module, const HyperParameters& parameters) {
  if (!module.starts_with(kLayers)) return std::optional<LayerModule>();
  module.remove_prefix(kLayers.size());
  const auto layer = take_number(&module);
  if (!layer) return std::optional<LayerModule>();
  if (*layer >= parameters.config.layers) {
    return invalid_argument("is of layer {}, but 'num_hidden_layers' is {}; get the model again", *layer,
                            parameters.config.layers);
  }
  return std::optional<LayerModule>({*layer, module});
}

Result<std::optional<WeightName>> name_expert(const LayerModule& at, const HyperParameters& parameters) {
  std::string_view rest = at.module;
  for (const std::string_view prefix : kExperts) {
    if (!rest.starts_with(prefix) || rest.size() <= prefix.size() || rest[prefix.size()] != '.') continue;
    rest.remove_prefix(prefix.size() + 1);
    const auto expert = take_number(&rest);
    const auto name = look_up(kExpertNames, rest);
    if (!expert || !name) return std::optional<WeightName>();
    if (*expert >= parameters.experts.count) {
      return invalid_argument("is of expert {}, but there are {}; get the model again", *expert,
                              parameters.experts.count);
    }
    return std::optional<WeightName>({fmt::format("blk.{}.{}", at.layer, *name), static_cast<int32_t>(*expert)});
  }
  return std::optional<WeightName>();
}

}  // namespace

ModulePath split_tensor_name(std::string_view tensor) {
  for (const std::string_view prefix : kPrefixes) {
    if (!tensor.starts_with(prefix)) continue;
    tensor.remove_prefix(prefix.size());
    break;
  }
  const size_t point = tensor.rfind('.');
  if (point == std::string_view::npos) return {tensor, {}};
  return {tensor.substr(0, point), tensor.substr(point + 1)};
}

bool is_ignored(const ModulePath& path) {
  return std::any_of(kIgnoredPrefixes.begin(), kIgnoredPrefixes.end(),
                     [&](std::string_view prefix) { return path.module.starts_with(prefix); }) ||
         path.module.ends_with(".rotary_emb") ||
         std::find(kIgnoredParts.begin(), kIgnoredParts.end(), path.part) != kIgnoredParts.end();
}

Result<std::optional<WeightName>> name_module(std::string_view module, const HyperParameters& parameters,
                                              const HuggingFaceTraits& traits) {
  if (const auto top = look_up(kTopNames, module); top) {
    return std::optional<WeightName>({std::string(*top), -1});
  }
  ASSIGN_OR_RETURN(const auto at, take_layer(module, parameters));
  if (!at) return std::optional<WeightName>();
  auto name = look_up(kLayerNames, at->module);
  if (at->module == kPostAttentionNorm) name = traits.post_attention_norm;
  if (name) return std::optional<WeightName>({fmt::format("blk.{}.{}", at->layer, *name), -1});
  return name_expert(*at, parameters);
}

std::string tensor_name(std::string_view ggufs) {
  constexpr std::string_view kBlock = "blk.", kWeight = ".weight";
  const auto ours = [](std::span<const NamePair> table, std::string_view name) -> std::string_view {
    const auto at = std::find_if(table.begin(), table.end(), [&](const NamePair& pair) { return pair.ggufs == name; });
    return at == table.end() ? std::string_view() : at->ours;
  };
  std::string_view rest = ggufs;
  if (rest.ends_with(kWeight)) rest.remove_suffix(kWeight.size());
  if (const auto top = ours(kTopNames, rest); !top.empty()) {
    return fmt::format("{}{}{}", top == "lm_head" ? "" : "model.", top, kWeight);
  }
  if (!rest.starts_with(kBlock)) return std::string(ggufs);
  rest.remove_prefix(kBlock.size());
  const auto layer = take_number(&rest);
  const std::string_view module = layer ? ours(kLayerNames, rest) : std::string_view();
  return module.empty() ? std::string(ggufs) : fmt::format("model.layers.{}.{}{}", *layer, module, kWeight);
}

Result<std::optional<std::string>> fused_experts_prefix(std::string_view module, const HyperParameters& parameters) {
  ASSIGN_OR_RETURN(const auto at, take_layer(module, parameters));
  if (!at || std::find(kExperts.begin(), kExperts.end(), at->module) == kExperts.end()) {
    return std::optional<std::string>();
  }
  return std::optional<std::string>(fmt::format("blk.{}.", at->layer));
}

}  // namespace motley::hf
