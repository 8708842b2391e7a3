// What a trace says of steps on several devices.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/config.hpp"
#include "device/registry.hpp"
#include "engine/engine.hpp"
#include "model/axes.hpp"
#include "model/random_model.hpp"
#include "model/trace_reader.hpp"
#include "runtime/runtime_executor.hpp"

namespace motley {
namespace {

using testing::Intervals;
using testing::RandomModel;
using testing::TraceContent;
using testing::TraceRow;
using testing::TraceSpan;

constexpr uint32_t kBlockSize = 16, kHidden = 256;
constexpr int64_t kRoundingNs = 2;  // of the format's numbers
constexpr uint32_t kSequences = 4, kPromptTokens = 8, kGenerated = 12, kStreams = 8;
constexpr const char* kGpu = "kind = \"gpu\"\nmemory_bytes = 1073741824\nbandwidth_gb_s = 20\ngflops = {f32 = 100}\n";
constexpr const char* kNpu =
    "kind = \"npu\"\nmemory_bytes = 1073741824\nbandwidth_gb_s = 20\ngflops = {f32 = 200}\ndynamic_rows = false\n"
    "paged_attention = false\nqueue_depth = 4\n";
constexpr const char* kCore =
    "kind = \"cpu\"\nmemory_bytes = 1073741824\nbandwidth_gb_s = 2\ngflops = {f32 = 20, attention = 0.2}\n";

make_model::ModelSpec spec() {
  make_model::ModelSpec made;
  made.type = "F32";
  made.layers = 4;
  made.hidden = kHidden;
  return made;
}

// A stage of one shard for each number of layers, or (`together`) one stage whose shards share every axis evenly.
Placement place(const Model& model, size_t devices, bool together) {
  const ModelAxes axes = axes_of(model);
  Placement placement;
  placement.epoch = 1;
  placement.block_size = kBlockSize;
  placement.kv_dtype = MOTLEY_F32;
  Lane& lane = placement.lanes.emplace_back();
  lane.kv_blocks = 32;
  const auto count = static_cast<int64_t>(devices);
  for (int64_t i = 0; i < count; ++i) {
    Shard shard;
    shard.device = "D" + std::to_string(i);
    const auto part = [&](int64_t units) {
      return together ? std::vector<UnitRange>{{units * i / count, units * (i + 1) / count}}
                      : std::vector<UnitRange>{{0, units}};
    };
    shard.kv_heads = part(axes.kv_heads);
    shard.ffn_columns = part(axes.ffn_columns);
    shard.vocab_rows = part(axes.vocab);
    if (lane.stages.empty() || !together) {
      const int64_t layers = model.config().layers, stages = together ? 1 : count;
      Stage& stage = lane.stages.emplace_back();
      stage.layer_begin = static_cast<uint32_t>(layers * i / stages);
      stage.layer_end = static_cast<uint32_t>(layers * (i + 1) / stages);
    }
    lane.stages.back().shards.push_back(std::move(shard));
  }
  return placement;
}

// A folder of the test's own, with simulated devices D0, D1, ... of fixed rates.
class TraceOfDevices : public ::testing::Test {
 protected:
  TraceOfDevices() : registry_(DeviceRegistry::scan(plugin_directory())) {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-trace-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
  }
  ~TraceOfDevices() override {
    close_devices();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  void close_devices() {
    named_.clear();
    devices_.clear();
  }
  void open_devices(size_t count, bool virtual_time) {
    open_devices(std::vector<const char*>(count, kGpu), virtual_time);
  }
  // By their files' texts.
  void open_devices(const std::vector<const char*>& texts, bool virtual_time) {
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::string file = folder_ / fmt::format("device{}.toml", i);
      std::ofstream(file) << texts[i];
      const auto entry = registry_.describe("SIM", file);
      CHECK(entry.ok(), "{}", entry.error().message());
      DeviceOptions options;
      options.virtual_time = virtual_time;
      auto device = Device::open(*entry->plugin, entry->description.desc.index, options);
      CHECK(device.ok(), "{}", device.error().message());
      devices_.push_back(std::make_unique<Device>(*std::move(device)));
      const motley_device_desc& desc = entry->description.desc;
      named_.push_back({.name = "D" + std::to_string(i),
                        .device = devices_.back().get(),
                        .cores = {},
                        .simulated = true,
                        .any_rows = (desc.caps & MOTLEY_CAP_DYNAMIC_ROWS) != 0,
                        .queue_depth = desc.queue_depth});
    }
  }
  void open_trace(bool virtual_time) {
    auto trace = Trace::open(folder_ / "trace.json", {.virtual_time = virtual_time});
    CHECK(trace.ok(), "{}", trace.error().message());
    trace_ = *std::move(trace);
  }
  std::unique_ptr<RuntimeExecutor> make_runtime(const Placement& placement, bool virtual_time, const Clock& clock) {
    RuntimeOptions options;
    options.rows_max = 64;
    options.logit_rows_max = kStreams;
    options.virtual_time = virtual_time;
    options.trace = trace_.get();
    auto runtime = RuntimeExecutor::create(random_.model(), placement, named_, options, clock);
    CHECK(runtime.ok(), "{}", runtime.error().message());
    return *std::move(runtime);
  }
  TraceContent read() {
    EXPECT_TRUE(trace_->close().ok());
    auto content = testing::read_trace(folder_ / "trace.json");
    CHECK(content.ok(), "{}", content.error().message());
    EXPECT_EQ(content->dropped_events, 0);
    return *std::move(content);
  }

