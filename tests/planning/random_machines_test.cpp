// `auto` on machines of random devices, against brute force by their true rates.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>

#include "model/random_model.hpp"
#include "planner/search.hpp"
#include "planning/true_costs.hpp"

namespace motley::testing {
namespace {

#ifdef MOTLEY_SANITIZED
constexpr int kMachines = 6;  // ten times slower; the planner is the same
#else
constexpr int kMachines = 200;
#endif
constexpr uint32_t kRowsMax = 32;
constexpr uint32_t kBlocks = 64;  // of KV: what all sequences need, several times
constexpr size_t kExecuted = 1;   // of what brute force finds best: running is most of the test's time
// Every other machine answers, every other reads.
constexpr Load kAnswers{.requests = 36, .concurrency = 6, .prompt_len = 2, .output_len = 14, .step_rows = 30};
constexpr Load kReads{.requests = 54, .concurrency = 6, .prompt_len = 24, .output_len = 6, .step_rows = 30};

make_model::ModelSpec tiny_model() {
  make_model::ModelSpec spec;
  spec.type = "F32";
  spec.seed = 9;
  spec.layers = 4;
  spec.hidden = 64;
  spec.heads = 8;
  spec.kv_heads = 8;
  spec.head_dim = 16;
  spec.ffn = 240;
  spec.vocab = 320;
  return spec;
}

struct RandomMachine {
  std::vector<SimDevice> devices;
  VirtualLink link;
};

RandomMachine make_machine(std::mt19937_64* random) {
  const auto uniform = [&](double low, double high) {
    return low + (high - low) * static_cast<double>((*random)() % 10000) / 9999;
  };
  const auto spread = [&](double low, double high) { return std::exp(uniform(std::log(low), std::log(high))); };
  RandomMachine machine;
  const size_t count = 2 + (*random)() % 3;
  const bool shared = (*random)() % 4 == 0;  // the first two are parts of one chip
  for (size_t d = 0; d < count; ++d) {
    SimDevice device;
    device.kind = std::array{"cpu", "gpu", "npu"}[(*random)() % 3];
    device.bandwidth_gb_s = spread(0.2, 2);
    device.gflops = device.bandwidth_gb_s * spread(1, 10);
    device.attention_gflops = device.gflops * uniform(0.3, 1);
    device.half_rows = uniform(0, 8);
    device.dispatch_us = spread(1, 15);
    device.link_gb_s = spread(0.5, 8);
    device.link_latency_us = spread(0.3, 12);
    device.jitter = uniform(0, 0.02);
    device.seed = (*random)() % 1000;
    device.declared_factor = spread(0.5, 2);
    if (shared && d < 2) device.memory_group = 91, device.contention = uniform(0, 1);
    machine.devices.push_back(device);
  }
  machine.link = {.latency_ns = spread(500, 8000), .ns_per_byte = uniform(0, 0.3)};
  return machine;
}

struct Cut {
  std::vector<TrueStage> stages;
  uint32_t micro_batches = 1;
  double ns = 0;
};

// All devices alone, all pairs and triples with a grid of shares, all pipelines of two and three with every cut.
class BruteForce {
 public:
  BruteForce(const make_model::ModelSpec& model, const RandomMachine& machine, const Load& load)
      : model_(model), load_(load), devices_(machine.devices.size()), costs_(model, machine.devices, machine.link) {}

  // Best first.
  std::vector<Cut> ranked() {
    for (size_t a = 0; a < devices_; ++a) {
      add({{static_cast<double>(model_.layers), {shard(a, 1, 1)}}}, 1);
      for (size_t b = 0; b < devices_; ++b) {
        if (b == a) continue;
        if (b > a) parallel({a, b}, 8);
        lines({a, b});
        for (size_t c = 0; c < devices_; ++c) {
          if (c == a || c == b) continue;
          if (b > a && c > b) parallel({a, b, c}, 8);
          lines({a, b, c});
        }
      }
    }
    std::stable_sort(cuts_.begin(), cuts_.end(), [](const Cut& x, const Cut& y) { return x.ns < y.ns; });
    return std::move(cuts_);
  }

 private:
  TrueShard shard(size_t device, double share, double vocab) const {
    return {device, std::round(model_.heads * share), std::round(model_.ffn * share / 16) * 16,
            model_.vocab.value_or(320) * vocab};
  }
  void add(std::vector<TrueStage> stages, uint32_t micro_batches) {
    Cut cut{std::move(stages), micro_batches, 0};
    cut.ns = costs_.load_ns(cut.stages, load_, micro_batches);
    cuts_.push_back(std::move(cut));
  }
  // Every way to give each at least one of `parts`.
  static void ways(size_t members, int parts, std::vector<int>* now, const std::function<void()>& found) {
    if (now->size() + 1 == members) {
      now->push_back(parts);
      found();
      now->pop_back();
      return;
    }
    for (int take = 1; take < parts; ++take) {
      now->push_back(take);
      ways(members, parts - take, now, found);
      now->pop_back();
    }
  }
  void parallel(const std::vector<size_t>& members, int parts) {
    std::vector<int> now;
    ways(members.size(), parts, &now, [&] {
      for (size_t vocab = 0; vocab <= members.size(); ++vocab) {  // on one of them, or by the same shares
        TrueStage stage{static_cast<double>(model_.layers), {}};
        for (size_t i = 0; i < members.size(); ++i) {
          const double share = static_cast<double>(now[i]) / parts;
          stage.shards.push_back(shard(members[i], share, vocab == members.size() ? share : vocab == i ? 1 : 0));
        }
        add({stage}, 1);
      }
    });
  }
  void lines(const std::vector<size_t>& members) {
    std::vector<int> now;
    ways(members.size(), static_cast<int>(model_.layers), &now, [&] {
      std::vector<TrueStage> stages;
      for (size_t i = 0; i < members.size(); ++i)
        stages.push_back({static_cast<double>(now[i]), {shard(members[i], 1, i == 0 || i + 1 == members.size())}});
      for (uint32_t m = 1; m <= members.size() + 1; ++m) add(stages, m);
    });
  }

