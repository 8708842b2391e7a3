#include "make_model/make_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "make_model/form.hpp"
#include "make_model/gguf_writer.hpp"
#include "make_model/tensors.hpp"
#include "make_model/vocabulary.hpp"
#include "model/dtype.hpp"
#include "model/gguf.hpp"
#include "model/mapped_file.hpp"

namespace motley::make_model {
namespace {

constexpr uint32_t kVocabularyDefault = 320;
constexpr uint32_t kExpertsDefault = 4, kExpertsUsedDefault = 2;
constexpr uint32_t kCountMax = 1u << 24;
constexpr std::array<std::string_view, 4> kRopeScalings = {"", "linear", "yarn", "longrope"};

Status check_count(std::string_view option, uint32_t value) {
  if (value >= 1 && value <= kCountMax) return ok_status();
  return invalid_argument("{}: {} is not from 1 to {}", option, value, kCountMax);
}

// Replaces each zero that stands for a default.
Status complete(const Form& form, ModelSpec* spec) {
  if (spec->head_dim == 0) {
    if (spec->heads == 0 || spec->hidden % spec->heads != 0) {
      return invalid_argument("--heads: {} does not divide --hidden {} evenly; give --head-dim", spec->heads,
                              spec->hidden);
    }
    spec->head_dim = spec->hidden / spec->heads;
  }
  if (spec->rope_dims == 0) spec->rope_dims = spec->head_dim;
  if (spec->window == 0) spec->window = form.window;
  spec->tied = spec->tied || form.tied;
  if (form.experts && spec->experts == 0) spec->experts = kExpertsDefault;
  if (spec->experts == 0) return ok_status();
  if (spec->experts_used == 0) spec->experts_used = std::min(kExpertsUsedDefault, spec->experts);
  if (spec->expert_ffn == 0) spec->expert_ffn = spec->ffn / spec->experts_used;
  return ok_status();
}

// Every matrix's rows (hidden, heads * head_dim and ffn long) must be whole blocks.
Status check_blocks(const ModelSpec& spec) {
  if (spec.type == kMix) return ok_status();
  const DtypeInfo* info = find_dtype(spec.type);
  if (info == nullptr || !info->is_weight || !info->in_gguf) {
    return invalid_argument("--type: {} is not one of {}, mix", spec.type, weight_dtype_names());
  }
  const std::pair<std::string_view, uint64_t> rows[] = {
      {"--hidden", spec.hidden},
      {"--heads times --head-dim", uint64_t{spec.heads} * spec.head_dim},
      {"--ffn", spec.ffn},
      {"--expert-ffn", spec.experts > 0 ? spec.expert_ffn : 0}};
  for (const auto& [option, length] : rows) {
    if (length % info->block_elements == 0) continue;
    return invalid_argument("{}: {} is not a multiple of {}, the block of {}; choose one that is, or another --type",
                            option, length, info->block_elements, info->name);
  }
  return ok_status();
}

Status check_experts(const Form& form, const ModelSpec& spec) {
  if (spec.experts == 0) return ok_status();
  if (!form.experts && !form.may_have_experts) {
    return invalid_argument("--experts: {} has none; leave it out", form.architecture);
  }
  RETURN_IF_ERROR(check_count("--experts", spec.experts));
  RETURN_IF_ERROR(check_count("--expert-ffn", spec.expert_ffn));
  if (spec.experts_used <= spec.experts) return ok_status();
  return invalid_argument("--experts-used: {} are more than the {} there are", spec.experts_used, spec.experts);
}

Status check_spec(const Form& form, const ModelSpec& spec) {
  const std::pair<std::string_view, uint32_t> counts[] = {
      {"--layers", spec.layers},     {"--hidden", spec.hidden},          {"--heads", spec.heads},
      {"--kv-heads", spec.kv_heads}, {"--head-dim", spec.head_dim},      {"--ffn", spec.ffn},
      {"--context", spec.context},   {"--rope-factor", spec.rope_factor}};
  for (const auto& [option, value] : counts) RETURN_IF_ERROR(check_count(option, value));
  if (spec.heads % spec.kv_heads != 0) {
    return invalid_argument("--kv-heads: {} does not divide {} heads evenly", spec.kv_heads, spec.heads);
  }
  if (spec.head_dim % 2 != 0) return invalid_argument("--head-dim: {} is odd; rope turns pairs", spec.head_dim);
  if (spec.rope_dims % 2 != 0 || spec.rope_dims > spec.head_dim) {
    return invalid_argument("--rope-dims: {} is odd or above the head dimension {}", spec.rope_dims, spec.head_dim);
  }
  if (std::find(kRopeScalings.begin(), kRopeScalings.end(), spec.rope_scaling) == kRopeScalings.end()) {
    return invalid_argument("--rope-scaling: {} is not linear, yarn or longrope", spec.rope_scaling);
  }
  if (spec.rope_factor > spec.context) {
    return invalid_argument("--rope-factor: {} is above the context of {}", spec.rope_factor, spec.context);
  }
  if (spec.vocab && *spec.vocab < kVocabularyMin && spec.vocab_from.empty() && spec.vocabulary) {
    return invalid_argument("--vocab: {} is less than the {} tokens every vocabulary needs", *spec.vocab,
                            kVocabularyMin);
  }
  if (spec.vocab) RETURN_IF_ERROR(check_count("--vocab", *spec.vocab));
  RETURN_IF_ERROR(check_experts(form, spec));
  return check_blocks(spec);
}

// The keys of one architecture.
class Keys {
 public:
  Keys(const ModelSpec& spec, GgufWriter* writer) : spec_(spec), writer_(writer) {}

