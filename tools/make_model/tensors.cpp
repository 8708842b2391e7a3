#include "make_model/tensors.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "make_model/random_weights.hpp"
#include "model/dtype.hpp"
#include "motley/types.h"

namespace motley::make_model {
namespace {

// The order in which "mix" deals out types; one that does not fit a matrix's rows is passed over.
constexpr std::array<int32_t, 16> kMixOrder = {
    MOTLEY_Q6_K, MOTLEY_Q4_K, MOTLEY_Q8_0,  MOTLEY_Q4_1, MOTLEY_F16,    MOTLEY_Q4_0, MOTLEY_BF16,   MOTLEY_F32,
    MOTLEY_Q5_K, MOTLEY_Q5_0, MOTLEY_MXFP4, MOTLEY_Q3_K, MOTLEY_IQ4_XS, MOTLEY_Q5_1, MOTLEY_IQ4_NL, MOTLEY_Q2_K};

// Large matrices repeat one drawn piece, so that they are written as fast as memory and disk allow. It has a prime
// number of blocks: rows of any other number of blocks begin at different places of it and differ.
constexpr size_t kDrawnBlocks = 1'048'573;

void fill_large(int32_t dtype, uint64_t seed, const std::string& name, float deviation, std::span<std::byte> data) {
  const size_t drawn = std::min(data.size(), kDrawnBlocks * find_dtype(dtype)->block_bytes);
  fill_matrix(dtype, seed, name, deviation, data.first(drawn));
  for (size_t at = drawn; at < data.size(); at += drawn) {
    std::memcpy(data.data() + at, data.data(), std::min(drawn, data.size() - at));
  }
}

class Tensors {
 public:
  Tensors(const ModelSpec& spec, const Form& form, GgufWriter* writer) : spec_(spec), form_(form), writer_(writer) {}

  void add_all(uint32_t vocabulary) {
    matrix("token_embd", vocabulary, spec_.hidden);
    for (uint32_t i = 0; i < spec_.layers; ++i) {
      layer_ = fmt::format("blk.{}.", i);
      add_attention();
      norm(layer_ + std::string(form_.ffn_norm), spec_.hidden);
      if (spec_.experts > 0) {
        add_experts();
      } else {
        add_ffn();
      }
      if (form_.post_norms) norm(layer_ + "post_ffw_norm", spec_.hidden);
    }
    norm("output_norm", spec_.hidden);
    if (!spec_.tied) matrix("output", vocabulary, spec_.hidden);
    if (spec_.rope_freqs) vector("rope_freqs.weight", {spec_.rope_dims / 2}, 4.0f, 0.5f);
    if (spec_.rope_scaling == "longrope") {
      vector("rope_factors_long.weight", {spec_.rope_dims / 2}, 4.0f, 0.5f);
      vector("rope_factors_short.weight", {spec_.rope_dims / 2}, 1.0f, 0.1f);
    }
  }

 private:
  void add_attention() {
    const uint32_t query = spec_.heads * spec_.head_dim;
    const uint32_t key_value = spec_.kv_heads * spec_.head_dim;
    norm(layer_ + "attn_norm", spec_.hidden);
    if (form_.fused) {
      matrix(layer_ + "attn_qkv", query + 2 * key_value, spec_.hidden);
    } else {
      with_bias(layer_ + "attn_q", query, spec_.hidden, form_.qkv_biases);
      with_bias(layer_ + "attn_k", key_value, spec_.hidden, form_.qkv_biases);
      with_bias(layer_ + "attn_v", key_value, spec_.hidden, form_.qkv_biases);
    }
    if (form_.head_norms) {
      norm(layer_ + "attn_q_norm", spec_.head_dim);
      norm(layer_ + "attn_k_norm", spec_.head_dim);
    }
    if (form_.sinks) vector(layer_ + "attn_sinks.weight", {spec_.heads}, 0.0f, 1.0f);
    with_bias(layer_ + "attn_output", spec_.hidden, query, form_.all_biases);
    if (form_.post_norms) norm(layer_ + "post_attention_norm", spec_.hidden);
  }

