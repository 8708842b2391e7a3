#include "model/real_models.hpp"

#include <fmt/format.h>

#include <fstream>

#include "base/config.hpp"

namespace motley::testing {

void RealModelTest::SetUp() {
  const RealModel& known = GetParam();
  path_ = environment(known.variable).value_or("");
  const auto missing = fmt::format("{} is not set; `{}` prints the model's path", known.variable, known.get);
  if (path_.empty() && known.is_optional) GTEST_SKIP() << missing;
  ASSERT_FALSE(path_.empty()) << missing;
  std::ifstream file(fmt::format("{}/tests/golden/{}_logits.json", MOTLEY_SOURCE_DIR, known.name));
  golden_ = nlohmann::json::parse(file);
}

}  // namespace motley::testing
