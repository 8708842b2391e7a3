// make_model: writes a GGUF model with random weights. `make_model --help` lists the options.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>
#include <string>

#include "make_model/form.hpp"
#include "make_model/make_model.hpp"
#include "model/dtype.hpp"

namespace {

using motley::Status;
using namespace motley::make_model;  // NOLINT(google-build-using-namespace): this file is their program

// What a shape gives, where the command line says otherwise.
struct Sizes {
  std::optional<uint32_t> layers, hidden, heads, kv_heads, head_dim, ffn, context, vocab, experts, experts_used;

  void override(ModelSpec* spec) const {
    spec->layers = layers.value_or(spec->layers);
    spec->hidden = hidden.value_or(spec->hidden);
    spec->heads = heads.value_or(spec->heads);
    spec->kv_heads = kv_heads.value_or(spec->kv_heads);
    spec->head_dim = head_dim.value_or(spec->head_dim);
    spec->ffn = ffn.value_or(spec->ffn);
    spec->context = context.value_or(spec->context);
    if (vocab) spec->vocab = vocab;
    spec->experts = experts.value_or(spec->experts);
    spec->experts_used = experts_used.value_or(spec->experts_used);
  }
};

}  // namespace

int main(int argc, char** argv) {
  ModelSpec spec;
  Sizes sizes;
  std::string shape;
  std::filesystem::path out;
  CLI::App app("Writes a GGUF model with random weights, reproducible from the seed.", "make_model");
  app.add_option("--arch", spec.architecture, form_names())->capture_default_str();
  app.add_option("--shape", shape, "sizes of real models, which the options below override: " + shape_names());
  app.add_option("--layers", sizes.layers, "default 2");
  app.add_option("--hidden", sizes.hidden, "width of the residual stream; default 256");
  app.add_option("--heads", sizes.heads, "default 4");
  app.add_option("--kv-heads", sizes.kv_heads, "default 2");
  app.add_option("--head-dim", sizes.head_dim, "default: hidden / heads");
  app.add_option("--ffn", sizes.ffn, "default 512");
  app.add_option("--vocab", sizes.vocab, "tokens; default 320");
  app.add_option("--context", sizes.context, "default 512");
  app.add_option("--experts", sizes.experts, "default: 4 where the architecture must have them");
  app.add_option("--experts-used", sizes.experts_used, "default 2");
  app.add_option("--expert-ffn", spec.expert_ffn, "width of one; default: ffn / experts used");
  app.add_option("--window", spec.window, "positions that layers with a window see; default: the architecture's");
  app.add_option("--rope-dims", spec.rope_dims, "rotated dimensions of a head; default: all");
  app.add_option("--rope-scaling", spec.rope_scaling, "linear, yarn or longrope");
  app.add_option("--rope-factor", spec.rope_factor, "context / original context")->capture_default_str();
  app.add_option("--type", spec.type, std::string(motley::weight_dtype_names()) + " or mix")->capture_default_str();
  app.add_option("--seed", spec.seed)->capture_default_str();
  app.add_flag("--tied", spec.tied, "the output matrix is the embedding's");
  app.add_flag("--rope-freqs", spec.rope_freqs, "write rope frequency divisors");
  app.add_flag("!--no-vocabulary", spec.vocabulary, "write no tokenizer");
  app.add_option("--vocab-from", spec.vocab_from, "copy the tokenizer of this GGUF file");
  app.add_option("OUT", out, "the file to write")->required();
  CLI11_PARSE(app, argc, argv);
  Status status = shape.empty() ? motley::ok_status() : apply_shape(shape, &spec);
  sizes.override(&spec);
  if (status.ok()) status = make_model(spec, out);
  if (status.ok()) return 0;
  std::fprintf(stderr, "make_model: %s\n", status.message().c_str());
  return 1;
}