  void add_ffn() {
    if (!form_.fused) matrix(layer_ + "ffn_gate", spec_.ffn, spec_.hidden);
    matrix(layer_ + "ffn_up", form_.fused ? 2 * spec_.ffn : spec_.ffn, spec_.hidden);
    matrix(layer_ + "ffn_down", spec_.hidden, spec_.ffn);
  }

  void add_experts() {
    const float router = 1 / std::sqrt(static_cast<float>(spec_.hidden));
    vector(layer_ + "ffn_gate_inp.weight", {spec_.hidden, spec_.experts}, 0.0f, router);
    if (form_.all_biases) vector(layer_ + "ffn_gate_inp.bias", {spec_.experts}, 0.0f, 0.1f);
    expert_matrix("ffn_gate_exps", spec_.expert_ffn, spec_.hidden);
    expert_matrix("ffn_up_exps", spec_.expert_ffn, spec_.hidden);
    expert_matrix("ffn_down_exps", spec_.hidden, spec_.expert_ffn);
    if (!form_.shared_expert) return;
    vector(layer_ + "ffn_gate_inp_shexp.weight", {spec_.hidden}, 0.0f, router);
    matrix(layer_ + "ffn_gate_shexp", spec_.ffn, spec_.hidden);
    matrix(layer_ + "ffn_up_shexp", spec_.ffn, spec_.hidden);
    matrix(layer_ + "ffn_down_shexp", spec_.hidden, spec_.ffn);
  }

  void expert_matrix(const std::string& base, uint32_t rows, uint32_t cols) {
    weights(layer_ + base, {cols, rows, spec_.experts});
    if (form_.all_biases) vector(layer_ + base + ".bias", {rows, spec_.experts}, 0.0f, 0.1f);
  }

  void matrix(const std::string& base, uint32_t rows, uint32_t cols) { weights(base, {cols, rows}); }

  void with_bias(const std::string& base, uint32_t rows, uint32_t cols, bool bias) {
    matrix(base, rows, cols);
    if (bias) vector(base + ".bias", {rows}, 0.0f, 0.1f);
  }

  void weights(const std::string& base, std::vector<int64_t> dims) {
    const std::string name = base + ".weight";
    const int32_t dtype = spec_.type == kMix ? next_of_mix(dims[0]) : find_dtype(spec_.type)->id;
    const float deviation = 1.0f / std::sqrt(static_cast<float>(dims[0]));
    writer_->add_tensor(name, dtype, std::move(dims),
                        [seed = spec_.seed, name, dtype, deviation](std::span<std::byte> data) {
                          fill_large(dtype, seed, name, deviation, data);
                        });
  }

  void norm(const std::string& base, uint32_t size) { vector(base + ".weight", {size}, 1.0f, 0.1f); }

  void vector(const std::string& name, std::vector<int64_t> dims, float mean, float deviation) {
    writer_->add_tensor(name, MOTLEY_F32, std::move(dims),
                        [seed = spec_.seed, name, mean, deviation](std::span<std::byte> data) {
                          fill_vector(seed, name, mean, deviation, data);
                        });
  }

  // The list holds types whose block is one element, so the search ends.
  int32_t next_of_mix(int64_t cols) {
    while (cols % find_dtype(kMixOrder[dealt_ % kMixOrder.size()])->block_elements != 0) ++dealt_;
    return kMixOrder[dealt_++ % kMixOrder.size()];
  }

  const ModelSpec& spec_;
  const Form& form_;
  GgufWriter* writer_;
  std::string layer_;  // the prefix of the current one's names
  size_t dealt_ = 0;
};

}  // namespace

void add_tensors(const ModelSpec& spec, const Form& form, uint32_t vocabulary, GgufWriter* writer) {
  Tensors(spec, form, writer).add_all(vocabulary);
}

}  // namespace motley::make_model