  void count(std::string_view suffix, uint32_t value) { writer_->add_u32(key(suffix), value); }
  void number(std::string_view suffix, float value) { writer_->add_f32(key(suffix), value); }
  void text(std::string_view suffix, std::string_view value) { writer_->add_string(key(suffix), value); }

 private:
  std::string key(std::string_view suffix) const { return fmt::format("{}.{}", spec_.architecture, suffix); }

  const ModelSpec& spec_;
  GgufWriter* writer_;
};

void add_rope_scaling(const ModelSpec& spec, Keys* keys) {
  if (spec.rope_scaling.empty()) return;
  const uint32_t original = spec.context / spec.rope_factor;
  const auto factor = static_cast<float>(spec.rope_factor);
  keys->count("rope.scaling.original_context_length", original);
  if (spec.rope_scaling == "longrope") {
    // arXiv:2402.13753: the magnitude grows with the logarithm of the factor, in units of the original context.
    keys->number("rope.scaling.attn_factor",
                 std::sqrt(1 + std::log(factor) / std::log(static_cast<float>(std::max(2u, original)))));
    return;
  }
  keys->text("rope.scaling.type", spec.rope_scaling);
  keys->number("rope.scaling.factor", factor);
}

void add_hyper_parameters(const ModelSpec& spec, const Form& form, uint32_t vocabulary, GgufWriter* writer) {
  writer->add_string("general.architecture", spec.architecture);
  writer->add_string("general.type", "model");
  writer->add_string("general.name", fmt::format("random {} {} seed {}", spec.architecture, spec.type, spec.seed));
  Keys keys(spec, writer);
  keys.count("block_count", spec.layers);
  keys.count("context_length", spec.context);
  keys.count("embedding_length", spec.hidden);
  keys.count("feed_forward_length", spec.ffn);
  keys.count("attention.head_count", spec.heads);
  keys.count("attention.head_count_kv", spec.kv_heads);
  keys.count("attention.key_length", spec.head_dim);
  keys.count("attention.value_length", spec.head_dim);
  keys.number("attention.layer_norm_rms_epsilon", 1e-5f);
  keys.count("rope.dimension_count", spec.rope_dims);
  keys.number("rope.freq_base", form.rope_base);
  keys.count("vocab_size", vocabulary);
  if (spec.window > 0) keys.count("attention.sliding_window", spec.window);
  if (spec.experts > 0) {
    keys.count("expert_count", spec.experts);
    keys.count("expert_used_count", spec.experts_used);
    keys.count("expert_feed_forward_length", spec.expert_ffn);
    if (form.shared_expert) keys.count("expert_shared_feed_forward_length", spec.ffn);
  }
  add_rope_scaling(spec, &keys);
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

}  // namespace

Status apply_shape(const std::string& name, ModelSpec* spec) {
  const Shape* shape = find_shape(name);
  if (shape == nullptr) return invalid_argument("--shape: {} is not one of {}", name, shape_names());
  spec->layers = shape->layers;
  spec->hidden = shape->hidden;
  spec->heads = shape->heads;
  spec->kv_heads = shape->kv_heads;
  spec->head_dim = shape->head_dim;
  spec->ffn = shape->ffn;
  spec->context = shape->context;
  spec->vocab = shape->vocab;
  const Form* form = find_form(spec->architecture);
  if (form == nullptr || !form->experts) return ok_status();
  spec->experts = shape->experts;
  spec->experts_used = shape->experts_used;
  return ok_status();
}

Status make_model(ModelSpec spec, const std::filesystem::path& out) {
  const Form* form = find_form(spec.architecture);
  if (form == nullptr) {
    return invalid_argument("--arch: {} cannot be made; {} can", spec.architecture, form_names());
  }
  RETURN_IF_ERROR(complete(*form, &spec));
  RETURN_IF_ERROR(check_spec(*form, spec));
  uint32_t vocabulary = spec.vocab.value_or(kVocabularyDefault);
  GgufWriter writer;
  if (spec.vocab_from.empty()) {
    add_hyper_parameters(spec, *form, vocabulary, &writer);
    if (spec.vocabulary) add_built_in_vocabulary(&writer, vocabulary);
  } else {
    ASSIGN_OR_RETURN(vocabulary, copy_vocabulary(spec, &writer));
    add_hyper_parameters(spec, *form, vocabulary, &writer);
  }
  add_tensors(spec, *form, vocabulary, &writer);
  return writer.write(out);
}

}  // namespace motley::make_model
