// Real models in service over devices of several kinds: whatever the placement, they say what one device says.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <functional>
#include <latch>
#include <limits>

#include "base/config.hpp"
#include "engine/engine.hpp"
#include "model/real_models.hpp"
#include "planning/placements.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {
namespace {

using testing::kRealModels;
using testing::kTieLogits;
using testing::kTieLogitsF32;
using testing::Part;
using testing::StageParts;
using testing::value_of;

constexpr uint32_t kStepRows = 24, kLongPrompt = 40, kAlternatives = 20;
constexpr uint32_t kBlockSize = 16, kBlocks = 64;
constexpr uint32_t kFewBlocks = 4;             // that hold one of the texts, not all
constexpr uint32_t kSectionBlocks = 1;         // of all sections but the last
constexpr uint32_t kSmallBlock = 2;            // positions, so that a short text has several
constexpr double kReferenceDifference = 1e-4;  // of log-probabilities

using Texts = std::vector<std::vector<SampledToken>>;

// The devices of all placements, and by their indices what each of them cuts.
constexpr const char* kDevices = "CPU:0/cores=0,CPU:0/cores=1,SIM:gpu-like,SIM:slow-gpu-like,SIM:intel-npu-like";
enum : size_t { kCore, kOtherCore, kGpu, kSlowGpu, kNpu, kDeviceCount };

// Beside the stages, as a second lane: the KV that their pool cannot hold, with `owner`; or a lane on `owner` alone
// that decodes, while the stages prefill and `owner` attends for them.
enum class Beside { kNothing, kKvLane, kDecoder };

struct PlacementCase {
  const char* name;
  std::vector<StageParts> stages;  // of parts {device, heads, ffn, vocab}
  bool same_order = false;         // nothing is summed over devices: the same bits as on one
  Beside beside = Beside::kNothing;
  size_t owner = 0;
  std::vector<size_t> sections = {};  // owners of further sections of the pool, whose first is short
};

const std::vector<PlacementCase>& cases() {
  static const std::vector<PlacementCase> all = {
      {"two cores, uneven", {{1, {{kCore, 2, 1, 3}, {kOtherCore, 1, 2, 2}}}}},
      {"core and GPU, uneven", {{1, {{kCore, 1, 2, 1}, {kGpu, 2, 5, 3}}}}},
      {"three, uneven", {{1, {{kCore, 1, 2, 3}, {kOtherCore, 1, 3, 1}, {kGpu, 1, 4, 2}}}}},
      {"no heads on one", {{1, {{kCore, 1, 1, 1}, {kGpu, 0, 3, 1}}}}},
      {"no FFN on one", {{1, {{kGpu, 1, 0, 1}, {kOtherCore, 2, 1, 1}}}}},
      {"heads here, FFN there", {{1, {{kCore, 1, 0, 0}, {kGpu, 0, 1, 1}}}}, true},
      {"vocabulary alone on one", {{1, {{kGpu, 1, 1, 5}, {kSlowGpu, 0, 0, 1}}}}, true},
      {"replicated KV heads", {{1, {{kCore, 1, 2, 1}, {kGpu, 2, 3, 2}}, true}}},
      {"replicated, and none on a third", {{1, {{kCore, 1, 1, 1}, {kSlowGpu, 0, 1, 0}, {kGpu, 1, 2, 1}}, true}}},
      {"pipeline of two", {{1, {{kCore}}}, {2, {{kGpu}}}}, true},
      {"pipeline of three", {{3, {{kGpu}}}, {1, {{kSlowGpu}}}, {2, {{kOtherCore}}}}, true},
      {"two, then one", {{2, {{kCore, 2, 1, 1}, {kGpu, 1, 2, 1}}}, {1, {{kOtherCore}}}}},
      {"one, then two", {{1, {{kSlowGpu}}}, {5, {{kCore, 1, 1, 1}, {kGpu, 2, 1, 3}}}}},
      {"a core attends for the GPU", {{1, {{kGpu, 1, 1, 0, kCore}, {kCore, 0, 0, 1}}}}, true},
      {"one core computes, one attends", {{1, {{kCore, 1, 1, 1, kOtherCore}}}}, true},
      {"attended in two shards", {{1, {{kGpu, 2, 1, 1, kCore}, {kSlowGpu, 1, 2, 1, kOtherCore}}}}},
      {"a core attends for the NPU", {{1, {{kNpu, 1, 1, 0, kCore}, {kCore, 0, 0, 1}}}}},
      {"columns alone on the NPU", {{1, {{kCore, 1, 1, 1}, {kNpu, 0, 2, 0}}}}},
      {"a pipeline, the second attended", {{1, {{kGpu}}}, {1, {{kSlowGpu, 1, 1, 1, kCore}}}}, true},
      {"KV of the GPU, and of a core", {{1, {{kGpu}}}}, true, Beside::kKvLane, kCore},
      {"KV of two, and of one of them", {{1, {{kCore, 1, 1, 1}, {kGpu, 2, 3, 2}}}}, false, Beside::kKvLane, kCore},
      {"KV of a pipeline, and of a third", {{1, {{kGpu}}}, {2, {{kSlowGpu}}}}, true, Beside::kKvLane, kOtherCore},
      {"the GPU prefills, a core decodes", {{1, {{kGpu, 1, 1, 1}}}}, true, Beside::kDecoder, kCore},
      {"the NPU prefills, a core decodes", {{1, {{kNpu, 1, 1, 0}, {kCore, 0, 0, 1}}}}, false, Beside::kDecoder, kCore},
      {"sections of the GPU and of a core", {{1, {{kGpu}}}}, false, Beside::kNothing, 0, {kCore}},
      {"sections of three", {{1, {{kGpu}}}}, false, Beside::kNothing, 0, {kSlowGpu, kCore}},
      {"sections of two shards and of a third",
       {{1, {{kCore, 1, 1, 1}, {kGpu, 2, 3, 2}}}},
       false,
       Beside::kNothing,
       0,
       {kOtherCore}},
      {"sections of the NPU's core and of the GPU",
       {{1, {{kNpu, 1, 1, 0, kCore}, {kCore, 0, 0, 1}}}},
       false,
       Beside::kNothing,
       0,
       {kGpu}},
      {"sections of a pipeline and of a third",
       {{1, {{kGpu}}}, {2, {{kSlowGpu}}}},
       false,
       Beside::kNothing,
       0,
       {kOtherCore}},
      {"two, then two",
       {{3, {{kCore, 1, 1, 1}, {kGpu, 1, 2, 1}}, true}, {1, {{kSlowGpu, 0, 1, 1}, {kOtherCore, 1, 3, 6}}}}},
  };
  return all;
}

DeviceSet open_listed(const DeviceRegistry& registry, const std::string& list) {
  return value_of(DeviceSet::open(value_of(parse_device_list(registry, list)), {}));
}

// As many openings of the reference as there are devices to cut for, each under a name of its own.
DeviceSet open_references(const DeviceRegistry& registry, size_t count) {
  std::vector<ListedDevice> listed;
  for (size_t i = 0; i < count; ++i) {
    listed.push_back(value_of(parse_device_list(registry, "REF:0")).at(0));
    listed.back().description.name += fmt::format("/{}", i);
  }
  return value_of(DeviceSet::open(std::move(listed), {}));
}

// What all placements are asked.
struct Question {
  std::vector<std::vector<TokenId>> prompts;
  uint32_t tokens = 0;  // of each answer
  int32_t kv_dtype = 0;
  double tie_logits = 0;  // the contract's epsilon
  uint32_t block_size = kBlockSize;
};

// An executor that takes over once so many tokens are there.
struct Move {
  size_t after = 0;
  std::function<Result<Executor*>()> make;
};

std::unique_ptr<Engine> engine_of(Executor& executor, const Question& question) {
  EngineOptions options;
  options.max_num_batched_tokens = kStepRows;
  options.max_num_seqs = static_cast<uint32_t>(question.prompts.size());
  return value_of(Engine::create(executor, options));
}

// The greedy answers, all asked for at once.
Texts answers(Engine& engine, const Question& question, const Move* move = nullptr, EngineStats* stats = nullptr) {
  const size_t count = question.prompts.size();
  Texts texts(count);
  std::latch unfinished(static_cast<std::ptrdiff_t>(count));
  std::atomic<size_t> drawn{0};
  for (size_t i = 0; i < count; ++i) {
    Request request;
    request.prompt = question.prompts[i];
    request.params.temperature = 0;
    request.params.max_tokens = question.tokens;
    request.params.ignore_eos = true;
    request.params.logprobs = kAlternatives;
    request.on_update = [&, &text = texts[i]](const RequestUpdate& update) {
      drawn += update.tokens.size();
      drawn.notify_all();
      CHECK(update.status.ok(), "{}", update.status.message());
      text.insert(text.end(), update.tokens.begin(), update.tokens.end());
      if (update.finished) unfinished.count_down();
    };
    value_of(engine.submit(std::move(request)));
  }
  if (move != nullptr) {
    for (size_t seen = 0; seen < move->after; seen = drawn) drawn.wait(seen);
    const Status moved = engine.replace(move->make).take();
    EXPECT_TRUE(moved.ok()) << moved.message();
  }
  unfinished.wait();
  if (stats != nullptr) *stats = engine.stats();
  return texts;
}

std::unique_ptr<RuntimeExecutor> executor_of(const Model& model, const DeviceSet& devices, Placement placement,
                                             const Question& question) {
  placement.kv_dtype = question.kv_dtype;
  placement.block_size = question.block_size;
  for (Lane& lane : placement.lanes) lane.kv_blocks = lane.kv_blocks > 0 ? lane.kv_blocks : kBlocks;
  RuntimeOptions options;
  options.rows_max = kStepRows;
  options.logit_rows_max = static_cast<uint32_t>(question.prompts.size());
  return value_of(RuntimeExecutor::create(model, placement, devices.named(), options));
}

// The placement in service. Every device of it works.
Texts serve(const Model& model, const DeviceSet& devices, const Placement& placement, const Question& question,
            EngineStats* stats = nullptr) {
  const auto executor = executor_of(model, devices, placement, question);
  Texts texts = answers(*engine_of(*executor, question), question, nullptr, stats);
  for (const DriverReport& report : executor->reports()) EXPECT_GT(report.work.programs, 0u) << report.device;
  return texts;
}

struct Tally {
  size_t equal = 0, ties = 0;
  double widest = 0;  // difference of log-probabilities of the same rank where tokens are equal
};

// By how much the one device's logit of its own token is above that of another, in its own run.
double gap(const SampledToken& own, TokenId other) {
  const auto found = std::find_if(own.top.begin(), own.top.end(), [&](const auto& each) { return each.id == other; });
  return found == own.top.end() ? std::numeric_limits<double>::infinity() : own.logprob - found->logprob;
}

// Up to where the texts part: what follows there is two answers to two questions.
void compare(const std::vector<SampledToken>& want, const std::vector<SampledToken>& got, double tie_logits,
             Tally* tally) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i].id != want[i].id) {
      const double apart = gap(want[i], got[i].id);
      EXPECT_LT(apart, tie_logits) << "token " << i;
      tally->ties += apart < tie_logits ? 1 : 0;
      return;
    }
    ++tally->equal;
    ASSERT_EQ(got[i].top.size(), want[i].top.size());
    for (size_t k = 0; k < want[i].top.size(); ++k)
      tally->widest = std::max(tally->widest, std::abs(double{got[i].top[k].logprob} - double{want[i].top[k].logprob}));
  }
}

