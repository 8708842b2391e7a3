// Input: the files of a Hugging Face directory, each one behind FF FF and a byte that says which of kNames it is. The
// whole way from the files to a model, its weights, tokenizer and template: they hold what was asked for, or there is a
// refusal of one line that names the folder.
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "base/check.hpp"
#include "fuzz/text_model_checks.hpp"
#include "model/model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;
using motley::fuzz::check_refusal;

constexpr std::array<const char*, 10> kNames = {"config.json",
                                                "model.safetensors",
                                                "model.safetensors.index.json",
                                                "model-00001-of-00002.safetensors",
                                                "model-00002-of-00002.safetensors",
                                                "tokenizer.json",
                                                "tokenizer_config.json",
                                                "generation_config.json",
                                                "chat_template.jinja",
                                                "chat_template.json"};
constexpr std::string_view kMark = "\xFF\xFF";

// A folder in memory where there is one, removed at the end of the program.
class Folder {
 public:
  Folder() {
    const fs::path memory = "/dev/shm";
    std::string path =
        ((fs::is_directory(memory) ? memory : fs::temp_directory_path()) / "motley-fuzz-XXXXXX").string();
    CHECK(mkdtemp(path.data()) != nullptr, "{}", path);
    path_ = path;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

  void fill(std::string_view input) const {
    for (const char* name : kNames) fs::remove(path_ / name);
    for (size_t at = input.find(kMark); at != std::string_view::npos && at + kMark.size() < input.size();) {
      at += kMark.size();
      const size_t file = static_cast<uint8_t>(input[at]) % kNames.size();
      const size_t end = std::min(input.find(kMark, at + 1), input.size());
      std::ofstream(path_ / kNames[file], std::ios::binary) << input.substr(at + 1, end - at - 1);
      at = end;
    }
  }

 private:
  fs::path path_;
};

void check_weights(const motley::Model& model) {
  for (size_t i = 0; i < model.graph().weights.size(); ++i) {
    const auto read = model.read(i);
    if (!read.ok()) return check_refusal(read.error());
    CHECK(read->data.size() == model.weight(i).bytes, "weight {}: {} bytes", i, read->data.size());
    model.release(i);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  folder.fill({reinterpret_cast<const char*>(data), size});
  const auto model = motley::Model::load(folder.path());
  if (!model.ok()) {
    check_refusal(model.error());
    CHECK(model.error().message().starts_with(folder.path().string()), "{}", model.error().message());
    return 0;
  }
  check_weights(**model);
  motley::fuzz::check_text(**model);
  return 0;
}
