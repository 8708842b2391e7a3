// A random-weight model file in a temporary folder, loaded.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <memory>

#include "base/check.hpp"
#include "make_model/make_model.hpp"
#include "model/model.hpp"

namespace motley::testing {

class RandomModel {
 public:
  explicit RandomModel(const make_model::ModelSpec& spec, const LoadOptions& options = {}) {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-model-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    const Status made = make_model::make_model(spec, path());
    CHECK(made.ok(), "{}", made.message());
    auto loaded = Model::load(path(), options);
    CHECK(loaded.ok(), "{}", loaded.error().message());
    model_ = *std::move(loaded);
  }
  ~RandomModel() {
    model_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  std::filesystem::path path() const { return folder_ / "model.gguf"; }
  const Model& model() const { return *model_; }

 private:
  std::filesystem::path folder_;
  std::unique_ptr<Model> model_;
};

}  // namespace motley::testing
