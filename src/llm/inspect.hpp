// inspect_model: what a model file says about itself, and whether this program would run it. Reads metadata only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.hpp"

namespace motley {

class Model;

// What the files say, whether or not it can be run.
struct ModelFacts {
  struct Size {
    std::string_view what;         // "layers", "heads", ...
    uint64_t least = 0, most = 0;  // differ where layers do
  };
  struct WeightType {
    std::string_view name;  // "Q4_K"
    bool built = false;     // weights of this type can be run
    uint64_t tensors = 0, elements = 0, bytes = 0;
  };
  struct SpecialToken {
    std::string_view role;  // "bos", "eos", ...
    uint64_t id = 0;
    std::string text;  // as the vocabulary spells it
  };

  std::string format;  // "GGUF 3", "Hugging Face directory"
  uint64_t file_bytes = 0;
  std::string architecture, name;  // empty where the files do not say
  std::vector<Size> sizes;         // those that are known
  uint64_t parameters = 0;
  std::vector<WeightType> weights;  // by bytes, most first
  std::string tokenizer_model, tokenizer_pre;
  uint64_t tokens = 0;
  std::vector<SpecialToken> special_tokens;
  std::string chat_template_place;  // the key or file that holds it; empty: there is none
  std::string chat_template;
};

// What would become of a part of the model; OK or the reason that opening it would give.
struct PartVerdict {
  std::string_view part;         // "model", "tokenizer", "chat"
  std::optional<Status> status;  // nullopt: not known, as an earlier part already fails
};

struct ModelReport {
  ModelFacts facts;
  std::vector<PartVerdict> verdicts;
};

// An error where the files are damaged or contradict themselves; a sound model that cannot be run is a report.
Result<ModelReport> inspect_model(const std::filesystem::path& path);

// What each kind of model says. A directory is a loaded model; returned is what becomes of its tokenizer, whose facts
// are added if it can be made.
Result<ModelFacts> read_gguf_facts(const std::filesystem::path& path);
Status add_directory_facts(const Model& model, ModelFacts& facts);

}  // namespace motley
