// One model over several devices: every way of cutting it gives what one device gives.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string_view>

#include "base/config.hpp"
#include "device/registry.hpp"
#include "model/axes.hpp"
#include "model/random_model.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {
namespace {

using testing::RandomModel;

constexpr uint32_t kBlockSize = 16, kBlocks = 24;
constexpr int kGenerated = 6;
constexpr size_t kDevices = 12;

make_model::ModelSpec spec_of(const std::string& architecture, uint32_t kv_heads) {
  make_model::ModelSpec spec;
  spec.architecture = architecture;
  spec.type = "F32";
  spec.seed = 21;
  spec.layers = 4;
  spec.tied = architecture == "llama";
  spec.window = architecture.starts_with("gemma") || architecture == "gpt-oss" ? 9 : 0;
  spec.heads = kv_heads * 2;
  spec.kv_heads = kv_heads;
  spec.head_dim = 32;
  return spec;
}

// Splits [0, count) by weights, in whole grains; a weight of 0 gets nothing.
std::vector<std::vector<UnitRange>> split(int64_t count, const std::vector<double>& weights, int64_t grain) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::vector<UnitRange>> parts(weights.size());
  size_t last = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    if (weights[i] > 0) last = i;
  int64_t at = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    int64_t take = static_cast<int64_t>(std::llround(static_cast<double>(count) * weights[i] / sum)) / grain * grain;
    if (i == last) take = count - at;
    take = std::min(take, count - at);
    if (take <= 0) continue;
    // In two ranges where there is enough: a shard is a list of them.
    if (take >= 4 * grain && i == 0) {
      const int64_t half = take / 2 / grain * grain;
      parts[i] = {{at, at + half}, {at + half, at + take}};
    } else {
      parts[i] = {{at, at + take}};
    }
    at += take;
  }
  return parts;
}

struct StageSpec {
  double layers = 1;  // relative
  std::vector<double> heads, ffn, vocab, experts;
  bool replicate = false;  // every shard with heads holds all KV heads, and a part of the query heads of each
  // Who attends, by shard: a shard of the stage, kStranger (a device that does nothing else), or the shard itself.
  std::vector<int> attended_by = {};
};
constexpr int kStranger = 9;

struct PlacementCase {
  const char* name;
  std::vector<StageSpec> stages;
  // Of the pool, behind its first blocks. A sequence has every other block.
  uint32_t first_blocks = kBlocks;
  std::vector<KvSection> sections = {};
};