class RealPlacements : public testing::RealModelTest {
 protected:
  void SetUp() override {
    RealModelTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    model_ = value_of(Model::load(path_));
    shape_ = value_of(shape_of(*model_));
  }

  std::vector<TokenId> prompt(size_t index) const { return golden_["greedy"][index]["prompt_ids"]; }
  std::vector<TokenId> long_prompt() const {  // of more rows than a step has
    const std::vector<TokenId> text = golden_["texts"][1]["ids"];
    return {text.begin(), text.begin() + kLongPrompt};
  }

  Placement placement_of(const PlacementCase& c, const DeviceSet& devices) const {
    std::vector<StageParts> attended = c.stages;
    for (StageParts& stage : attended) {
      for (Part& part : stage.parts)
        if (part.heads > 0 && part.device != c.owner) part.partner = c.owner;
    }
    switch (c.beside) {
      case Beside::kNothing: {
        Placement placement = testing::place(shape_, devices, c.stages);
        if (!c.sections.empty()) placement.lanes[0].kv_blocks = kSectionBlocks;
        for (const size_t owner : c.sections)
          placement.lanes[0].sections.push_back({devices.listed(owner).description.name, kSectionBlocks});
        if (!c.sections.empty()) placement.lanes[0].sections.back().blocks = kBlocks;
        return placement;
      }
      case Beside::kKvLane: {
        Placement placement = testing::place(shape_, devices, c.stages);
        placement.lanes[0].kv_blocks = kFewBlocks;
        placement.lanes.push_back(testing::place(shape_, devices, attended).lanes[0]);
        placement.lanes[1].kv_blocks = kBlocks;
        placement.lanes[1].pool = 1;
        return placement;
      }
      case Beside::kDecoder: break;
    }
    Placement placement = testing::place(shape_, devices, attended);
    placement.lanes.push_back(testing::on_one(shape_, devices, c.owner).lanes[0]);
    placement.lanes[0].kv_blocks = placement.lanes[1].kv_blocks = kBlocks;
    placement.lanes[0].decodes = placement.lanes[1].prefills = false;
    return placement;
  }

