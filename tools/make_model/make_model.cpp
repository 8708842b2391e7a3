#include "make_model/make_model.hpp"

#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "make_model/gguf_writer.hpp"
#include "make_model/random_weights.hpp"
#include "make_model/vocabulary.hpp"
#include "model/dtype.hpp"
#include "model/gguf.hpp"
#include "model/mapped_file.hpp"
#include "motley/types.h"

namespace motley::make_model {
namespace {

constexpr uint32_t kVocabularyDefault = 320;
constexpr uint32_t kCountMax = 1u << 24;
constexpr std::string_view kMix = "mix";

// What differs between the architectures that can be made.
struct Form {
  std::string_view architecture;
  bool head_norms;
  float rope_base;
};
constexpr std::array kForms = {Form{"llama", false, 10000.0f}, Form{"qwen3", true, 1000000.0f}};

// The order in which "mix" deals out types; one that does not fit a matrix's rows is passed over.
constexpr std::array kMixOrder = {
    int32_t{MOTLEY_Q6_K},   int32_t{MOTLEY_Q4_K}, int32_t{MOTLEY_Q8_0},   int32_t{MOTLEY_Q4_1},
    int32_t{MOTLEY_F16},    int32_t{MOTLEY_Q4_0}, int32_t{MOTLEY_BF16},   int32_t{MOTLEY_F32},
    int32_t{MOTLEY_Q5_K},   int32_t{MOTLEY_Q5_0}, int32_t{MOTLEY_MXFP4},  int32_t{MOTLEY_Q3_K},
    int32_t{MOTLEY_IQ4_XS}, int32_t{MOTLEY_Q5_1}, int32_t{MOTLEY_IQ4_NL}, int32_t{MOTLEY_Q2_K}};

const Form* find_form(std::string_view architecture) {
  for (const Form& form : kForms) {
    if (form.architecture == architecture) return &form;
  }
  return nullptr;
}

Status check_count(std::string_view option, uint32_t value) {
  if (value >= 1 && value <= kCountMax) return ok_status();
  return invalid_argument("{}: {} is not from 1 to {}", option, value, kCountMax);
}

// Every matrix's rows (hidden, heads * head_dim and ffn long) must be whole blocks.
Status check_blocks(const ModelSpec& spec) {
  if (spec.type == kMix) return ok_status();
  const DtypeInfo* info = find_dtype(spec.type);
  if (info == nullptr || !info->is_weight) {
    return invalid_argument("--type: {} is not one of {}, mix", spec.type, weight_dtype_names());
  }
  const std::pair<std::string_view, uint64_t> rows[] = {
      {"--hidden", spec.hidden},
      {"--heads times --head-dim", uint64_t{spec.heads} * spec.head_dim},
      {"--ffn", spec.ffn}};
  for (const auto& [option, length] : rows) {
    if (length % info->block_elements == 0) continue;
    return invalid_argument("{}: {} is not a multiple of {}, the block of {}; choose one that is, or another --type",
                            option, length, info->block_elements, info->name);
  }
  return ok_status();
}

Status check_spec(const ModelSpec& spec) {
  if (find_form(spec.architecture) == nullptr) {
    return invalid_argument("--arch: {} cannot be made; llama and qwen3 can", spec.architecture);
  }
  const std::pair<std::string_view, uint32_t> counts[] = {{"--layers", spec.layers},     {"--hidden", spec.hidden},
                                                          {"--heads", spec.heads},       {"--kv-heads", spec.kv_heads},
                                                          {"--head-dim", spec.head_dim}, {"--ffn", spec.ffn},
                                                          {"--context", spec.context}};
  for (const auto& [option, value] : counts) RETURN_IF_ERROR(check_count(option, value));
  if (spec.heads % spec.kv_heads != 0) {
    return invalid_argument("--kv-heads: {} does not divide {} heads evenly", spec.kv_heads, spec.heads);
  }
  if (spec.head_dim % 2 != 0) return invalid_argument("--head-dim: {} is odd; rope turns pairs", spec.head_dim);
  if (spec.vocab && *spec.vocab < kVocabularyMin && spec.vocab_from.empty()) {
    return invalid_argument("--vocab: {} is less than the {} tokens every vocabulary needs", *spec.vocab,
                            kVocabularyMin);
  }
  if (spec.vocab) RETURN_IF_ERROR(check_count("--vocab", *spec.vocab));
  return check_blocks(spec);
}

void add_hyper_parameters(const ModelSpec& spec, uint32_t vocabulary, GgufWriter* writer) {
  const Form& form = *find_form(spec.architecture);
  const auto key = [&](std::string_view suffix) { return fmt::format("{}.{}", spec.architecture, suffix); };
  writer->add_string("general.architecture", spec.architecture);
  writer->add_string("general.type", "model");
  writer->add_string("general.name", fmt::format("random {} {} seed {}", spec.architecture, spec.type, spec.seed));
  writer->add_u32(key("block_count"), spec.layers);
  writer->add_u32(key("context_length"), spec.context);
  writer->add_u32(key("embedding_length"), spec.hidden);
  writer->add_u32(key("feed_forward_length"), spec.ffn);
  writer->add_u32(key("attention.head_count"), spec.heads);
  writer->add_u32(key("attention.head_count_kv"), spec.kv_heads);
  writer->add_u32(key("attention.key_length"), spec.head_dim);
  writer->add_u32(key("attention.value_length"), spec.head_dim);
  writer->add_f32(key("attention.layer_norm_rms_epsilon"), 1e-5f);
  writer->add_u32(key("rope.dimension_count"), spec.head_dim);
  writer->add_f32(key("rope.freq_base"), form.rope_base);
  writer->add_u32(key("vocab_size"), vocabulary);
  writer->add_u32("general.quantization_version", 2);
}

// Copies the tokenizer.* keys of another file and says how many tokens it has.
Result<uint32_t> copy_vocabulary(const ModelSpec& spec, GgufWriter* writer) {
  const std::string name = spec.vocab_from.string();
  auto mapped = MappedFile::open(spec.vocab_from);
  if (!mapped.ok()) return mapped.error().annotate(name);
  auto file = GgufFile::parse(mapped->bytes());
  if (!file.ok()) return file.error().annotate(name);
  const GgufEntry* tokens = file->find("tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->count < 1 || tokens->count > kCountMax) {
    return invalid_argument("{}: has no key 'tokenizer.ggml.tokens' to copy; name another file", name);
  }
  if (spec.vocab && *spec.vocab != tokens->count) {
    return invalid_argument("--vocab: {} is not the {} tokens of {}; leave it out", *spec.vocab, tokens->count, name);
  }
  for (const GgufEntry& entry : file->entries()) {
    if (entry.key.starts_with("tokenizer.")) writer->add_copy(entry);
  }
  return static_cast<uint32_t>(tokens->count);
}

// The tensors, in the order of the layers.
class Tensors {
 public:
  Tensors(const ModelSpec& spec, GgufWriter* writer) : spec_(spec), writer_(writer) {}

