// Every architecture against transformers: the logits of tiny random models (tests/golden/architectures.json, made by
// tools/golden/architectures.py) on the reference backend and on the CPU, in f32 throughout.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/architecture.hpp"
#include "model/forward.hpp"
#include "model/random_model.hpp"

namespace motley {
namespace {

// The logits deviate by about 1. Two ways of computing in f32 that add in another order differ by some 1e-6 of the
// terms' size; soft caps, rope and exponentials add their own rounding.
constexpr double kTolerance = 5e-5;

const nlohmann::json& golden() {
  static const nlohmann::json parsed = [] {
    std::ifstream file(std::string(MOTLEY_SOURCE_DIR) + "/tests/golden/architectures.json");
    return nlohmann::json::parse(file);
  }();
  return parsed;
}

make_model::ModelSpec spec_of(const nlohmann::json& options) {
  make_model::ModelSpec spec;
  spec.architecture = options.at("arch").get<std::string>();
  spec.type = "F32";
  spec.seed = options.at("seed").get<uint64_t>();
  spec.tied = options.value("tied", false);
  spec.rope_freqs = options.value("rope-freqs", false);
  spec.rope_scaling = options.value("rope-scaling", "");
  const std::pair<const char*, uint32_t make_model::ModelSpec::*> sizes[] = {
      {"layers", &make_model::ModelSpec::layers},
      {"hidden", &make_model::ModelSpec::hidden},
      {"heads", &make_model::ModelSpec::heads},
      {"kv-heads", &make_model::ModelSpec::kv_heads},
      {"head-dim", &make_model::ModelSpec::head_dim},
      {"ffn", &make_model::ModelSpec::ffn},
      {"context", &make_model::ModelSpec::context},
      {"window", &make_model::ModelSpec::window},
      {"rope-dims", &make_model::ModelSpec::rope_dims},
      {"experts", &make_model::ModelSpec::experts},
      {"experts-used", &make_model::ModelSpec::experts_used},
      {"expert-ffn", &make_model::ModelSpec::expert_ffn},
  };
  for (const auto& [name, size] : sizes) spec.*size = options.value(name, spec.*size);
  return spec;
}

// The largest difference of a logit that the golden keeps, with the prompt in chunks of `chunk` rows.
double difference(const nlohmann::json& known, const std::string& device, uint32_t chunk) {
  const testing::RandomModel made(spec_of(known.at("spec")),
                                  {.max_model_len = known.at("max_model_len").get<uint32_t>()});
  testing::ForwardOptions options;
  options.device = device;
  options.kv_dtype = MOTLEY_F32;
  auto forward = testing::Forward::create(made.model(), options);
  CHECK(forward.ok(), "{}", forward.error().message());
  const auto logits = (*forward)->logits(golden().at("ids").get<std::vector<int32_t>>(), chunk);
  CHECK(logits.ok(), "{}", logits.error().message());
  const size_t vocabulary = made.model().config().vocab_size;
  const auto step = golden().at("vocabulary_step").get<size_t>();
  double most = 0;
  for (size_t i = 0; i < golden().at("positions").size(); ++i) {
    const auto position = golden()["positions"][i].get<size_t>();
    for (size_t k = 0; k * step < vocabulary; ++k) {
      const double ours = logits->at(position * vocabulary + k * step);
      most = std::max(most, std::abs(ours - known.at("logits")[i][k].get<double>()));
    }
  }
  return most;
}

TEST(Architectures, ReferenceBackend_MatchesTransformers) {
  for (const auto& known : golden().at("cases")) {
    const double found = difference(known, "REF:0", 0);
    std::printf("REF:0 %-24s largest difference %.2e\n", known.at("name").get<std::string>().c_str(), found);
    EXPECT_LE(found, kTolerance) << known.at("name");
  }
}

// In chunks, so that windows and sinks see what earlier steps have stored.
TEST(Architectures, CpuBackend_MatchesTransformersInChunks) {
  for (const auto& known : golden().at("cases")) {
    const double found = difference(known, "CPU:0", 7);
    std::printf("CPU:0 %-24s largest difference %.2e\n", known.at("name").get<std::string>().c_str(), found);
    EXPECT_LE(found, kTolerance) << known.at("name");
  }
}

TEST(Architectures, EveryOneThatIsBuilt_HasAGolden) {
  for (const Architecture* architecture : architectures()) {
    const auto& cases = golden().at("cases");
    EXPECT_TRUE(std::any_of(cases.begin(), cases.end(), [&](const nlohmann::json& known) {
      return known.at("spec").at("arch").get<std::string>() == architecture->name;
    })) << architecture->name;
  }
}

}  // namespace
}  // namespace motley
