// make_model: writes a GGUF model with random weights. `make_model --help` lists the options.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "make_model/make_model.hpp"
#include "model/dtype.hpp"

int main(int argc, char** argv) {
  motley::make_model::ModelSpec spec;
  std::filesystem::path out;
  CLI::App app("Writes a GGUF model with random weights, reproducible from the seed.", "make_model");
  app.add_option("--arch", spec.architecture, "llama or qwen3")->capture_default_str();
  app.add_option("--layers", spec.layers)->capture_default_str();
  app.add_option("--hidden", spec.hidden, "width of the residual stream")->capture_default_str();
  app.add_option("--heads", spec.heads)->capture_default_str();
  app.add_option("--kv-heads", spec.kv_heads)->capture_default_str();
  app.add_option("--head-dim", spec.head_dim, "default: hidden / heads");
  app.add_option("--ffn", spec.ffn)->capture_default_str();
  app.add_option("--vocab", spec.vocab, "tokens; default 320");
  app.add_option("--context", spec.context)->capture_default_str();
  app.add_option("--type", spec.type, std::string(motley::weight_dtype_names()) + " or mix")->capture_default_str();
  app.add_option("--seed", spec.seed)->capture_default_str();
  app.add_flag("--tied", spec.tied, "the output matrix is the embedding's");
  app.add_flag("--rope-freqs", spec.rope_freqs, "write rope frequency divisors");
  app.add_option("--vocab-from", spec.vocab_from, "copy the tokenizer of this GGUF file");
  app.add_option("OUT", out, "the file to write")->required();
  CLI11_PARSE(app, argc, argv);
  const motley::Status status = motley::make_model::make_model(spec, out);
  if (status.ok()) return 0;
  std::fprintf(stderr, "make_model: %s\n", status.message().c_str());
  return 1;
}
