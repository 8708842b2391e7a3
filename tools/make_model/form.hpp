// What differs between the architectures that can be made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace motley::make_model {

struct Form {
  std::string_view architecture;  // general.architecture
  float rope_base = 10000;
  bool head_norms = false;  // norms of queries and keys
  bool qkv_biases = false;  // biases of queries, keys and values
  bool all_biases = false;  // and of every other matrix of a layer, but for the embedding
  bool fused = false;       // attn_qkv; ffn_up holds the gate too
  bool post_norms = false;  // norms after each half
  bool experts = false;     // always
  bool may_have_experts = false;
  bool shared_expert = false;
  bool sinks = false;
  bool tied = false;    // always
  uint32_t window = 0;  // of the layers that have one, if the spec names none
  std::string_view ffn_norm = "ffn_norm";
};

// Null for an architecture that cannot be made.
const Form* find_form(std::string_view architecture);
// "llama, ...": those that can.
std::string form_names();

// Sizes that real models have; experts count where the architecture has them.
struct Shape {
  std::string_view name;
  uint32_t layers, hidden, heads, kv_heads, head_dim, ffn, context, vocab;
  uint32_t experts, experts_used;
};

const Shape* find_shape(std::string_view name);
std::string shape_names();

}  // namespace motley::make_model