  void add_all(uint32_t vocabulary) {
    const Form& form = *find_form(spec_.architecture);
    const uint32_t query = spec_.heads * spec_.head_dim;
    const uint32_t key_value = spec_.kv_heads * spec_.head_dim;
    matrix("token_embd", vocabulary, spec_.hidden);
    for (uint32_t i = 0; i < spec_.layers; ++i) {
      const std::string layer = fmt::format("blk.{}.", i);
      norm(layer + "attn_norm", spec_.hidden);
      matrix(layer + "attn_q", query, spec_.hidden);
      matrix(layer + "attn_k", key_value, spec_.hidden);
      matrix(layer + "attn_v", key_value, spec_.hidden);
      if (form.head_norms) {
        norm(layer + "attn_q_norm", spec_.head_dim);
        norm(layer + "attn_k_norm", spec_.head_dim);
      }
      matrix(layer + "attn_output", spec_.hidden, query);
      norm(layer + "ffn_norm", spec_.hidden);
      matrix(layer + "ffn_gate", spec_.ffn, spec_.hidden);
      matrix(layer + "ffn_up", spec_.ffn, spec_.hidden);
      matrix(layer + "ffn_down", spec_.hidden, spec_.ffn);
    }
    norm("output_norm", spec_.hidden);
    if (!spec_.tied) matrix("output", vocabulary, spec_.hidden);
    if (spec_.rope_freqs) vector("rope_freqs", spec_.head_dim / 2, 4.0f, 0.5f);
  }

 private:
  void matrix(const std::string& base, uint32_t rows, uint32_t cols) {
    const std::string name = base + ".weight";
    const int32_t dtype = spec_.type == kMix ? next_of_mix(cols) : find_dtype(spec_.type)->id;
    const float deviation = 1.0f / std::sqrt(static_cast<float>(cols));
    writer_->add_tensor(name, dtype, {cols, rows},
                        [seed = spec_.seed, name, dtype, deviation](std::span<std::byte> data) {
                          fill_matrix(dtype, seed, name, deviation, data);
                        });
  }

  void norm(const std::string& base, uint32_t size) { vector(base, size, 1.0f, 0.1f); }

  void vector(const std::string& base, uint32_t size, float mean, float deviation) {
    const std::string name = base + ".weight";
    writer_->add_tensor(name, MOTLEY_F32, {size},
                        [seed = spec_.seed, name, mean, deviation](std::span<std::byte> data) {
                          fill_vector(seed, name, mean, deviation, data);
                        });
  }

  // The list ends with types whose block is one element, so the search ends.
  int32_t next_of_mix(uint32_t cols) {
    while (cols % find_dtype(kMixOrder[dealt_ % kMixOrder.size()])->block_elements != 0) ++dealt_;
    return kMixOrder[dealt_++ % kMixOrder.size()];
  }

  const ModelSpec& spec_;
  GgufWriter* writer_;
  size_t dealt_ = 0;
};

}  // namespace

Status make_model(const ModelSpec& asked, const std::filesystem::path& out) {
  ModelSpec spec = asked;
  if (spec.head_dim == 0) {
    if (spec.heads == 0 || spec.hidden % spec.heads != 0) {
      return invalid_argument("--heads: {} does not divide --hidden {} evenly; give --head-dim", spec.heads,
                              spec.hidden);
    }
    spec.head_dim = spec.hidden / spec.heads;
  }
  RETURN_IF_ERROR(check_spec(spec));
  uint32_t vocabulary = spec.vocab.value_or(kVocabularyDefault);
  GgufWriter writer;
  if (spec.vocab_from.empty()) {
    add_hyper_parameters(spec, vocabulary, &writer);
    add_built_in_vocabulary(&writer, vocabulary);
  } else {
    ASSIGN_OR_RETURN(vocabulary, copy_vocabulary(spec, &writer));
    add_hyper_parameters(spec, vocabulary, &writer);
  }
  Tensors(spec, &writer).add_all(vocabulary);
  return writer.write(out);
}

}  // namespace motley::make_model
