// The real models that tests read: where they lie, what transformers says of them, and what counts as a tie.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/check.hpp"
#include "base/status.hpp"

namespace motley::testing {

// The numeric contract's epsilon across classes (docs/contracts/numbers.md): texts may part where the logits of their
// tokens are closer than this in the undisturbed run.
inline constexpr double kTieLogits = 0.35, kTieLogitsF32 = 0.05;  // the second: between f32 placements

struct RealModel {
  const char* name;      // of its golden
  const char* variable;  // of the environment, with the path of its file
  const char* get;       // prints that path
  bool is_optional;      // without it the tests are skipped, not failed
};
inline constexpr RealModel kRealModels[] = {
    {"smollm2", "MOTLEY_TEST_MODEL", "tools/get_model", false},
    {"gemma3", "MOTLEY_TEST_GEMMA3", "tools/get_model gemma-3-270m", true},
};

template <typename T>
T value_of(Result<T> result) {
  CHECK(result.ok(), "{}", result.error().message());
  return *std::move(result);
}

class RealModelTest : public ::testing::TestWithParam<RealModel> {
 protected:
  void SetUp() override;

  std::string path_;       // of the model
  nlohmann::json golden_;  // made by tools/golden/logits.py
};

}  // namespace motley::testing