const std::vector<PlacementCase>& cases() {
  static const std::vector<PlacementCase> all = {
      {"even_two", {{1, {1, 1}, {1, 1}, {1, 1}, {1, 1}}}},
      {"uneven_three", {{1, {2, 1, 0}, {1, 5, 2}, {3, 0, 1}, {0, 1, 3}}}},
      {"heads_here_ffn_there", {{1, {1, 0}, {0, 1}, {0, 1}, {1, 0}}}},
      {"one_weak", {{1, {1, 0}, {7, 1}, {1, 0}, {3, 1}}}},
      {"replicated_kv_heads", {{1, {1, 0, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, true}}},
      {"pipeline_two", {{3, {1}, {1}, {1}, {1}}, {1, {1}, {1}, {1}, {1}}}},
      {"pipeline_four",
       {{1, {1}, {1}, {1}, {1}}, {1, {1}, {1}, {1}, {1}}, {1, {1}, {1}, {1}, {1}}, {1, {1}, {1}, {1}, {1}}}},
      {"wide_then_narrow", {{1, {1, 1}, {1, 2}, {1, 1}, {1, 1}}, {1, {1}, {1}, {1}, {1}}}},
      {"stranger_attends", {{1, {1}, {1}, {1}, {1}, false, {kStranger}}}},
      {"neighbour_attends", {{1, {1, 0}, {1, 0}, {0, 1}, {1, 0}, false, {1, 1}}}},
      {"attended_in_parts", {{1, {1, 1, 1}, {1, 2, 1}, {0, 1, 2}, {1, 2, 0}, false, {1, 1, kStranger}}}},
      {"attended_in_a_pipeline",
       {{1, {1, 0}, {1, 0}, {0, 1}, {1, 0}, false, {1, 1}}, {2, {1}, {1}, {1}, {1}, false, {kStranger}}}},
      {"two_sections", {{1, {1}, {1}, {1}, {1}}}, 2, {{"D10", kBlocks}}},
      {"three_sections", {{1, {1}, {1}, {1}, {1}}}, 1, {{"D10", 2}, {"D11", kBlocks}}},
      {"four_sections", {{1, {1}, {1}, {1}, {1}}}, 3, {{"D9", 1}, {"D10", 1}, {"D11", kBlocks}}},
      {"nothing_in_the_second_section", {{1, {1}, {1}, {1}, {1}}}, kBlocks, {{"D10", kBlocks}}},
      {"sections_of_two_shards", {{1, {2, 1}, {1, 2}, {1, 1}, {1, 1}}}, 2, {{"D10", 2}, {"D11", kBlocks}}},
      {"sections_and_no_heads_on_one", {{1, {1, 0}, {1, 2}, {0, 1}, {1, 1}}}, 2, {{"D10", kBlocks}}},
      {"sections_of_replicated_kv_heads",
       {{1, {1, 0, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, true}},
       3,
       {{"D10", kBlocks}}},
      {"sections_of_a_pipeline", {{1, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, {1, {1}, {1}, {1}, {1}}}, 2, {{"D10", kBlocks}}},
      {"sections_behind_a_partner", {{1, {1}, {1}, {1}, {1}, false, {kStranger}}}, 2, {{"D10", 2}, {"D11", kBlocks}}},
      {"sections_behind_a_neighbour",
       {{1, {1, 0}, {1, 0}, {0, 1}, {1, 0}, false, {1, 1}}, {2, {1}, {1}, {1}, {1}, false, {kStranger}}},
       3,
       {{"D10", kBlocks}}},
      {"narrow_then_wide", {{1, {1}, {1}, {1}, {1}}, {1, {0, 1, 1}, {1, 1, 1}, {0, 1, 2}, {1, 1, 1}}}},
  };
  return all;
}

// Query heads of each KV head by weight: [0, a), [a, b), ... of every group.
void replicate(const ModelConfig& config, const std::vector<double>& weights, size_t index, Shard* shard) {
  const int64_t each = config.heads / config.kv_heads;
  const auto parts = split(each, weights, 1);
  shard->kv_heads.clear();
  if (parts[index].empty()) return;
  shard->kv_heads = {{0, config.kv_heads}};
  for (int64_t kv = 0; kv < config.kv_heads; ++kv)
    for (const UnitRange& part : parts[index])
      shard->query_heads.push_back({kv * each + part.begin, kv * each + part.end});
}

Placement place(const Model& model, const PlacementCase& c) {
  const ModelAxes axes = axes_of(model);
  Placement placement;
  placement.epoch = 1;
  placement.block_size = kBlockSize;
  placement.kv_dtype = MOTLEY_F32;
  Lane lane;
  lane.kv_blocks = c.first_blocks;
  lane.sections = c.sections;
  double layers = 0, done = 0;
  for (const StageSpec& stage : c.stages) layers += stage.layers;
  uint32_t device = 0;
  for (const StageSpec& spec : c.stages) {
    Stage stage;
    const double all = model.config().layers;
    stage.layer_begin = static_cast<uint32_t>(std::lround(all * done / layers));
    done += spec.layers;
    stage.layer_end = static_cast<uint32_t>(std::lround(all * done / layers));
    const auto heads = split(axes.kv_heads, spec.heads, 1), vocab = split(axes.vocab, spec.vocab, 1);
    const auto ffn = split(axes.ffn_columns, spec.ffn, 32), experts = split(axes.experts, spec.experts, 1);
    for (size_t i = 0; i < spec.heads.size(); ++i) {
      Shard shard;
      const uint32_t first = device - static_cast<uint32_t>(i);
      const int attends = i < spec.attended_by.size() ? spec.attended_by[i] : static_cast<int>(i);
      if (attends != static_cast<int>(i) && !heads[i].empty())
        shard.partner = "D" + std::to_string(first + static_cast<uint32_t>(attends));
      shard.device = "D" + std::to_string(device++);
      shard.kv_heads = heads[i];
      if (spec.replicate) replicate(model.config(), spec.heads, i, &shard);
      shard.ffn_columns = ffn[i];
      shard.vocab_rows = vocab[i];
      for (const UnitRange& range : experts[i])
        for (int64_t e = range.begin; e < range.end; ++e) shard.experts.push_back(static_cast<int32_t>(e));
      stage.shards.push_back(std::move(shard));
    }
    lane.stages.push_back(std::move(stage));
  }
  placement.lanes.push_back(std::move(lane));
  return placement;
}

// Opened devices D0, D1, ... of one kind.
class Devices {
 public:
  Devices(const std::string& name, size_t count, bool any_rows) : registry_(DeviceRegistry::scan(plugin_directory())) {
    const auto entry = registry_.find(name);
    CHECK(entry.ok(), "{}", entry.error().message());
    devices_.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      DeviceOptions options;
      options.threads = 1;
      auto device = Device::open(*(*entry)->plugin, (*entry)->description.desc.index, options);
      CHECK(device.ok(), "{}", device.error().message());
      devices_.push_back(*std::move(device));
      named_.push_back({"D" + std::to_string(i), &devices_.back()});
      named_.back().any_rows = any_rows;
    }
  }
  const std::vector<NamedDevice>& named() const { return named_; }

 private:
  DeviceRegistry registry_;
  std::vector<Device> devices_;
  std::vector<NamedDevice> named_;
};

struct Drawn {
  TokenId id = 0;
  std::vector<TokenAlternative> top;
};

// Two sequences prefilled in chunks, then decoded greedily, with as many steps under way as the executor takes.
class Reader {
 public:
  // Which lane runs a step of sequence 0 or 1, of a prompt's rows or not.
  using LaneOf = std::function<uint32_t(size_t, bool)>;
  explicit Reader(
      const Model& model, LaneOf lane_of = [](size_t, bool) { return 0u; })
      : vocab_(model.config().vocab_size), lane_of_(std::move(lane_of)) {
    std::mt19937 random(3);
    for (auto& prompt : prompts_) {
      prompt.resize(21 + random() % 8);
      for (TokenId& id : prompt) id = static_cast<TokenId>(random() % vocab_);
    }
  }

  std::array<std::vector<Drawn>, 2> read(RuntimeExecutor& executor) {
    const ExecutorDescription description = executor.describe();
    std::array<std::vector<Drawn>, 2> drawn;
    std::array<std::vector<TokenId>, 2> texts = prompts_;
    std::array<uint32_t, 2> computed = {};
    StepId step = 0;
    while (drawn[0].size() < kGenerated || drawn[1].size() < kGenerated) {
      std::vector<std::pair<size_t, Future<StepResult>>> flying;
      for (size_t s = 0; s < 2; ++s) {
        if (drawn[s].size() >= kGenerated) continue;
        const auto left = static_cast<uint32_t>(texts[s].size()) - computed[s];
        const uint32_t rows = std::min(left, 11u);
        flying.emplace_back(s, executor.submit(plan(++step, s, texts[s], computed[s], rows, rows == left)));
        computed[s] += rows;
        if (description.lanes[0].pipeline > 1) continue;
        take(&flying, &drawn, &texts);
      }
      take(&flying, &drawn, &texts);
    }
    return drawn;
  }

 private:
  StepPlan plan(StepId step, size_t s, const std::vector<TokenId>& text, uint32_t begin, uint32_t rows, bool draw) {
    StepPlan made;
    made.epoch = 1;
    made.step = step;
    made.lane = lane_of_(s, begin < prompts_[s].size());
    for (uint32_t r = 0; r < rows; ++r) {
      made.tokens.push_back(text[begin + r]);
      made.positions.push_back(static_cast<int32_t>(begin + r));
      made.generated.push_back(begin + r >= prompts_[s].size());
    }
    made.token_slots.assign(rows, -1);
    const uint32_t context = begin + rows, blocks = (context + kBlockSize - 1) / kBlockSize;
    made.sequences.push_back({s, 0, rows, context, 0, blocks, 0, draw ? 1u : 0u});
    for (uint32_t b = 0; b < blocks; ++b) made.blocks.push_back(static_cast<BlockId>(2 * b + s));
    if (!draw) return made;
    made.logit_rows = {static_cast<int32_t>(rows) - 1};
    motley_sample_row sample{};
    sample.top_p = sample.repetition_penalty = 1;
    sample.position = context;
    sample.top_logprobs = 8;
    sample.out_slot = -1;
    made.samples.push_back(sample);
    return made;
  }

  static void take(std::vector<std::pair<size_t, Future<StepResult>>>* flying, std::array<std::vector<Drawn>, 2>* drawn,
                   std::array<std::vector<TokenId>, 2>* texts) {
    for (auto& [s, future] : *flying) {
      const StepResult result = future.take();
      CHECK(result.status.ok(), "{}", result.status.message());
      for (const SampledToken& token : result.tokens) {
        (*drawn)[s].push_back({token.id, token.top});
        (*texts)[s].push_back(token.id);
      }
    }
    flying->clear();
  }

  const uint32_t vocab_;
  const LaneOf lane_of_;
  std::array<std::vector<TokenId>, 2> prompts_;
};

std::array<std::vector<Drawn>, 2> run(const Model& model, const Placement& placement, const std::string& device,
                                      bool any_rows = true) {
  const Devices devices(device, kDevices, any_rows);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  auto executor = RuntimeExecutor::create(model, placement, devices.named(), options);
  CHECK(executor.ok(), "{}", executor.error().message());
  return Reader(model).read(**executor);
}

void expect_same(const std::array<std::vector<Drawn>, 2>& want, const std::array<std::vector<Drawn>, 2>& got,
                 float logprob_error = 2e-4f) {
  for (size_t s = 0; s < 2; ++s) {
    ASSERT_EQ(got[s].size(), want[s].size());
    for (size_t i = 0; i < want[s].size(); ++i) {
      ASSERT_EQ(got[s][i].id, want[s][i].id) << "sequence " << s << " token " << i;
      ASSERT_EQ(got[s][i].top.size(), want[s][i].top.size());
      for (size_t k = 0; k < want[s][i].top.size(); ++k)
        ASSERT_NEAR(got[s][i].top[k].logprob, want[s][i].top[k].logprob, logprob_error)
            << "sequence " << s << " token " << i << " rank " << k;
    }
  }
}

class Placements : public ::testing::TestWithParam<std::tuple<const char*, uint32_t>> {};

TEST_P(Placements, EveryCut_SaysWhatOneDeviceSays) {
  const auto [architecture, kv_heads] = GetParam();
  const RandomModel random(spec_of(architecture, kv_heads));
  const Model& model = random.model();
  const auto want = run(model, place(model, {"whole", {{1, {1}, {1}, {1}, {1}}}}), "REF:0");
  for (const PlacementCase& c : cases()) {
    SCOPED_TRACE(c.name);
    expect_same(want, run(model, place(model, c), "REF:0"));
  }
}

// Steps of 11 rows and of fewer run in programs of 16, what is left of a bucket is nobody's.
TEST(PlacementBuckets, CompiledForRowCounts_SayWhatAnyRowsSay) {
  const RandomModel random(spec_of("llama", 3));
  for (const PlacementCase& c : cases()) {
    SCOPED_TRACE(c.name);
    const Placement placement = place(random.model(), c);
    expect_same(run(random.model(), placement, "REF:0"), run(random.model(), placement, "REF:0", false), 0);
  }
}

// What a placement with sections may not be.
TEST(PlacementSections, ThatCannotBe_AreRefused) {
  const RandomModel random(spec_of("llama", 3));
  const std::vector<StageSpec> alone = {{1, {1}, {1}, {1}, {1}}},
                               attended = {{1, {1}, {1}, {1}, {1}, false, {kStranger}}};
  const Devices devices("REF:0", kDevices, true);
  const auto refusal = [&](const PlacementCase& c, std::vector<NamedDevice> named) {
    const auto made = RuntimeExecutor::create(random.model(), place(random.model(), c), named, {});
    CHECK(!made.ok(), "{}", c.name);
    return made.error();
  };
  const auto code = [&](const std::vector<StageSpec>& stages, const std::vector<KvSection>& sections) {
    return refusal({"", stages, 2, sections}, devices.named()).code();
  };
  EXPECT_EQ(code(alone, {{"D10", 0}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D0", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D10", 1}, {"D10", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(attended, {{"D9", 1}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code(alone, {{"D99", 1}}), MOTLEY_INVALID_ARGUMENT);
  for (const size_t without : {0, 10}) {
    std::vector<NamedDevice> named = devices.named();
    named[without].attends_partially = false;
    const Status why = refusal({"", alone, 2, {{"D10", 1}}}, named);
    EXPECT_EQ(why.code(), MOTLEY_UNIMPLEMENTED);
    EXPECT_NE(why.message().find(named[without].name), std::string::npos) << why.message();
  }
}

// What no block of a step lies with has nothing to do for it.
TEST(PlacementSections, WithNothingOfAStep_ArePassedOver) {
  const RandomModel random(spec_of("llama", 3));
  const auto programs = [&](uint32_t first_blocks) {
    const PlacementCase c = {"", {{1, {1}, {1}, {1}, {1}}}, first_blocks, {{"D10", kBlocks}}};
    const Devices devices("REF:0", kDevices, true);
    RuntimeOptions options;
    options.rows_max = 32, options.logit_rows_max = 4;
    auto executor = RuntimeExecutor::create(random.model(), place(random.model(), c), devices.named(), options);
    CHECK(executor.ok(), "{}", executor.error().message());
    Reader(random.model()).read(**executor);
    const auto reports = (*executor)->reports();
    const auto found = std::find_if(reports.begin(), reports.end(), [](const auto& r) { return r.device == "D10"; });
    return found->work.programs;
  };
  EXPECT_GT(programs(2), 0u);
  EXPECT_EQ(programs(kBlocks), 0u);
}

// Lanes of a stage each: D0 alone; D0 with D1 attending; D1 alone.
Placement lanes_of(const Model& model, const std::vector<std::pair<StageSpec, uint32_t>>& lanes) {
  Placement placement;
  for (const auto& [stage, first] : lanes) {
    Placement one = place(model, {"", {stage}});
    for (Shard& shard : one.lanes[0].stages[0].shards) {
      const auto moved = [&](const std::string& name) {
        return "D" + std::to_string(std::stoul(name.substr(1)) + first);
      };
      shard.device = moved(shard.device);
      if (!shard.partner.empty()) shard.partner = moved(shard.partner);
    }
    if (placement.lanes.empty()) {
      placement = std::move(one);
    } else {
      placement.lanes.push_back(std::move(one.lanes[0]));
    }
  }
  return placement;
}

const StageSpec kAlone = {1, {1}, {1}, {1}, {1}};
const StageSpec kAttended = {1, {1, 0}, {1, 0}, {0, 1}, {1, 0}, false, {1, 1}};

std::array<std::vector<Drawn>, 2> run_lanes(const Model& model, const Placement& placement,
                                            const Reader::LaneOf& lane_of, uint64_t* weight_bytes) {
  const Devices devices("REF:0", kDevices, true);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  auto executor = RuntimeExecutor::create(model, placement, devices.named(), options);
  CHECK(executor.ok(), "{}", executor.error().message());
  auto drawn = Reader(model, lane_of).read(**executor);
  *weight_bytes = 0;
  for (const DriverReport& report : (*executor)->reports()) *weight_bytes += report.weight_bytes;
  return drawn;
}

// A sequence on the device alone, the other with its KV on the partner, at the same time; the weights are there once.
TEST(PlacementLanes, KvOfTwoOwners_SaysWhatOneDeviceSays) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  uint64_t alone_bytes = 0, bytes = 0;
  const auto want = run_lanes(
      model, place(model, {"whole", {kAlone}}), [](size_t, bool) { return 0u; }, &alone_bytes);
  Placement placement = lanes_of(model, {{kAlone, 0}, {kAttended, 0}});
  placement.lanes[1].pool = 1;
  placement.lanes[1].kv_blocks = 2 * kBlocks;
  const auto got = run_lanes(
      model, placement, [](size_t s, bool) { return static_cast<uint32_t>(s); }, &bytes);
  expect_same(want, got);
  EXPECT_LT(bytes, alone_bytes * 3 / 2);  // the partner has the vocabulary, too
}

// One device computes prompts, another attends for it and generates: the KV is there once.
TEST(PlacementLanes, Roles_ShareThePool) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  uint64_t bytes = 0;
  const auto want = run_lanes(
      model, place(model, {"whole", {kAlone}}), [](size_t, bool) { return 0u; }, &bytes);
  Placement placement = lanes_of(model, {{kAttended, 0}, {kAlone, 1}});
  placement.lanes[0].decodes = placement.lanes[1].prefills = false;
  const auto got = run_lanes(
      model, placement, [](size_t, bool prompt) { return prompt ? 0u : 1u; }, &bytes);
  expect_same(want, got);
  placement.lanes[1].kv_blocks += 1;
  const Devices devices("REF:0", kDevices, true);
  const auto refused = RuntimeExecutor::create(model, placement, devices.named(), {});
  EXPECT_EQ(refused.error().code(), MOTLEY_INVALID_ARGUMENT);
}

// Columns move, heads stay: their KV is the same memory, with its contents. Heads that move have other memory, and so
// has a pool that was made anew.
TEST(PlacementPools, OfTheSameHeads_AreTheSameMemory) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  const Devices devices("REF:0", kDevices, true);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  options.holdings = std::make_shared<Holdings>(model);
  const auto made = [&](const StageSpec& stage) {
    auto executor = RuntimeExecutor::create(model, place(model, {"", {stage}}), devices.named(), options);
    CHECK(executor.ok(), "{}", executor.error().message());
    return *std::move(executor);
  };
  const auto memory = [](const RuntimeExecutor& executor) { return executor.describe().pools[0].memory; };
  const StageSpec even = {1, {2, 1}, {1, 1}, {1, 0}, {1, 1}};
  StageSpec columns = even, heads = even;
  columns.ffn = {3, 1};
  heads.heads = {1, 2};
  auto first = made(even);
  const std::vector<uint64_t> known = memory(*first);
  EXPECT_EQ(known.size(), 2u);
  EXPECT_NE(memory(*made(heads)), known);
  auto second = made(columns);
  EXPECT_EQ(memory(*second), known);
  const auto want = Reader(model).read(*first);
  first.reset();
  expect_same(want, Reader(model).read(*second));
  second.reset();
  EXPECT_NE(memory(*made(even)), known);
}

// All pairs over Gloo, or only those of different stages, or only those of one.
enum class OverGloo { kAll, kHops, kStages };

Placement over_gloo(Placement placement, OverGloo which) {
  Lane& lane = placement.lanes[0];
  std::vector<std::pair<size_t, const Shard*>> shards;  // with their stage
  for (size_t s = 0; s < lane.stages.size(); ++s)
    for (const Shard& shard : lane.stages[s].shards) shards.emplace_back(s, &shard);
  for (size_t i = 0; i < shards.size(); ++i) {
    for (size_t j = i + 1; j < shards.size(); ++j) {
      const bool same = shards[i].first == shards[j].first;
      if (which == (same ? OverGloo::kHops : OverGloo::kStages)) continue;
      lane.routes.push_back({shards[i].second->device, shards[j].second->device, Route::kGloo});
    }
  }
  return placement;
}

// Sums have one order whatever they go over, so every bit is the same.
TEST(PlacementRoutes, OverGloo_SaysWhatSharedMemorySays) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  for (const PlacementCase& c : cases()) {
    if (c.name != std::string_view("uneven_three") && c.name != std::string_view("wide_then_narrow") &&
        c.name != std::string_view("narrow_then_wide"))
      continue;
    const Placement placement = place(model, c);
    const auto want = run(model, placement, "REF:0");
    for (const OverGloo which : {OverGloo::kAll, OverGloo::kHops, OverGloo::kStages}) {
      SCOPED_TRACE(fmt::format("{} {}", c.name, static_cast<int>(which)));
      const Placement routed = over_gloo(placement, which);
      expect_same(want, run(model, routed, "REF:0"), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Placements,
                         ::testing::Values(std::tuple{"llama", 3u}, std::tuple{"llama", 1u}, std::tuple{"qwen2", 2u},
                                           std::tuple{"qwen3", 2u}, std::tuple{"qwen3", 1u}, std::tuple{"phi3", 3u},
                                           std::tuple{"gemma2", 2u}, std::tuple{"gemma3", 2u}, std::tuple{"gemma3", 1u},
                                           std::tuple{"mistral3", 2u}, std::tuple{"qwen2moe", 2u},
                                           std::tuple{"qwen3moe", 2u}, std::tuple{"gpt-oss", 2u}),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace motley