  // One placement's answers against what one device said.
  Tally judge(const Texts& want, const PlacementCase& c, const DeviceSet& devices, const Question& question) const {
    const Texts got = serve(*model_, devices, placement_of(c, devices), question);
    Tally tally;
    for (size_t s = 0; s < want.size(); ++s) {
      SCOPED_TRACE(fmt::format("a prompt of {} tokens", question.prompts[s].size()));
      EXPECT_EQ(want[s].size(), question.tokens);
      compare(want[s], got[s], question.tie_logits, &tally);
    }
    std::printf("%-32s %zu tokens equal, %zu ties, log-probabilities within %.1e\n", c.name, tally.equal, tally.ties,
                tally.widest);
    return tally;
  }
  Texts alone(const DeviceSet& one, const Question& question) const {
    return serve(*model_, one, testing::on_one(shape_, one, 0), question);
  }

  const DeviceRegistry registry_ = DeviceRegistry::scan(plugin_directory());
  std::unique_ptr<Model> model_;
  ModelShape shape_;
};

// The formats and kernels that `motley serve` picks by default. They round activations to int8, so that sums in another
// order soon differ by as much as that rounding does: there the texts are compared, tie-aware.
TEST_P(RealPlacements, EveryMixOfDevices_SaysWhatOneDeviceSays) {
  const Question question{{prompt(3), prompt(5), prompt(7), long_prompt()}, 12, MOTLEY_F16, kTieLogits};
  const Texts want = alone(open_listed(registry_, "CPU:0"), question);
  const DeviceSet devices = open_listed(registry_, kDevices);
  Tally all;
  for (const PlacementCase& c : cases()) {
    SCOPED_TRACE(c.name);
    const Tally tally = judge(want, c, devices, question);
    all.equal += tally.equal, all.ties += tally.ties;
    EXPECT_GE(tally.equal, want.size() * question.tokens / 2);
    if (c.same_order) {
      EXPECT_EQ(tally.widest, 0);
    }
  }
  std::printf("%zu placements: %zu tokens equal, %zu ties\n", cases().size(), all.equal, all.ties);
}

