// Several lanes on virtual time: KV over owners, and roles, as planned and as they come out.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <random>

#include "base/trace.hpp"
#include "model/random_model.hpp"
#include "model/trace_reader.hpp"
#include "planner/plan_picture.hpp"
#include "planner/search.hpp"
#include "planning/placements.hpp"
#include "planning/virtual_run.hpp"
#include "planning/virtual_service.hpp"

namespace motley::testing {
namespace {

constexpr uint32_t kRowsMax = 128;

make_model::ModelSpec lanes_model() {
  make_model::ModelSpec spec;
  spec.type = "F32";
  spec.seed = 5;
  spec.layers = 6;
  spec.hidden = 128;
  spec.heads = spec.kv_heads = 8;
  spec.head_dim = 16;
  spec.ffn = 512;
  spec.vocab = 320;
  return spec;
}

// Seconds of a request, as many of a kind at once as the load says.
struct RoleTimes {
  double decode, prompt;   // on the device that decodes
  double other, attended;  // of a prompt on the one that does not; of that, what the decoding one attends
};

class PlannedLanes : public ::testing::Test {
 protected:
  PlannedLanes() : random_(lanes_model()), shape_(*shape_of(random_.model())) {}
  const Model& model() const { return random_.model(); }
  Served serve(const VirtualMachine& machine, const Placement& placement, const Load& load) const {
    return VirtualRun(model(), machine, placement, kRowsMax).serve(load);
  }

  RoleTimes role_times(const VirtualMachine& machine, const Placement& roles, Load load) const;