  const make_model::ModelSpec& model_;
  const Load load_;
  const size_t devices_;
  TrueCosts costs_;
  std::vector<Cut> cuts_;
};

Placement placement_of(const Cut& cut, const ModelShape& shape, const VirtualMachine& machine) {
  std::vector<StageParts> stages;
  for (const TrueStage& stage : cut.stages) {
    StageParts& parts = stages.emplace_back(StageParts{stage.layers, {}});
    for (const TrueShard& shard : stage.shards)
      parts.parts.push_back({shard.device, shard.heads, shard.columns, shard.vocab});
  }
  Placement placement = place(shape, machine.devices(), stages);
  placement.lanes[0].micro_batches = cut.micro_batches;
  return placement;
}

std::string text_of(const Placement& placement) {
  std::string text = placement.lanes.size() > 1 ? fmt::format(" lane 1 of {}:", placement.lanes.size()) : "";
  for (const Stage& stage : placement.lanes[0].stages) {
    text += fmt::format(" [{}-{}:", stage.layer_begin, stage.layer_end);
    for (const Shard& shard : stage.shards) {
      const auto count = [](const std::vector<UnitRange>& ranges) {
        return ranges.empty() ? int64_t{0} : ranges[0].end - ranges[0].begin;
      };
      text += fmt::format(" {} {}h {}f {}v", shard.device.substr(shard.device.size() - 6, 1), count(shard.kv_heads),
                          count(shard.ffn_columns), count(shard.vocab_rows));
    }
    text += "]";
  }
  return text + fmt::format(" x{}", placement.lanes[0].micro_batches);
}

TEST(RandomMachines, Auto_IsNeverWorseThanTheBestDeviceAndNearTheOptimum) {
  const make_model::ModelSpec spec = tiny_model();
  const RandomModel made(spec);
  const Model& model = made.model();
  const auto shape = shape_of(model);
  ASSERT_TRUE(shape.ok());
  std::mt19937_64 random(2024);
  int several = 0, near = 0, worse = 0;
  double least_of_single = 1e9, least_of_best = 1e9, farthest = 0;
  for (int round = 0; round < kMachines; ++round) {
    const RandomMachine drawn = make_machine(&random);
    const VirtualMachine machine(drawn.devices, drawn.link);
    const PlanInput input = machine.measure(model, kRowsMax);
    const Load load = round % 2 == 0 ? kAnswers : kReads;
    const auto report = plan(*shape, input, request_of(load));
    ASSERT_TRUE(report.ok()) << report.error().message();
    const auto run = [&](Placement placement, const Load& served) {
      placement.lanes[0].kv_blocks = kBlocks;
      return VirtualRun(model, machine, placement, kRowsMax).serve(served).tokens_per_s();
    };
    Load planned = load;  // with the chunks that the plan is made for
    if (report->predicted.chunks == Chunks::kEven) {
      const uint32_t in_flight = report->predicted.micro_batches;
      planned.step_rows = report->predicted.chunk_rows + (load.concurrency + in_flight - 1) / in_flight;
    }
    const double chosen = run(report->placement, planned);
    const std::vector<Cut> cuts = BruteForce(spec, drawn, load).ranked();
    double single = 0, best = 0;
    bool best_is_several = false;
    std::string best_text;
    const auto look = [&](const Cut& cut) {
      const Placement placement = placement_of(cut, *shape, machine);
      const double got = run(placement, load);
      farthest = std::max(farthest, std::abs(got * cut.ns / (1e9 * load.requests * load.output_len) - 1));
      if (cut.stages.size() == 1 && cut.stages[0].shards.size() == 1) single = std::max(single, got);
      if (got <= best) return;
      best = got;
      best_is_several = cut.stages.size() > 1 || cut.stages[0].shards.size() > 1;
      best_text = text_of(placement);
    };
    for (size_t i = 0; i < kExecuted; ++i) look(cuts[i]);
    for (const Cut& cut : cuts) {
      if (single > 0) break;  // it is among those already
      if (cut.stages.size() == 1 && cut.stages[0].shards.size() == 1) look(cut);
    }
    least_of_single = std::min(least_of_single, chosen / single);
    if (chosen < 0.98 * single) {
      ++worse;
      std::printf("machine %d: auto%s gives %.0f (predicted %.0f), the best device alone %.0f\n", round,
                  text_of(report->placement).c_str(), chosen, report->predicted.tokens_per_s, single);
    }
    if (!best_is_several) continue;
    ++several;
    least_of_best = std::min(least_of_best, chosen / best);
    near += chosen >= 0.9 * best ? 1 : 0;
    if (chosen < 0.9 * best)
      std::printf("machine %d: auto%s gives %.0f (predicted %.0f), best%s gives %.0f\n", round,
                  text_of(report->placement).c_str(), chosen, report->predicted.tokens_per_s, best_text.c_str(), best);
  }
  std::printf(
      "%d machines: auto is at least %.3f of the best device; on %d several are best, auto reaches 90 %% of them "
      "on %d, at least %.3f; true costs in closed form are off by at most %.1f %%\n",
      kMachines, least_of_single, several, near, least_of_best, 100 * farthest);
  EXPECT_GE(several, kMachines / 4);
  EXPECT_EQ(near, several);
  EXPECT_EQ(worse, 0);
}

}  // namespace
}  // namespace motley::testing