// From one to the next while the answers are told: nothing is computed again, whoever keeps the KV before and after.
TEST_P(RealPlacements, MovedInMidAnswer_SaysWhatOneDeviceSays) {
  const Question question{{prompt(3), prompt(5), prompt(7), long_prompt()}, 24, MOTLEY_F16, kTieLogits};
  const Texts want = alone(open_listed(registry_, "CPU:0"), question);
  const DeviceSet devices = open_listed(registry_, kDevices);
  const auto named = [](std::string_view name) -> const PlacementCase& {
    return *std::find_if(cases().begin(), cases().end(), [&](const PlacementCase& each) { return each.name == name; });
  };
  constexpr std::pair<const char*, const char*> kMoves[] = {
      {"two cores, uneven", "three, uneven"},
      {"three, uneven", "pipeline of three"},
      {"pipeline of two", "replicated KV heads"},
      {"replicated, and none on a third", "a core attends for the NPU"},
      {"KV of the GPU, and of a core", "two, then one"},
      {"the GPU prefills, a core decodes", "KV of a pipeline, and of a third"},
      {"two, then one", "sections of three"},
      {"sections of two shards and of a third", "sections of the NPU's core and of the GPU"},
      {"sections of a pipeline and of a third", "pipeline of two"}};
  Tally all;
  for (const auto& [from, to] : kMoves) {
    SCOPED_TRACE(fmt::format("{} to {}", from, to));
    const auto first = executor_of(*model_, devices, placement_of(named(from), devices), question);
    Placement placement = placement_of(named(to), devices);
    placement.epoch = 2;
    const auto second = executor_of(*model_, devices, placement, question);
    const Move move{30, [&]() -> Result<Executor*> { return second.get(); }};
    EngineStats stats;
    const Texts got = answers(*engine_of(*first, question), question, &move, &stats);
    EXPECT_EQ(stats.replacements, 1u);
    EXPECT_GT(stats.kv_blocks_moved, 0u);
    EXPECT_EQ(stats.recomputed_tokens, 0u);
    for (size_t s = 0; s < want.size(); ++s) compare(want[s], got[s], question.tie_logits, &all);
  }
  std::printf("%zu moves: %zu tokens equal, %zu ties\n", std::size(kMoves), all.equal, all.ties);
  EXPECT_GE(all.equal, std::size(kMoves) * want.size() * question.tokens / 2);
}