  const RandomModel random_;
  const ModelShape shape_;
};

// A GPU of whose memory nine tenths are weights, beside a processor a tenth as fast: what is gained over the GPU alone,
// of what both would give that read all the time: the processor KV, the GPU its full memory.
TEST_F(PlannedLanes, KvWithTheProcessor_GainsMostOfTheCeiling) {
  constexpr double kFilled = 0.9, kSlower = 0.1;
  SimDevice gpu{.gflops = 4000, .attention_gflops = 4000, .bandwidth_gb_s = 10, .dispatch_us = 2};
  SimDevice cpu = scaled(gpu, kSlower);
  cpu.kind = "cpu";
  const VirtualMachine machine({gpu, cpu}, {.latency_ns = 2000, .ns_per_byte = 0.1});
  PlanInput input = machine.measure(model(), kRowsMax);
  input.devices[0].memory_free = static_cast<uint64_t>(static_cast<double>(shape_.weight_bytes()) / kFilled);
  for (DeviceProfile& device : input.devices) device.own_memory = true;
  const Load load{.requests = 400, .concurrency = 100, .prompt_len = 8, .output_len = 24, .step_rows = 104};
  PlanRequest request = request_of(load);
  request.step_bytes = 64 << 10;
  const auto report = plan(shape_, input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  std::printf("%s", plan_text(*report, shape_).c_str());
  ASSERT_EQ(report->placement.lanes.size(), 2u);
  PlanInput one = input;
  one.devices.resize(1);
  one.links.clear();
  const auto alone = plan(shape_, one, request);
  ASSERT_TRUE(alone.ok()) << alone.error().message();
  std::printf("%s", plan_text(*alone, shape_).c_str());
  const double without = serve(machine, alone->placement, load).tokens_per_s();
  const double with = serve(machine, report->placement, load).tokens_per_s();
  const double ceiling = kSlower / (1 - kFilled);  // of the gain
  std::printf("alone %.0f (predicted %.0f), with lanes %.0f (predicted %.0f): %.0f %% of the ceiling's gain\n", without,
              alone->predicted.tokens_per_s, with, report->predicted.tokens_per_s,
              100 * (with / without - 1) / ceiling);
  EXPECT_GE(with / without - 1, 0.7 * ceiling);
}

// Alone.
bool is_on(const Placement& placement, const std::string& device) {
  const std::vector<Stage>& stages = placement.lanes[0].stages;
  return placement.lanes.size() == 1 && stages.size() == 1 && stages[0].shards.size() == 1 &&
         stages[0].shards[0].device == device && stages[0].shards[0].partner.empty();
}

// Owners with 8, 32 and 128 MB beside the weights that the fastest holds, in service: each device holds what the plan
// says, within 2 %, and all pools as many tokens. Pools that all had the size of the least would hold a sixth.
TEST_F(PlannedLanes, UnevenMemories_HoldWhatThePlanSays) {
  constexpr uint64_t kMb = 1'000'000;
  constexpr uint32_t kRows = 64;
  SimDevice gpu{.gflops = 4000, .attention_gflops = 4000, .bandwidth_gb_s = 100, .dispatch_us = 2};
  SimDevice owner{.gflops = 40, .attention_gflops = 400, .bandwidth_gb_s = 15, .dispatch_us = 2}, large = owner;
  const uint64_t weights = static_cast<uint64_t>(shape_.weight_bytes());
  gpu.memory_bytes = weights + 8 * kMb;
  owner.memory_bytes = 32 * kMb, large.memory_bytes = 128 * kMb;
  SimDevice roomy = gpu, roomy_owner = owner;  // measuring takes memory of its own
  roomy.memory_bytes = roomy_owner.memory_bytes = uint64_t{1} << 30;
  const VirtualLink link{.latency_ns = 2000, .ns_per_byte = 0.05};
  const VirtualMachine measured({roomy, roomy_owner, roomy_owner}, link), machine({gpu, owner, large}, link);
  PlanInput input = renamed(measured.measure(model(), kRowsMax), measured, machine);
  const uint64_t memories[] = {gpu.memory_bytes, owner.memory_bytes, large.memory_bytes};
  for (size_t d = 0; d < 3; ++d) {
    input.devices[d].memory_free = input.devices[d].memory_total = memories[d];
    input.devices[d].own_memory = true;
  }
  const Load load{.requests = 64, .concurrency = 4096, .prompt_len = 16, .output_len = 16, .step_rows = kRows};
  PlanRequest request = request_of(load);
  RuntimeOptions options;
  options.rows_max = options.logit_rows_max = kRows;
  request.buffers = *step_buffers(model(), machine.devices().device(0), options);
  request.step_bytes = step_bytes(request.buffers, shape_.hidden, shape_.vocab);
  const auto report = plan(shape_, input, request);
  ASSERT_TRUE(report.ok()) << report.error().message();
  std::printf("%s", plan_text(*report, shape_).c_str());
  ASSERT_EQ(report->placement.lanes.size(), 3u);
  VirtualRun run(model(), machine, report->placement, kRows);
  run.serve({.requests = 192, .concurrency = 192, .prompt_len = 16, .output_len = 4, .step_rows = kRows});
  double tokens = 0, least = INFINITY;
  for (const KvPoolDescription& pool : run.describe().pools) {
    tokens += pool.blocks * pool.block_size;
    least = std::min(least, 1.0 * pool.blocks * pool.block_size);
  }
  EXPECT_NEAR(tokens, static_cast<double>(report->kv_capacity_tokens), 0.02 * tokens);
  EXPECT_GE(tokens, 6 * 3 * least);
  double kv_bytes = 0;
  for (const DeviceShare& share : report->devices) {
    kv_bytes += static_cast<double>(share.kv_bytes);
    const auto planned = static_cast<double>(share.weight_bytes + share.kv_bytes + share.step_bytes);
    const size_t d = *machine.devices().find(share.device);
    const auto resident = static_cast<double>(machine.devices().device(d).stats()->bytes_resident);
    std::printf("%s: %.0f planned, %.0f resident\n", share.device.c_str(), planned, resident);
    EXPECT_NEAR(resident, planned, 0.02 * planned) << share.device;
    EXPECT_GE(resident, 0.75 * static_cast<double>(memories[d])) << share.device << ": little lies idle";
  }
  EXPECT_NEAR(kv_bytes / kv_bytes_per_token(shape_, request), tokens, 0.02 * tokens);
}

// Of every way to part a model, what steps need on each device is what is there, but for what buffers are rounded up to
// pages. A workspace is as large as any part that ran there needed; here layers ran on both first.
TEST_F(PlannedLanes, StepBuffers_AreCountedAsTheyAreMade) {
  constexpr uint32_t kRows = 128, kLogitRows = 64;
  constexpr uint64_t kRoundedUp = 48 << 10;  // less than the smallest buffer of rows
  const SimDevice device{.gflops = 400, .attention_gflops = 400, .bandwidth_gb_s = 10, .dispatch_us = 2};
  const VirtualMachine measured({device, device}), machine({device, device});  // what was measured leaves its workspace
  const PlanInput input = renamed(measured.measure(model(), kRowsMax), measured, machine);
  PlanRequest request = request_of({.requests = 24, .concurrency = 24, .prompt_len = 16, .output_len = 4});
  RuntimeOptions options;
  options.rows_max = kRows, options.logit_rows_max = kLogitRows;
  request.buffers = *step_buffers(model(), machine.devices().device(0), options);
  request.step_bytes = step_bytes(request.buffers, shape_.hidden, shape_.vocab);
  Placement sections = on_one(shape_, machine.devices(), 0);
  sections.lanes[0].sections = {{machine.name(1), 256}};
  for (const Placement& placement : {in_line(shape_, machine.devices(), {1, 2}), on_one(shape_, machine.devices(), 0),
                                     in_parallel(shape_, machine.devices(), {3, 1}),
                                     place(shape_, machine.devices(), {{1, {{0, 1, 1, 1, 1}}}}), sections}) {
    const auto report = report_on(shape_, input, request, placement);
    ASSERT_TRUE(report.ok()) << report.error().message();
    const VirtualRun run(model(), machine, placement, kRows);
    for (const DeviceShare& share : report->devices) {
      const auto stats = *machine.devices().device(*machine.devices().find(share.device)).stats();
      const uint64_t there = stats.bytes_resident - share.weight_bytes - share.kv_bytes;
      EXPECT_LE(there, share.step_bytes + kRoundedUp) << plan_text(*report, shape_);
      EXPECT_GE(there, share.step_bytes) << plan_text(*report, shape_);
    }
  }
}

// Machines of all kinds, with a GPU that is full by much or little, and a processor that may be too slow to help: in
// service the plan is no worse than the GPU alone, and where it is the GPU alone it says by what figures.
TEST_F(PlannedLanes, OfAnyMachine_NoneIsServedSlowerThanTheGpuAlone) {
  std::mt19937 random(11);
  const auto between = [&](double low, double high) {
    return low * std::pow(high / low, std::uniform_real_distribution<double>(0, 1)(random));
  };
  int with = 0, without = 0;
  for (int i = 0; i < 9; ++i) {
    SimDevice gpu{.gflops = 4000, .attention_gflops = 4000, .bandwidth_gb_s = 10, .dispatch_us = 2};
    SimDevice cpu = scaled(gpu, between(0.003, 0.5));
    cpu.kind = "cpu";
    const double filled = 1 - between(0.05, 0.6);
    const VirtualMachine machine(
        {gpu, cpu}, {.latency_ns = static_cast<int64_t>(between(1e3, 1e5)), .ns_per_byte = between(0.05, 5)});
    PlanInput input = machine.measure(model(), kRowsMax);
    input.devices[0].memory_free = static_cast<uint64_t>(static_cast<double>(shape_.weight_bytes()) / filled);
    for (DeviceProfile& device : input.devices) device.own_memory = true;
    const Load load{
        .requests = 240, .concurrency = 48, .prompt_len = 8, .output_len = 24, .step_rows = 104, .spread = 12};
    PlanRequest request = request_of(load);
    request.step_bytes = 64 << 10;
    const auto report = plan(shape_, input, request);
    ASSERT_TRUE(report.ok()) << report.error().message();
    const PlanInput one = without_devices(input, [&](const std::string& name) { return name == machine.name(1); });
    const auto alone = plan(shape_, one, request);
    ASSERT_TRUE(alone.ok()) << alone.error().message();
    if (is_on(report->placement, machine.name(0))) {
      ++without;
      ASSERT_EQ(report->left_out.size(), 1u);
      EXPECT_NE(report->left_out[0].reason.find_first_of("0123456789"), std::string::npos)
          << report->left_out[0].reason;
      continue;
    }
    ++with;
    const double both = serve(machine, report->placement, load).tokens_per_s();
    const double gpu_alone = serve(machine, alone->placement, load).tokens_per_s();
    std::printf("filled %.2f: %.0f tokens/s, the GPU alone %.0f\n", filled, both, gpu_alone);
    EXPECT_GE(both, 0.99 * gpu_alone) << plan_text(*report, shape_);
  }
  EXPECT_GT(with, 0);
  EXPECT_GT(without, 0);
}

// Texts that outgrow the GPU's pool: those that it preempts move to the processor's instead of being computed again
// there. Their blocks take the links' time, beside the steps.
TEST_F(PlannedLanes, WhoIsPreempted_MovesToTheOtherPool) {
  SimDevice gpu{.gflops = 400, .attention_gflops = 400, .bandwidth_gb_s = 10, .dispatch_us = 2};
  SimDevice cpu = scaled(gpu, 0.1);
  cpu.kind = "cpu";
  const VirtualMachine machine({gpu, cpu}, {.latency_ns = 2000, .ns_per_byte = 0.1});
  Placement placement = on_one(shape_, machine.devices(), 0);
  placement.lanes.push_back(place(shape_, machine.devices(), {{1, {{0, 1, 1, 1, 1}}}}).lanes[0]);
  placement.lanes[0].kv_blocks = 144;
  placement.lanes[1].pool = 1;
  Load load{.requests = 48, .concurrency = 12, .prompt_len = 256, .output_len = 96, .step_rows = 128, .spread = 32};
  for (const bool moves : {false, true}) {
    load.moves_kv = moves;
    const Served served = serve(machine, placement, load);
    std::printf("%s: %.0f tokens/s, %llu tokens computed again, %llu blocks moved\n",
                moves ? "moves" : "computes again", served.tokens_per_s(),
                static_cast<unsigned long long>(served.recomputed),
                static_cast<unsigned long long>(served.moved_blocks));
    EXPECT_EQ(served.recomputed == 0, moves);
    EXPECT_EQ(served.moved_blocks > 0, moves);
  }
}

// Sequences whose blocks lie with a GPU and with slower processors take about as long as predicted; alone and beside
// one another.
TEST_F(PlannedLanes, SequencesInSections_TakeAboutAsLongAsPredicted) {
  const SimDevice gpu{.gflops = 4000, .attention_gflops = 4000, .bandwidth_gb_s = 10, .dispatch_us = 2};
  SimDevice cpu = scaled(gpu, 0.2);
  cpu.kind = "cpu";
  const VirtualMachine machine({gpu, cpu, cpu}, {.latency_ns = 2000, .ns_per_byte = 0.1});
  const PlanInput input = machine.measure(model(), kRowsMax);
  for (const auto& [concurrency, further] : {std::pair{1u, 1u}, {1u, 2u}, {4u, 1u}, {4u, 2u}}) {
    const Load load{
        .requests = 24, .concurrency = concurrency, .prompt_len = 128, .output_len = 64, .step_rows = 64, .spread = 0};
    const PlanRequest request = request_of(load);
    const uint32_t blocks = concurrency * (128 + 64) / request.kv.block_size;
    Placement placement = on_one(shape_, machine.devices(), 0);
    placement.lanes[0].kv_blocks = blocks / 2;
    for (uint32_t s = 0; s < further; ++s)
      placement.lanes[0].sections.push_back({machine.name(1 + s), blocks / 2 / further + 1});
    const auto report = report_on(shape_, input, request, placement);
    ASSERT_TRUE(report.ok()) << report.error().message();
    const double served = serve(machine, report->placement, load).tokens_per_s();
    const double predicted = report->predicted.tokens_per_s;
    std::printf("%u at once, %u further sections: %.0f tokens/s, predicted %.0f\n", concurrency, further, served,
                predicted);
    EXPECT_GE(served, 0.85 * predicted);
    EXPECT_LE(served, 1.2 * predicted);
  }
}

// A device whose steps' time is its weights', beside one that attends in no time, and one that takes as long to attend:
// two steps under way read the weights twice, which pays where both have work.
TEST_F(PlannedLanes, StepsUnderWayWithAPartner_AreAsManyAsPay) {
  const SimDevice gpu{.gflops = 4000, .attention_gflops = 4000, .bandwidth_gb_s = 10, .dispatch_us = 2};
  struct Case {
    double bandwidth_gb_s;
    uint32_t streams, steps;
  };
  for (const auto& [bandwidth, streams, steps] : {Case{100, 16, 1}, Case{0.4, 4, 2}}) {
    SimDevice partner = gpu;
    partner.kind = "cpu", partner.bandwidth_gb_s = bandwidth;
    const VirtualMachine machine({gpu, partner}, {.latency_ns = 2000, .ns_per_byte = 0.1});
    const Load load{.requests = 64, .concurrency = streams, .prompt_len = 32, .output_len = 64, .step_rows = 64};
    Placement placement = place(shape_, machine.devices(), {{1, {{0, 1, 1, 1, 1}}}});
    placement.lanes[0].kv_blocks = 1024;
    const auto report = report_on(shape_, machine.measure(model(), kRowsMax), request_of(load), placement);
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_EQ(report->placement.lanes[0].micro_batches, steps);
    double served[3] = {};
    for (const uint32_t n : {1u, 2u}) {
      placement.lanes[0].micro_batches = n;
      served[n] = serve(machine, placement, load).tokens_per_s();
    }
    std::printf(
        "a partner with %g GB/s, %u streams: %.0f tokens/s a step at a time, %.0f two, predicted %.0f with %u\n",
        bandwidth, streams, served[1], served[2], report->predicted.tokens_per_s, steps);
    EXPECT_GE(served[steps], 1.1 * served[3 - steps]);
    EXPECT_NEAR(served[steps], report->predicted.tokens_per_s, 0.15 * served[steps]);
  }
}

// A processor, and a device of fixed shapes that cannot attend; `dispatch_us` of each of its programs.
std::vector<SimDevice> with_npu(double dispatch_us) {
  SimDevice cpu{.kind = "cpu", .gflops = 100, .attention_gflops = 100, .bandwidth_gb_s = 10, .dispatch_us = 2};
  SimDevice npu{.kind = "npu", .gflops = 2000, .bandwidth_gb_s = 10, .dispatch_us = dispatch_us};
  npu.rules = "dynamic_rows = false\npaged_attention = false\n";
  return {cpu, npu};
}

// Whether any part of a lane that decodes is on it.
bool decodes_on(const Placement& placement, const std::string& device) {
  for (const Lane& lane : placement.lanes)
    for (const Stage& stage : lane.stages)
      for (const Shard& shard : stage.shards)
        if (lane.decodes && shard.device == device) return true;
  return false;
}

// What the linear program of roles gives at most, requests a second, whatever part of its time the device that decodes
// has for prompts of its own: with x of X prompts elsewhere, x other <= 1 and
// X decode + x attended + (X - x) prompt <= 1.
double roles_bound(const RoleTimes& t) {
  const double elsewhere = 1 / (t.decode + t.attended);  // all of them
  if (elsewhere * t.other <= 1) return elsewhere;
  return (1 + (t.prompt - t.attended) / t.other) / (t.decode + t.prompt);
}

// With the first device, which decodes, and `roles`.
RoleTimes PlannedLanes::role_times(const VirtualMachine& machine, const Placement& roles, Load load) const {
  const Placement decoder = on_one(shape_, machine.devices(), 0);
  const auto served = [&](const Placement& placement, uint32_t waves, uint32_t prompt_len, uint32_t output_len) {
    load.requests = waves * load.concurrency, load.prompt_len = prompt_len, load.output_len = output_len;
    load.spread = 0;
    return serve(machine, placement, load);
  };
  const auto of_each = [&](int64_t ns) { return static_cast<double>(ns) / 1e9 / load.requests; };
  RoleTimes times{};
  // All tokens but the first, which the prompt gives; in contexts like the load's, with no prompt beside it: half of a
  // prompt's length is generated before.
  const uint32_t output = load.output_len, prompt = load.prompt_len, half = prompt / 2;
  times.decode = of_each(served(decoder, 1, half, half + output).ns - served(decoder, 1, half, half + 1).ns);
  times.prompt = of_each(served(decoder, 4, prompt, 1).ns);
  const Served elsewhere = served(roles, 4, prompt, 1);
  times.other = of_each(elsewhere.ns);
  for (const DeviceUse& device : elsewhere.devices)
    if (device.name == machine.name(0)) times.attended = of_each(device.busy_ns);
  return times;
}

// Long prompts: nine tenths of what the linear program says come out, by the plan's prediction, and by what each device
// does when it has nothing else to do, the attending for the other's prompts counted; and more than the processor does
// alone; with an NPU that is made up, and with the preset beside a nominal core. (The preset
// lies on the processor's bus; the two do not slow one another down here, as the real processor and a simulated NPU do
// not.)
TEST_F(PlannedLanes, PromptsOnTheNpu_GiveWhatTheLinearProgramSays) {
  const SimDevice core{
      .kind = "cpu", .gflops = 40, .attention_gflops = 20, .bandwidth_gb_s = 12, .half_rows = 2, .dispatch_us = 2};
  struct Case {
    std::vector<SimDevice> devices;
    uint32_t requests, output_len, concurrency;
  };
  for (const Case& each : {Case{with_npu(20), 128, 32, 16}, Case{{core, {.preset = "intel-npu-like"}}, 96, 32, 8},
                           Case{{core, {.preset = "intel-npu-like"}}, 96, 16, 16},
                           Case{{core, {.preset = "intel-npu-like"}}, 96, 32, 16}}) {
    const VirtualMachine machine(each.devices, {.latency_ns = 2000, .ns_per_byte = 0.1});
    const PlanInput input = machine.measure(model(), kRowsMax);
    Load load{.requests = each.requests,
              .concurrency = each.concurrency,
              .prompt_len = 128,
              .output_len = each.output_len,
              .step_rows = 128,
              .spread = each.output_len - 4};
    const auto report = plan(shape_, input, request_of(load));
    ASSERT_TRUE(report.ok()) << report.error().message();
    std::printf("%s", plan_text(*report, shape_).c_str());
    ASSERT_EQ(report->placement.lanes.size(), 2u);
    EXPECT_FALSE(report->placement.lanes[0].decodes);
    EXPECT_EQ(report->placement.lanes[0].stages[0].shards[0].device, machine.name(1));
    VirtualRun run(model(), machine, report->placement, kRowsMax);
    const Served all = run.serve(load);
    const double served = all.tokens_per_s();
    for (const DeviceUse& device : all.devices) {  // between two meetings with its partner, one program
      if (device.name == machine.name(1))
        EXPECT_LE(device.programs, 1.2 * each.requests * static_cast<double>(shape_.layers.size() + 1));
    }
    for (const DriverReport& device : run.reports())  // also of one that works in both lanes
      EXPECT_LE(device.work.busy_ns, all.ns) << device.device;
    load.requests = 32;
    const Placement processor = on_one(shape_, machine.devices(), 0);
    const double alone = serve(machine, processor, load).tokens_per_s();
    const double bound = each.output_len * roles_bound(role_times(machine, report->placement, load));
    std::printf("roles %.0f tokens/s, predicted %.0f, %.0f at most; the processor alone %.0f\n", served,
                report->predicted.tokens_per_s, bound, alone);
    EXPECT_GE(served, 0.9 * report->predicted.tokens_per_s);
    EXPECT_GE(served, 0.9 * bound);
    EXPECT_GT(served, 1.3 * alone);
  }
}

// Eight streams and more, by the scheduler: of what the one works less, most is while the other works, too.
TEST_F(PlannedLanes, AnNpuAndItsPartner_WorkAtTheSameTime) {
  const SimDevice core{.kind = "cpu", .gflops = 40, .attention_gflops = 1, .bandwidth_gb_s = 2, .dispatch_us = 2};
  for (const uint32_t streams : {8u, 12u, 16u}) {
    const VirtualMachine machine({core, with_npu(20)[1]}, {.latency_ns = 2000, .ns_per_byte = 0.1});
    const Placement placement =
        place(shape_, machine.devices(), {{1, {{.device = 1, .vocab = 0, .partner = 0}, {.heads = 0, .ffn = 0}}}});
    const auto folder = std::filesystem::temp_directory_path() / fmt::format("motley-partner-{}", getpid());
    std::filesystem::create_directories(folder);
    auto trace = Trace::open(folder / "trace.json", {.virtual_time = true});
    ASSERT_TRUE(trace.ok()) << trace.error().message();
    {
      VirtualRun run(model(), machine, placement, kRowsMax, trace->get());
      run.serve({.requests = 8 * streams,  // so that the ends, with fewer at once, count for little
                 .concurrency = streams,
                 .prompt_len = 40,
                 .output_len = 24,
                 .step_rows = 32,
                 .spread = 12});
    }
    ASSERT_TRUE((*trace)->close().ok());
    const auto content = read_trace(folder / "trace.json");
    std::filesystem::remove_all(folder);
    ASSERT_TRUE(content.ok()) << content.error().message();
    const auto row_of = [&](size_t device) {
      return content->find(machine.name(device) + " SIMULATED: programs, copies");
    };
    ASSERT_TRUE(row_of(0) != nullptr && row_of(1) != nullptr);
    const Intervals npu = busy(row_of(1)->spans), partner = busy(row_of(0)->spans);
    std::printf("%u streams: NPU %.1f ms, partner %.1f ms, both at once %.0f %% of the shorter\n", streams,
                1e-6 * static_cast<double>(length_ns(npu)), 1e-6 * static_cast<double>(length_ns(partner)),
                100 * overlap(npu, partner));
    EXPECT_GE(overlap(npu, partner), 0.6);
  }
}

// An NPU with a faster memory than the processor's decodes, too, unless each program costs it 1.4 ms.
TEST_F(PlannedLanes, DearDispatch_KeepsTokensOffTheNpu) {
  for (const double dispatch_us : {2.0, 1400.0}) {
    std::vector<SimDevice> devices = with_npu(dispatch_us);
    devices[1].bandwidth_gb_s = 200;
    const VirtualMachine machine(devices, {.latency_ns = 2000, .ns_per_byte = 0.1});
    const PlanInput input = machine.measure(model(), kRowsMax);
    const Load load{.concurrency = 16, .prompt_len = 16, .output_len = 64, .step_rows = 128};
    const auto report = plan(shape_, input, request_of(load));
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_EQ(decodes_on(report->placement, machine.name(1)), dispatch_us == 2) << plan_text(*report, shape_);
  }
}

// The preset, and what would be one without its dispatch.
TEST_F(PlannedLanes, XdnaLike_KeepsTokensOffTheNpu) {
  std::vector<SimDevice> devices = with_npu(2);
  devices[1].gflops = 10'000, devices[1].bandwidth_gb_s = 58;
  for (const char* preset : {"", "xdna-like"}) {
    devices[1].preset = preset;
    const VirtualMachine machine(devices, {.latency_ns = 2000, .ns_per_byte = 0.1});
    const PlanInput input = machine.measure(model(), kRowsMax);
    const Load load{.concurrency = 16, .prompt_len = 16, .output_len = 64, .step_rows = 128};
    const auto report = plan(shape_, input, request_of(load));
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_EQ(decodes_on(report->placement, machine.name(1)), devices[1].preset.empty()) << plan_text(*report, shape_);
  }
}

}  // namespace
}  // namespace motley::testing
