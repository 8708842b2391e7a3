// The README's table of models is what the registry says: no other list to forget.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "model/architecture.hpp"
#include "model/dtype.hpp"

namespace motley {
namespace {

std::string table_of_models() {
  std::string table = "| architecture | Hugging Face classes |\n|---|---|\n";
  for (const Architecture* architecture : architectures()) {
    std::string classes;
    for (const std::string_view name : architecture->hugging_face_names) {
      if (!name.empty()) classes += fmt::format("{}{}", classes.empty() ? "" : ", ", name);
    }
    table += fmt::format("| {} | {} |\n", architecture->name, classes);
  }
  return table + fmt::format("\nTypes of weights in GGUF files: {}.\n", weight_dtype_names());
}

TEST(Readme, TableOfModels_IsTheRegistrys) {
  std::ifstream file(MOTLEY_SOURCE_DIR "/README.md");
  const std::string readme{std::istreambuf_iterator<char>(file), {}};
  ASSERT_FALSE(readme.empty());
  EXPECT_NE(readme.find(table_of_models()), std::string::npos) << "README.md should have:\n" << table_of_models();
}

}  // namespace
}  // namespace motley
