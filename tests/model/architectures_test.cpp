// Every architecture in every type of weight against transformers: the logits of tiny random models
// (tests/golden/architectures.json, made by tools/golden/architectures.py) on the reference backend and on the CPU,
// with KV in f32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "model/architecture.hpp"
#include "model/dtype.hpp"
#include "model/forward.hpp"
#include "model/random_model.hpp"

namespace motley {
namespace {

// Of the logits: the root mean square of the difference from transformers' over that of transformers'. The table of
// docs/contracts/numbers.md, which says where the numbers come from.
struct Tolerance {
  std::string_view types;
  double reference, cpu, cpu_bf16;  // the last: of the kernels below
};
constexpr Tolerance kTolerances[] = {
    {"F32, F16", 2e-5, 2e-5, 2e-5},
    {"BF16", 2e-5, 2e-5, 0.01},
    {"Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4", 2e-5, 0.03, 0.03},
};
// The CPU's kernels that round the activations of BF16 weights to bf16.
constexpr std::string_view kBf16Kernels[] = {"avx512-bf16", "amx"};

std::vector<std::string> split(std::string_view types) {
  std::vector<std::string> names;
  for (size_t begin = 0, end = 0; end != types.npos; begin = end + 2) {
    end = types.find(", ", begin);
    names.emplace_back(types.substr(begin, end - begin));
  }
  return names;
}

const Tolerance& tolerance_of(const std::string& type) {
  const auto* found = std::find_if(std::begin(kTolerances), std::end(kTolerances), [&](const Tolerance& row) {
    const auto names = split(row.types);
    return std::find(names.begin(), names.end(), type) != names.end();
  });
  CHECK(found != std::end(kTolerances), "no tolerance for {}", type);
  return *found;
}

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
  spec.type = options.at("type").get<std::string>();
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

// Positions from this on are left out: ThreadSanitizer makes arithmetic some fifty times slower.
#ifdef MOTLEY_SANITIZED_THREADS
constexpr size_t kRowsMax = 6;
#else
constexpr size_t kRowsMax = 64;
#endif

// As Tolerance says, over the logits that the golden keeps; the prompt in chunks of `chunk` rows. Fails if the device
// does not have these kernels ("": its best; their name is put there).
Result<double> difference(const Model& model, const nlohmann::json& known, const std::string& device, uint32_t chunk,
                          std::string* kernels) {
  auto ids = known.at("ids").get<std::vector<int32_t>>();
  ids.resize(std::min(ids.size(), kRowsMax));
  testing::ForwardOptions options;
  options.device = device;
  options.kv_dtype = MOTLEY_F32;
  options.positions_max = static_cast<uint32_t>(ids.size());
  options.variant = *kernels;
  auto forward = testing::Forward::create(model, options);
  if (!forward.ok()) return forward.error();
  if (kernels->empty()) *kernels = (*forward)->kernels();
  const auto logits = (*forward)->logits(ids, chunk);
  CHECK(logits.ok(), "{}", logits.error().message());
  const size_t vocabulary = model.config().vocab_size;
  const auto step = golden().at("vocabulary_step").get<size_t>();
  double errors = 0, squares = 0;
  for (size_t i = 0; i < known.at("positions").size(); ++i) {
    const auto position = known["positions"][i].get<size_t>();
    if (position >= ids.size()) continue;
    for (size_t k = 0; k * step < vocabulary; ++k) {
      const auto wanted = known.at("logits")[i][k].get<double>();
      errors += std::pow(logits->at(position * vocabulary + k * step) - wanted, 2);
      squares += wanted * wanted;
    }
  }
  return std::sqrt(errors / squares);
}

double difference(const Model& model, const nlohmann::json& known, const std::string& device, uint32_t chunk) {
  std::string best;
  const auto found = difference(model, known, device, chunk, &best);
  CHECK(found.ok(), "{}", found.error().message());
  return *found;
}

testing::RandomModel model_of(const nlohmann::json& known) {
  return testing::RandomModel(spec_of(known.at("spec")), {.max_model_len = known.at("max_model_len").get<uint32_t>()});
}

struct Differences {
  double reference, cpu;
};

// Of all cases, computed once. The CPU's prompts in chunks, so that windows and sinks see what earlier steps have
// stored.
const std::vector<Differences>& differences() {
  static const std::vector<Differences> found = [] {
    std::vector<Differences> all;
    for (const auto& known : golden().at("cases")) {
      const testing::RandomModel made = model_of(known);
      all.push_back({difference(made.model(), known, "REF:0", 0), difference(made.model(), known, "CPU:0", 5)});
    }
    return all;
  }();
  return found;
}

void expect_within(double Differences::*difference, double Tolerance::*bar) {
  for (size_t i = 0; i < differences().size(); ++i) {
    const auto& known = golden().at("cases")[i];
    const auto type = known.at("spec").at("type").get<std::string>();
    const auto name = fmt::format("{} {}", known.at("name").get<std::string>(), type);
    std::printf("%-28s difference %.2e\n", name.c_str(), differences()[i].*difference);
    EXPECT_LE(differences()[i].*difference, tolerance_of(type).*bar) << name;
  }
}

TEST(Architectures, ReferenceBackend_MatchesTransformers) {
  expect_within(&Differences::reference, &Tolerance::reference);
}
TEST(Architectures, CpuBackend_MatchesTransformersInChunks) {
  std::string best;
  const testing::RandomModel made = model_of(golden().at("cases")[0]);
  ASSERT_TRUE(difference(made.model(), golden().at("cases")[0], "CPU:0", 5, &best).ok());
  const bool bf16 = std::find(std::begin(kBf16Kernels), std::end(kBf16Kernels), best) != std::end(kBf16Kernels);
  expect_within(&Differences::cpu, bf16 ? &Tolerance::cpu_bf16 : &Tolerance::cpu);
}

TEST(Architectures, CpuBackendsBf16Kernels_MatchTransformersInChunks) {
  for (const auto& known : golden().at("cases")) {
    if (known.at("spec").at("type") != "BF16") continue;
    const testing::RandomModel made = model_of(known);
    for (std::string kernels : {std::string(kBf16Kernels[0]), std::string(kBf16Kernels[1])}) {
      const auto found = difference(made.model(), known, "CPU:0", 5, &kernels);
      if (!found.ok() && found.error().code() == MOTLEY_NOT_FOUND) continue;  // not of this machine
      ASSERT_TRUE(found.ok()) << found.error().message();
      const auto name = fmt::format("{} {}", known.at("name").get<std::string>(), kernels);
      std::printf("%-28s difference %.2e\n", name.c_str(), *found);
      EXPECT_LE(*found, tolerance_of("BF16").cpu_bf16) << name;
    }
  }
}

TEST(Architectures, EveryOneInEveryType_HasAGolden) {
  const auto& cases = golden().at("cases");
  for (const Architecture* architecture : architectures()) {
    for (const std::string& type : split(weight_dtype_names())) {
      EXPECT_TRUE(std::any_of(cases.begin(), cases.end(),
                              [&](const nlohmann::json& known) {
                                const auto& spec = known.at("spec");
                                return spec.at("arch").get<std::string>() == architecture->name &&
                                       spec.at("type").get<std::string>() == type;
                              }))
          << architecture->name << " " << type;
    }
  }
}

TEST(Architectures, Tolerances_AreTheContracts) {
  std::string table = "| types of weights | REF | CPU | CPU with bf16 kernels |\n|---|---|---|---|\n";
  for (const Tolerance& row : kTolerances)
    table += fmt::format("| {} | {} | {} | {} |\n", row.types, row.reference, row.cpu, row.cpu_bf16);
  std::ifstream file(MOTLEY_SOURCE_DIR "/docs/contracts/numbers.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  EXPECT_NE(page.find(table), std::string::npos) << "docs/contracts/numbers.md should have:\n" << table;
}

}  // namespace
}  // namespace motley