  // Requests through an engine, on the machine's clock.
  TraceContent serve(size_t devices, bool together) {
    open_devices(devices, false);
    open_trace(false);
    auto runtime = make_runtime(place(random_.model(), devices, together), false, system_clock());
    auto engine = Engine::create(*runtime, {.max_num_seqs = kSequences}, system_clock(), nullptr, trace_.get());
    CHECK(engine.ok(), "{}", engine.error().message());
    std::array<Promise<bool>, kSequences> done;
    for (uint32_t s = 0; s < kSequences; ++s) {
      Request request;
      for (uint32_t i = 0; i < kPromptTokens + s; ++i) request.prompt.push_back(static_cast<TokenId>(7 * s + i));
      request.params.max_tokens = kGenerated;
      request.params.ignore_eos = true;
      request.on_update = [&done, s](const RequestUpdate& update) {
        if (update.finished) done[s].set(*update.finished == FinishReason::kLength);
      };
      CHECK((*engine)->submit(std::move(request)).ok());
    }
    for (auto& each : done) EXPECT_TRUE(each.future().take());
    engine->reset();
    runtime.reset();
    return read();
  }

  RandomModel random_{spec()};
  std::filesystem::path folder_;
  DeviceRegistry registry_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<NamedDevice> named_;
  std::unique_ptr<Trace> trace_;
};

const TraceRow& row(const TraceContent& trace, const std::string& name) {
  const TraceRow* found = trace.find(name);
  CHECK(found != nullptr, "there is no track {}", name);
  return *found;
}
const TraceRow& device_row(const TraceContent& trace, int device) {
  return row(trace, "D" + std::to_string(device) + " SIMULATED: programs, copies");
}
const TraceRow& meeting_row(const TraceContent& trace, int device) {
  return row(trace, "D" + std::to_string(device) + " SIMULATED: meetings");
}

void expect_no_overlap(const TraceContent& trace) {
  for (const TraceRow& each : trace.rows) {
    for (size_t i = 1; i < each.spans.size(); ++i) {
      const TraceSpan &before = each.spans[i - 1], &after = each.spans[i];
      EXPECT_LE(before.end_ns, after.begin_ns + kRoundingNs)
          << each.name << ": " << before.name << ", " << after.name << " " << i;
    }
  }
}

bool inside(const TraceSpan& inner, const TraceSpan& outer) {
  return inner.begin_ns + kRoundingNs >= outer.begin_ns && inner.end_ns <= outer.end_ns + kRoundingNs;
}

// The scheduler's steps by id.
std::map<int64_t, TraceSpan> steps_of(const TraceContent& trace) {
  std::map<int64_t, TraceSpan> steps;
  for (const TraceRow& each : trace.rows) {
    if (each.group != "scheduler") continue;
    for (const TraceSpan& span : each.spans) EXPECT_TRUE(steps.try_emplace(span.argument("step"), span).second);
  }
  return steps;
}

// Every step ran on the device: the cuts, in this order, within the time that the scheduler saw.
void expect_steps(const TraceContent& trace, int device, const std::vector<std::string>& cuts) {
  const std::map<int64_t, TraceSpan> steps = steps_of(trace);
  std::map<int64_t, std::vector<TraceSpan>> programs;
  for (const TraceSpan& span : device_row(trace, device).spans)
    if (span.arguments.contains("step")) programs[span.argument("step")].push_back(span);
  EXPECT_EQ(programs.size(), steps.size());
  for (const auto& [id, step] : steps) {
    SCOPED_TRACE("step " + std::to_string(id));
    const auto& ran = programs[id];
    std::vector<std::string> names;
    for (const TraceSpan& span : ran) {
      names.push_back(span.name);
      EXPECT_TRUE(inside(span, step)) << span.name;
      if (span.name == "head" || span.name == "sample") {
        EXPECT_LE(span.argument("rows"), step.argument("sequences"));
      } else {
        EXPECT_EQ(span.argument("rows"), step.argument("rows"));
      }
    }
    EXPECT_EQ(names, cuts);
  }
}

void expect_scheduler(const TraceContent& trace) {
  int64_t prompt_rows = 0, generated_rows = 0;
  for (const auto& [id, step] : steps_of(trace)) {
    EXPECT_EQ(step.argument("status"), MOTLEY_OK);
    EXPECT_GE(step.argument("sequences"), 1);
    prompt_rows += step.argument("prompt_rows");
    generated_rows += step.argument("generated_rows");
    const bool prompt = step.argument("prompt_rows") > 0, generated = step.argument("generated_rows") > 0;
    EXPECT_EQ(step.name, prompt && generated ? "prefill and decode" : prompt ? "prefill" : "decode");
  }
  EXPECT_EQ(prompt_rows, 4 * kPromptTokens + 0 + 1 + 2 + 3);
  EXPECT_GE(generated_rows, int64_t{kSequences} * (kGenerated - 1));  // one row more where a step was planned ahead
}

TEST_F(TraceOfDevices, Pipeline_HasEveryStepOnBothStages) {
  const TraceContent trace = serve(2, false);
  EXPECT_EQ(trace.clock, "CLOCK_MONOTONIC");
  expect_no_overlap(trace);
  expect_scheduler(trace);
  expect_steps(trace, 0, {"embed", "stage"});
  expect_steps(trace, 1, {"stage", "head", "sample"});
  const std::vector<TraceSpan> sends = meeting_row(trace, 0).named("send"),
                               receives = meeting_row(trace, 1).named("receive");
  const std::map<int64_t, TraceSpan> steps = steps_of(trace);
  ASSERT_EQ(sends.size(), steps.size());
  ASSERT_EQ(receives.size(), steps.size());
  for (size_t i = 0; i < sends.size(); ++i) {
    const int64_t step = sends[i].argument("step");
    EXPECT_EQ(receives[i].argument("step"), step);
    for (const TraceSpan& meeting : {sends[i], receives[i]}) {
      EXPECT_EQ(meeting.argument("bytes"), steps.at(step).argument("rows") * kHidden * 4);
      EXPECT_TRUE(inside(meeting, steps.at(step)));
    }
  }
  const std::vector<TraceSpan> copies = device_row(trace, 0).named("copy to host");  // what is sent
  ASSERT_EQ(copies.size(), sends.size());
  for (size_t i = 0; i < copies.size(); ++i) {
    EXPECT_TRUE(inside(copies[i], sends[i])) << i;
    EXPECT_EQ(copies[i].argument("bytes"), sends[i].argument("bytes"));
  }
  EXPECT_EQ(device_row(trace, 1).named("copy to device").size(), steps.size());
}

TEST_F(TraceOfDevices, TensorParallelPair_MeetsTwiceALayer) {
  const TraceContent trace = serve(2, true);
  expect_no_overlap(trace);
  expect_scheduler(trace);
  const auto steps = static_cast<int64_t>(steps_of(trace).size());
  std::vector<std::string> cuts = {"embed"};
  for (uint32_t layer = 0; layer < spec().layers; ++layer) cuts.insert(cuts.end(), {"attention part", "ffn part"});
  cuts.insert(cuts.end(), {"ffn part", "head"});  // what the last sum is added in
  expect_steps(trace, 1, cuts);
  cuts.push_back("sample");
  expect_steps(trace, 0, cuts);
  for (const int device : {0, 1}) {
    const TraceRow& meetings = meeting_row(trace, device);
    // The embedding's sum, and two a layer.
    EXPECT_EQ(meetings.named("reduce").size(), static_cast<size_t>(steps * (1 + 2 * spec().layers)));
    EXPECT_EQ(meetings.named("logits").size(), static_cast<size_t>(steps));
    EXPECT_EQ(meetings.named("tokens").size(), static_cast<size_t>(steps));
  }
}

TEST_F(TraceOfDevices, DeviceAlone_KeepsTheStepsThatAreEnqueuedAhead) {
  const TraceContent trace = serve(1, false);
  expect_no_overlap(trace);
  expect_scheduler(trace);
  expect_steps(trace, 0, {"embed", "stage", "head", "sample"});
  EXPECT_TRUE(meeting_row(trace, 0).spans.empty());
}

// One step of some sequences, whose next token of each is known.
StepPlan plan_of(StepId id, const std::vector<uint32_t>& sequences, std::array<uint32_t, kStreams>* computed,
                 uint32_t rows_each) {
  StepPlan plan;
  plan.epoch = 1;
  plan.step = id;
  for (const uint32_t s : sequences) {
    const auto row_begin = static_cast<uint32_t>(plan.tokens.size());
    for (uint32_t r = 0; r < rows_each; ++r) {
      plan.tokens.push_back(static_cast<TokenId>(s + r));
      plan.positions.push_back(static_cast<int32_t>((*computed)[s] + r));
      plan.generated.push_back((*computed)[s] > 0);
    }
    const uint32_t context = (*computed)[s] += rows_each;
    const uint32_t blocks = (context + kBlockSize - 1) / kBlockSize;
    plan.sequences.push_back({s, row_begin, rows_each, context, static_cast<uint32_t>(plan.blocks.size()), blocks,
                              static_cast<uint32_t>(plan.logit_rows.size()), 1});
    for (uint32_t b = 0; b < blocks; ++b) plan.blocks.push_back(static_cast<BlockId>(b * kStreams + s));
    plan.logit_rows.push_back(static_cast<int32_t>(plan.tokens.size()) - 1);
    motley_sample_row sample{};
    sample.top_p = sample.repetition_penalty = 1;
    sample.position = context;
    sample.top_logprobs = -1;
    sample.out_slot = -1;
    plan.samples.push_back(sample);
  }
  plan.token_slots.assign(plan.tokens.size(), -1);
  return plan;
}

int64_t programs_ns(const TraceRow& device) {
  int64_t all_ns = 0;
  for (const TraceSpan& span : device.spans)
    if (span.name != "copy") all_ns += span.end_ns - span.begin_ns;
  return all_ns;
}

using Turns = std::array<std::vector<uint32_t>, 2>;

// Two steps of some sequences each take turns: as soon as one has its tokens, it begins anew. The clock stands at what
// is known then, so that each run gives the same times.
void alternate(RuntimeExecutor& runtime, const Turns& turns, ManualClock* clock) {
  std::array<uint32_t, kStreams> computed = {};
  struct UnderWay {
    int64_t submitted_ns;
    Future<StepResult> result;
  };
  std::deque<UnderWay> flying;
  int64_t last_ns = 0;
  for (StepId id = 0; id < 2 * kGenerated || !flying.empty();) {
    if (flying.size() == 2 || id == 2 * kGenerated) {
      const StepResult result = flying.front().result.take();
      ASSERT_TRUE(result.status.ok()) << result.status.message();
      last_ns = std::max(last_ns, flying.front().submitted_ns) + result.busy_ns;
      flying.pop_front();
      clock->advance_ns(std::max<int64_t>(0, last_ns - clock->now_ns()));
    }
    if (id == 2 * kGenerated) continue;
    StepPlan plan = plan_of(id + 1, turns[id % 2], &computed, id < 2 ? kPromptTokens : 1);
    ++id;
    flying.push_back({clock->now_ns(), runtime.submit(std::move(plan))});
  }
}

TEST_F(TraceOfDevices, BalancedPipelineInVirtualTime_OverlapsByMoreThanThreeFifths) {
  open_devices(2, true);
  open_trace(true);
  ManualClock clock;
  {
    auto runtime = make_runtime(place(random_.model(), 2, false), true, clock);
    alternate(*runtime, {{{0, 1}, {2, 3}}}, &clock);
  }
  const TraceContent trace = read();
  EXPECT_EQ(trace.clock, "virtual");
  expect_no_overlap(trace);
  const Intervals first = busy(device_row(trace, 0).spans), second = busy(device_row(trace, 1).spans);
  EXPECT_GE(testing::overlap(first, second), 0.6);
  EXPECT_LT(testing::overlap(first, second), 1.0);  // the first step has nobody to overlap with
  EXPECT_GT(testing::length_ns(first), 0);
  EXPECT_EQ(device_row(trace, 0).named("stage").size(), 2 * kGenerated);
  EXPECT_EQ(device_row(trace, 1).named("sample").size(), 2 * kGenerated);
  EXPECT_LE(std::max(first.back().second, second.back().second), clock.now_ns());
}

// One computes the layers of one step while the other attends for the other, and has the vocabulary. By what all of it
// took: work that the host asks for late is put into the gaps of others' virtual time, and shown in one piece, so that
// spans lie as the host's threads are scheduled. Such delays only ever add: the best run of some counts.
TEST_F(TraceOfDevices, DeviceAndItsPartnerInVirtualTime_OverlapByMoreThanThreeFifths) {
  Placement placement = place(random_.model(), 1, false);
  std::vector<Shard>& shards = placement.lanes[0].stages[0].shards;
  shards.resize(2);
  shards[0].partner = shards[1].device = "D1";
  shards[1].vocab_rows = std::exchange(shards[0].vocab_rows, {});
  double best = -1;
  for (int run = 0; run < 5 && best < 0.6; ++run) {
    open_devices({kNpu, kCore}, true);
    open_trace(true);
    ManualClock clock;
    {
      auto runtime = make_runtime(placement, true, clock);
      alternate(*runtime, {{{0, 1, 2, 3}, {4, 5, 6, 7}}}, &clock);
    }
    const TraceContent trace = read();
    const int64_t npu_ns = programs_ns(device_row(trace, 0)), core_ns = programs_ns(device_row(trace, 1));
    const auto end_ns = std::max(busy(device_row(trace, 0).spans).back().second,  //
                                 busy(device_row(trace, 1).spans).back().second);
    ASSERT_GT(npu_ns, 0);
    ASSERT_LE(npu_ns, core_ns);
    best = std::max(best, static_cast<double>(npu_ns + core_ns - end_ns) / static_cast<double>(npu_ns));
    std::printf("programs of %lld and %lld ns within %lld ns\n", static_cast<long long>(npu_ns),
                static_cast<long long>(core_ns), static_cast<long long>(end_ns));
    close_devices();
  }
  EXPECT_GE(best, 0.6);  // of the less busy one's time
}

TEST(TraceReader, Intervals_AreJoinedAndIntersected) {
  const auto span = [](int64_t begin, int64_t end) { return TraceSpan{"x", begin, end, {}}; };
  const Intervals a = testing::busy({span(10, 20), span(0, 5), span(15, 18), span(20, 30), span(40, 40)});
  EXPECT_EQ(a, (Intervals{{0, 5}, {10, 30}}));
  const Intervals b = {{4, 12}, {25, 50}};
  EXPECT_EQ(testing::intersection(a, b), (Intervals{{4, 5}, {10, 12}, {25, 30}}));
  EXPECT_EQ(testing::length_ns(a), 25);
  EXPECT_DOUBLE_EQ(testing::overlap(a, b), 8.0 / 25);
  EXPECT_DOUBLE_EQ(testing::overlap(a, {}), 0);
}

}  // namespace
}  // namespace motley
