// What tests of placements share: one model cut over several devices in many ways, and a reader that asks what comes of
// it.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/config.hpp"
#include "device/registry.hpp"
#include "model/axes.hpp"
#include "model/random_model.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley::testing {

inline constexpr uint32_t kBlockSize = 16, kBlocks = 24;
inline constexpr int kGenerated = 6;
inline constexpr size_t kDevices = 12;

inline make_model::ModelSpec spec_of(const std::string& architecture, uint32_t kv_heads) {
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
inline std::vector<std::vector<UnitRange>> split(int64_t count, const std::vector<double>& weights, int64_t grain) {
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
inline constexpr int kStranger = 9;

struct PlacementCase {
  const char* name;
  std::vector<StageSpec> stages;
  // Of the pool, behind its first blocks. A sequence has every other block.
  uint32_t first_blocks = kBlocks;
  std::vector<KvSection> sections = {};
};

inline const std::vector<PlacementCase>& cases() {
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
      {"sections_behind_a_partner", {{1, {1}, {1}, {1}, {1}, false, {kStranger}}}, 1, {{"D10", 2}, {"D11", kBlocks}}},
      {"sections_behind_a_neighbour",
       {{1, {1, 0}, {1, 0}, {0, 1}, {1, 0}, false, {1, 1}}, {2, {1}, {1}, {1}, {1}, false, {kStranger}}},
       3,
       {{"D10", kBlocks}}},
      {"narrow_then_wide", {{1, {1}, {1}, {1}, {1}}, {1, {0, 1, 1}, {1, 1, 1}, {0, 1, 2}, {1, 1, 1}}}},
  };
  return all;
}

// Query heads of each KV head by weight: [0, a), [a, b), ... of every group.
inline void replicate(const ModelConfig& config, const std::vector<double>& weights, size_t index, Shard* shard) {
  const int64_t each = config.heads / config.kv_heads;
  const auto parts = split(each, weights, 1);
  shard->kv_heads.clear();
  if (parts[index].empty()) return;
  shard->kv_heads = {{0, config.kv_heads}};
  for (int64_t kv = 0; kv < config.kv_heads; ++kv)
    for (const UnitRange& part : parts[index])
      shard->query_heads.push_back({kv * each + part.begin, kv * each + part.end});
}

inline Placement place(const Model& model, const PlacementCase& c) {
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
    return read(executor, executor, SIZE_MAX, [] {});
  }
  // From before the n-th round of steps on with another executor, once `move` has been called.
  std::array<std::vector<Drawn>, 2> read(RuntimeExecutor& first, RuntimeExecutor& second, size_t round,
                                         const std::function<void()>& move) {
    std::array<std::vector<Drawn>, 2> drawn;
    std::array<std::vector<TokenId>, 2> texts = prompts_;
    std::array<uint32_t, 2> computed = {};
    StepId step = 0;
    for (size_t done = 0; drawn[0].size() < kGenerated || drawn[1].size() < kGenerated; ++done) {
      if (done == round) move();
      RuntimeExecutor& executor = done < round ? first : second;
      const ExecutorDescription description = executor.describe();
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

inline std::array<std::vector<Drawn>, 2> run(const Model& model, const Placement& placement, const std::string& device,
                                             bool any_rows = true) {
  const Devices devices(device, kDevices, any_rows);
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  auto executor = RuntimeExecutor::create(model, placement, devices.named(), options);
  CHECK(executor.ok(), "{}", executor.error().message());
  return Reader(model).read(**executor);
}

inline void expect_same(const std::array<std::vector<Drawn>, 2>& want, const std::array<std::vector<Drawn>, 2>& got,
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

}  // namespace motley::testing