// A text that the first pool has no room for any more goes on in the second.
TEST_P(RealPlacements, WhoOutgrowsItsPool_SaysWhatOneDeviceSays) {
  const Question question{{long_prompt()}, 24, MOTLEY_F16, kTieLogits};
  const Texts want = alone(open_listed(registry_, "CPU:0"), question);
  const DeviceSet devices = open_listed(registry_, kDevices);
  for (const PlacementCase& c : cases()) {
    if (c.beside != Beside::kKvLane) continue;
    SCOPED_TRACE(c.name);
    Placement placement = placement_of(c, devices);
    placement.lanes[0].kv_blocks = kLongPrompt / kBlockSize + 1;
    EngineStats stats;
    Tally tally;
    compare(want[0], serve(*model_, devices, placement, question, &stats)[0], question.tie_logits, &tally);
    EXPECT_EQ(stats.kv_blocks_moved, placement.lanes[0].kv_blocks);
    EXPECT_EQ(stats.recomputed_tokens, 0u);
  }
}

// A pool of three sections that is too short for all: sequences give their blocks back and come again, and what is
// asked twice is found, wherever its blocks lie.
TEST_P(RealPlacements, SectionsUnderLoad_PreemptAndShare) {
  const Question question{{prompt(3), prompt(5), prompt(7), long_prompt()}, 24, MOTLEY_F16, kTieLogits};
  const Texts want = alone(open_listed(registry_, "CPU:0"), question);
  const DeviceSet devices = open_listed(registry_, kDevices);
  Placement placement = testing::on_one(shape_, devices, kGpu);
  placement.kv_dtype = question.kv_dtype;
  placement.block_size = kBlockSize;
  placement.lanes[0].kv_blocks = 2;
  for (const auto& [owner, blocks] : {std::pair{kSlowGpu, 2u}, {kCore, 2u}})
    placement.lanes[0].sections.push_back({devices.listed(owner).description.name, blocks});
  RuntimeOptions options;
  options.rows_max = kStepRows;
  options.logit_rows_max = static_cast<uint32_t>(question.prompts.size());
  const auto executor = value_of(RuntimeExecutor::create(*model_, placement, devices.named(), options));
  const auto engine = engine_of(*executor, question);
  Question last = question;
  last.prompts = {question.prompts.back()};
  for (const Question* asked : std::initializer_list<const Question*>{&question, &last, &last}) {
    const Texts got = answers(*engine, *asked);
    Tally tally;
    for (size_t s = 0; s < got.size(); ++s)
      compare(want[want.size() - got.size() + s], got[s], question.tie_logits, &tally);
    EXPECT_GE(tally.equal, got.size() * question.tokens / 2);
    std::printf("%zu prompts: %zu tokens equal, %zu ties\n", got.size(), tally.equal, tally.ties);
  }
  EXPECT_EQ(engine->stats().kv_blocks_total, 6u);
  EXPECT_GT(engine->stats().preemptions, 0u);
  EXPECT_GT(engine->stats().prefix_hits, 0u);
}

// The same cuts of the same weights where nothing is rounded but to f32: no log-probability moves.
TEST_P(RealPlacements, EveryCutOnTheReference_GivesTheSameLogProbabilities) {
  const Question question{{prompt(0)}, 2, MOTLEY_F32, kTieLogitsF32, kSmallBlock};
  const DeviceSet devices = open_references(registry_, kDeviceCount);
  const Texts want = alone(devices, question);
  for (const PlacementCase& c : cases()) {
    SCOPED_TRACE(c.name);
    if (c.same_order) continue;  // compared bit by bit above
    const Tally tally = judge(want, c, devices, question);
    EXPECT_EQ(tally.equal, question.tokens);
    EXPECT_LE(tally.widest, kReferenceDifference);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RealPlacements, ::testing::ValuesIn(kRealModels),
                         [](const auto& known) { return std::string(known.param.name); });

}  // namespace
}  // namespace motley
