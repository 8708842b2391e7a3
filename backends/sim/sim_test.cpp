// The plugin from outside, through its file: memory, order, faults and both clocks. Numbers are judged by
// tests/conformance.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>

#include "motley/backend.h"
#include "sim/plugin_testing.hpp"

namespace {

constexpr uint64_t kSoon_ns = 60'000'000'000;  // an event that should fire
constexpr int64_t kWidth = 256;
constexpr uint32_t kRows = 4;
constexpr uint64_t kBytes = kRows * kWidth * 4;
// x += y: three values of 4 KiB at 1 GB/s, and the dispatch.
constexpr int64_t kDispatch_ns = 5000, kAdd_ns = kDispatch_ns + 3 * static_cast<int64_t>(kBytes);
constexpr int64_t kCopy_ns = 2000 + static_cast<int64_t>(kBytes) / 2;  // latency, and 2 GB/s

constexpr const char* kPlain = R"(memory_bytes = 4194304
bandwidth_gb_s = 1
dispatch_us = 5
link_gb_s = 2
link_latency_us = 2
queue_depth = 4
gflops = {f32 = 100}
)";

using motley::sim::testing::Answer;
using motley::sim::testing::Owned;

const motley_backend& sim() { return motley::sim::testing::plugin_table(MOTLEY_BINARY_DIR "/lib/motley/sim.so"); }

// A described and opened device with one program, x += y, and calls that expect to work unless they say otherwise.
class Rig {
 public:
  explicit Rig(const std::string& toml, bool virtual_time = true, uint64_t memory_cap = 0) {
    motley_device_desc desc = describe(toml);
    motley_open_options options{};
    options.struct_size = sizeof options, options.memory_cap = memory_cap;
    if (virtual_time) options.virtual_now = [](void* user) { return *static_cast<int64_t*>(user); };
    options.virtual_user = &now_ns;
    motley_device* raw = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().open(desc.index, &options, &raw, &error), MOTLEY_OK) << error.text;
    device_ = {raw, sim().close};
    queues_.push_back(make_queue());
    programs_ = compile();
  }
  ~Rig() {
    events_.clear();
    queues_.clear();
  }

  static motley_device_desc describe(const std::string& toml) {
    const std::string path = testing::TempDir() + "sim_test_" + std::to_string(getpid()) + ".toml";
    std::ofstream(path) << toml;
    motley_device_desc desc{};
    desc.struct_size = sizeof desc;
    motley_error error{};
    EXPECT_EQ(sim().describe(path.c_str(), &desc, &error), MOTLEY_OK) << error.text;
    unlink(path.c_str());
    return desc;
  }

  motley_device* device() { return device_.get(); }
  motley_queue* queue(size_t i = 0) {
    while (queues_.size() <= i) queues_.push_back(make_queue());
    return queues_[i].get();
  }
  void drop_queues() { queues_.clear(); }

  // Lives until the queues have ended.
  motley_buffer* buffer(int32_t use = MOTLEY_USE_ACTIVATION) {
    buffers_.push_back(own_buffer(kBytes, use));
    return buffers_.back().get();
  }
  Owned<motley_buffer> own_buffer(uint64_t bytes, int32_t use = MOTLEY_USE_ACTIVATION) {
    motley_buffer* raw = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().alloc(device(), bytes, use, nullptr, &raw, &error), MOTLEY_OK) << error.text;
    return {raw, sim().free};
  }
  Answer try_alloc(uint64_t bytes, int32_t use = MOTLEY_USE_ACTIVATION) {
    motley_buffer* raw = nullptr;
    motley_error error{};
    const motley_code code = sim().alloc(device(), bytes, use, nullptr, &raw, &error);
    const Owned<motley_buffer> owned{raw, sim().free};
    return {code, error.text};
  }

  Answer try_add(motley_event** event, motley_buffer* x, motley_buffer* y, size_t queue_index = 0) {
    const motley_binding bindings[] = {{0, x, 0}, {1, y, 0}};
    motley_enqueue_args args{};
    args.struct_size = sizeof args, args.bindings = bindings, args.binding_count = 2, args.batch = &batch_;
    motley_error error{};
    const motley_code code = sim().enqueue(queue(queue_index), programs_.get(), &args, event, &error);
    return {code, error.text};
  }
  // The rig's own buffers, one pair a queue.
  motley_event* add(size_t queue_index = 0) {
    auto& [x, y] = pairs_[queue_index];
    if (!x) x = buffer(), y = buffer();
    motley_event* event = nullptr;
    const Answer answer = try_add(&event, x, y, queue_index);
    EXPECT_EQ(answer.code, MOTLEY_OK) << answer.text;
    return keep(event);
  }
  motley_event* read(void* to, motley_buffer* from, size_t queue_index = 0) {
    motley_event* event = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().copy_to_host(queue(queue_index), to, from, 0, kBytes, &event, &error), MOTLEY_OK) << error.text;
    return keep(event);
  }
  void fence(size_t queue_index, motley_event* event) {
    motley_error error{};
    EXPECT_EQ(sim().fence(queue(queue_index), event, &error), MOTLEY_OK) << error.text;
  }

  Answer wait(motley_event* event, uint64_t timeout_ns = kSoon_ns) {
    motley_error error{};
    const motley_code code = sim().event_wait(event, timeout_ns, &error);
    return {code, error.text};
  }
  motley_event_times times(motley_event* event) {
    EXPECT_NE(wait(event).code, MOTLEY_DEADLINE_EXCEEDED);
    motley_event_times out{};
    out.struct_size = sizeof out;
    motley_error error{};
    EXPECT_EQ(sim().event_times(event, &out, &error), MOTLEY_OK) << error.text;
    return out;
  }
  void ran(motley_event* event, int64_t start_ns, int64_t end_ns) {
    const motley_event_times t = times(event);
    EXPECT_EQ(t.start_ns, start_ns);
    EXPECT_EQ(t.end_ns, end_ns);
  }
  motley_device_stats stats() {
    motley_device_stats out{};
    out.struct_size = sizeof out;
    motley_error error{};
    EXPECT_EQ(sim().stats(device(), &out, &error), MOTLEY_OK) << error.text;
    return out;
  }

  int64_t now_ns = 1'000'000;

 private:
  Owned<motley_queue> make_queue() {
    motley_queue* raw = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().queue_create(device(), &raw, &error), MOTLEY_OK) << error.text;
    return {raw, sim().queue_destroy};
  }
  motley_event* keep(motley_event* event) {
    events_.emplace_back(event, sim().event_release);
    return event;
  }
  Owned<motley_programs> compile() {
    motley_value values[2]{};
    for (motley_value& v : values) v.dtype = MOTLEY_F32, v.rank = 2, v.dims[0] = MOTLEY_DIM_ROWS, v.dims[1] = kWidth;
    motley_op op{};
    std::fill(std::begin(op.in), std::end(op.in), MOTLEY_NONE);
    std::fill(std::begin(op.out), std::end(op.out), MOTLEY_NONE);
    std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
    op.kind = MOTLEY_OP_ADD, op.in[0] = 0, op.in[1] = 1, op.out[0] = 0;
    const int32_t inputs[] = {0, 1}, output = 0;
    motley_segment segment{};
    segment.struct_size = sizeof segment, segment.layer_end = 1, segment.cut = MOTLEY_CUT_STAGE;
    segment.values = values, segment.value_count = 2, segment.ops = &op, segment.op_count = 1;
    segment.inputs = inputs, segment.input_count = 2, segment.outputs = &output, segment.output_count = 1;
    motley_compile_options options{};
    options.struct_size = sizeof options, options.buckets = &kRows, options.bucket_count = 1;
    motley_programs* raw = nullptr;
    motley_error error{};
    EXPECT_EQ(sim().compile(device(), &segment, nullptr, &options, &raw, &error), MOTLEY_OK) << error.text;
    batch_.struct_size = sizeof batch_, batch_.rows = kRows, batch_.generated = generated_;
    return {raw, sim().programs_free};
  }

  Owned<motley_device> device_{nullptr, nullptr};
  Owned<motley_programs> programs_{nullptr, nullptr};
  std::vector<Owned<motley_buffer>> buffers_;
  std::map<size_t, std::pair<motley_buffer*, motley_buffer*>> pairs_;
  std::vector<Owned<motley_queue>> queues_;
  std::vector<Owned<motley_event>> events_;
  motley_batch batch_{};
  const uint8_t generated_[kRows] = {1, 1, 1, 1};
};

std::string with(const std::string& more) { return kPlain + more; }
std::string fault(const std::string& more) { return with("[[fault]]\n" + more); }

// ---- what it says of itself ----

TEST(SimPlugin, Presets_AreListedAndNamed) {
  motley_device_desc list[16]{};
  for (auto& desc : list) desc.struct_size = sizeof desc;
  uint32_t count = 0;
  motley_error error{};
  ASSERT_EQ(sim().enumerate(list, 16, &count, &error), MOTLEY_OK) << error.text;
  ASSERT_EQ(count, 7u);
  for (uint32_t i = 0; i < count; ++i) {
    EXPECT_STREQ(list[i].family, "SIM");
    EXPECT_EQ(list[i].simulated, 1);
    EXPECT_EQ(list[i].kind, i < 3 ? MOTLEY_KIND_GPU : MOTLEY_KIND_NPU);
    EXPECT_EQ(list[i].caps & (MOTLEY_CAP_HOST_MEMORY | MOTLEY_CAP_IMPORT_HOST), MOTLEY_CAP_IMPORT_HOST);
    motley_device_desc named{};
    named.struct_size = sizeof named;
    ASSERT_EQ(sim().describe(list[i].label, &named, &error), MOTLEY_OK) << error.text;
    EXPECT_EQ(named.index, i);
  }
  EXPECT_STREQ(list[2].label, "slow-gpu-like");
  EXPECT_STREQ(list[6].label, "ascend-like");
}

TEST(SimPlugin, Files_AreDescribedOnceForEachText) {
  const motley_device_desc first = Rig::describe(with("kind = \"cpu\"\nmemory_group = 4\n"));
  EXPECT_EQ(first.kind, MOTLEY_KIND_CPU);
  EXPECT_EQ(first.memory_total, 4u << 20);
  EXPECT_EQ(first.memory_group, 4u);
  EXPECT_EQ(first.queue_depth, 4u);
  EXPECT_NE(std::string(first.label).find(".toml"), std::string::npos);
  EXPECT_EQ(Rig::describe(with("kind = \"cpu\"\nmemory_group = 4\n")).index, first.index);
  EXPECT_NE(Rig::describe(with("kind = \"cpu\"\nmemory_group = 5\n")).index, first.index);
  motley_device_desc desc{};
  motley_error error{};
  EXPECT_EQ(sim().describe("no-such-preset", &desc, &error), MOTLEY_NOT_FOUND);
  EXPECT_NE(std::string(error.text).find("no-such-preset"), std::string::npos);
}

// ---- memory ----

TEST(SimMemory, Cap_CountsBuffersWeightsAndKv) {
  Rig rig(kPlain);
  EXPECT_EQ(rig.stats().bytes_resident, 0u);
  const Answer beyond = rig.try_alloc(5 << 20);
  EXPECT_EQ(beyond.code, MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(beyond.text.find("4194304"), std::string::npos) << beyond.text;
  auto half = rig.own_buffer(2 << 20);
  EXPECT_EQ(rig.stats().bytes_resident, 2u << 20);
  const std::vector<float> data(1 << 18, 1.0f);  // 1 MiB
  motley_weight_desc weight{};
  weight.struct_size = sizeof weight, weight.name = "w", weight.dtype = weight.format = MOTLEY_F32;
  weight.uses = MOTLEY_WEIGHT_MATMUL, weight.experts = 1, weight.rows = weight.cols = 512;
  weight.data = data.data(), weight.bytes = data.size() * 4;
  motley_weight* raw_weight = nullptr;
  motley_error error{};
  ASSERT_EQ(sim().pack(rig.device(), &weight, &raw_weight, nullptr, &error), MOTLEY_OK) << error.text;
  Owned<motley_weight> packed{raw_weight, sim().weight_free};
  EXPECT_GE(rig.stats().bytes_resident, 3u << 20);
  const int32_t heads = 8, dim = 64;
  motley_kv_desc kv{};
  kv.struct_size = sizeof kv, kv.dtype = MOTLEY_F32, kv.block_size = 16, kv.blocks = 64, kv.layers = 1;
  kv.kv_heads = &heads, kv.head_dim = &dim;  // 4 MiB
  motley_kv* pool = nullptr;
  EXPECT_EQ(sim().kv_create(rig.device(), &kv, &pool, &error), MOTLEY_RESOURCE_EXHAUSTED);
  half.reset(), packed.reset();
  EXPECT_EQ(rig.stats().bytes_resident, 0u);
  ASSERT_EQ(sim().kv_create(rig.device(), &kv, &pool, &error), MOTLEY_OK) << error.text;
  EXPECT_EQ(rig.try_alloc(1 << 20).code, MOTLEY_RESOURCE_EXHAUSTED);
  sim().kv_destroy(pool);
  EXPECT_EQ(Rig(kPlain, true, 1 << 20).try_alloc(2 << 20).code, MOTLEY_RESOURCE_EXHAUSTED) << "the host's own cap";
}

TEST(SimMemory, Activations_AreNotMappedAndStagingIsNotBound) {
  Rig rig(kPlain);
  auto *x = rig.buffer(), *staging = rig.buffer(MOTLEY_USE_STAGING);
  EXPECT_EQ(sim().map(x), nullptr);
  auto* mapped = static_cast<float*>(sim().map(staging));
  ASSERT_NE(mapped, nullptr);
  const Answer refused = rig.try_add(nullptr, x, staging);
  EXPECT_EQ(refused.code, MOTLEY_INVALID_ARGUMENT);
  EXPECT_NE(refused.text.find("staging"), std::string::npos) << refused.text;
  EXPECT_EQ(rig.stats().bytes_resident, kBytes) << "staging is the host's memory";
  motley_error error{};
  // To the device and back.
  mapped[0] = 42;
  auto* back = rig.buffer(MOTLEY_USE_STAGING);
  const motley_region all{0, 0, kBytes};
  motley_event* event = nullptr;
  ASSERT_EQ(sim().copy(rig.queue(), x, staging, &all, 1, nullptr, &error), MOTLEY_OK) << error.text;
  ASSERT_EQ(sim().copy(rig.queue(), back, x, &all, 1, &event, &error), MOTLEY_OK) << error.text;
  const Owned<motley_event> owned{event, sim().event_release};
  EXPECT_EQ(rig.wait(event).code, MOTLEY_OK);
  EXPECT_EQ(static_cast<float*>(sim().map(back))[0], 42);
  EXPECT_EQ(rig.stats().bytes_copied, 2 * kBytes);
}

TEST(SimMemory, ImportedPages_AreTheHostsAndReachedOverTheLink) {
  Rig rig(kPlain);
  auto* x = rig.buffer();
  const uint64_t resident = rig.stats().bytes_resident;
  alignas(4096) static std::array<float, 2048> pages{};
  static_assert(kBytes <= sizeof pages);
  pages[0] = 1.5f;
  motley_error error{};
  motley_buffer* raw = nullptr;
  EXPECT_EQ(sim().alloc(rig.device(), kBytes, MOTLEY_USE_ACTIVATION, &pages[16], &raw, &error),
            MOTLEY_INVALID_ARGUMENT);
  EXPECT_NE(std::string(error.text).find("not page-aligned"), std::string::npos) << error.text;
  ASSERT_EQ(sim().alloc(rig.device(), kBytes, MOTLEY_USE_ACTIVATION, &pages[0], &raw, &error), MOTLEY_OK) << error.text;
  const Owned<motley_buffer> imported{raw, sim().free};
  EXPECT_EQ(sim().map(imported.get()), nullptr);
  EXPECT_EQ(rig.stats().bytes_resident, resident);
  motley_event* event = nullptr;
  const Answer added = rig.try_add(&event, x, imported.get());  // x += it
  ASSERT_EQ(added.code, MOTLEY_OK) << added.text;
  rig.ran(event, rig.now_ns, rig.now_ns + kAdd_ns + kCopy_ns);
  sim().event_release(event);
  std::vector<float> host(kBytes / 4);
  EXPECT_EQ(rig.wait(rig.read(host.data(), x)).code, MOTLEY_OK);
  EXPECT_EQ(host[0], 1.5f);
  const motley_region all{0, 0, kBytes};
  pages[1] = 7;
  ASSERT_EQ(sim().copy(rig.queue(), x, imported.get(), &all, 1, &event, &error), MOTLEY_OK) << error.text;
  EXPECT_EQ(rig.times(event).end_ns - rig.times(event).start_ns, kCopy_ns);
  sim().event_release(event);
  EXPECT_EQ(rig.wait(rig.read(host.data(), x)).code, MOTLEY_OK);
  EXPECT_EQ(host[1], 7);
  rig.drop_queues();
}

TEST(SimMemory, AnotherDevicesBuffer_IsRefused) {
  Rig rig(kPlain), other(kPlain);
  auto *mine = rig.buffer(), *theirs = other.buffer();
  EXPECT_EQ(rig.try_add(nullptr, mine, theirs).code, MOTLEY_INVALID_ARGUMENT);
  const motley_region all{0, 0, kBytes};
  motley_error error{};
  EXPECT_EQ(sim().copy(rig.queue(), mine, theirs, &all, 1, nullptr, &error), MOTLEY_INVALID_ARGUMENT);
}

TEST(SimMemory, PendingCopy_ShowsNaNUntilItsEvent) {
  Rig rig(fault("at_program = 1\nwhat = \"stall\"\n"));
  std::vector<float> host(kBytes / 4, 1.0f);
  auto* x = rig.buffer();
  rig.add();
  motley_event* event = rig.read(host.data(), x);
  EXPECT_EQ(rig.wait(event, 0).code, MOTLEY_DEADLINE_EXCEEDED);
  for (const float value : host) ASSERT_TRUE(std::isnan(value));
  motley_event_times none{};
  none.struct_size = sizeof none;
  motley_error error{};
  EXPECT_EQ(sim().event_times(event, &none, &error), MOTLEY_FAILED_PRECONDITION);
}

// ---- virtual time ----

TEST(SimVirtualTime, Durations_AreExact) {
  Rig rig(kPlain);
  std::vector<float> host(kBytes / 4);
  auto* x = rig.buffer();
  motley_event *first = rig.add(), *second = rig.add(), *copied = rig.read(host.data(), x);
  const int64_t now = rig.now_ns;
  rig.ran(first, now, now + kAdd_ns);
  rig.ran(second, now + kAdd_ns, now + 2 * kAdd_ns);
  rig.ran(copied, now + 2 * kAdd_ns, now + 2 * kAdd_ns + kCopy_ns);
  rig.now_ns += 1'000'000;
  rig.ran(rig.add(), rig.now_ns, rig.now_ns + kAdd_ns);
  EXPECT_EQ(rig.stats().programs, 3u);
  EXPECT_EQ(rig.stats().rows, 3u * kRows);
  EXPECT_EQ(rig.stats().busy_ns, 3u * kAdd_ns);
  EXPECT_EQ(rig.stats().bytes_copied, kBytes);
}

TEST(SimVirtualTime, Jitter_ReplaysBySeed) {
  const auto run = [](const std::string& seed) {
    Rig rig(with("jitter = 0.2\nseed = " + seed + "\n"));
    std::vector<int64_t> durations;
    for (int i = 0; i < 16; ++i) {
      const motley_event_times t = rig.times(rig.add());
      durations.push_back(t.end_ns - t.start_ns);
    }
    return durations;
  };
  const auto once = run("7");
  EXPECT_EQ(run("7"), once);
  EXPECT_NE(run("8"), once);
  for (const int64_t d : once) {
    EXPECT_GE(static_cast<double>(d), 0.8 * kAdd_ns - 1);
    EXPECT_LE(static_cast<double>(d), 1.2 * kAdd_ns + 1);
  }
}

TEST(SimVirtualTime, Fence_OrdersTwoQueues) {
  Rig rig(kPlain);
  std::vector<float> host(kBytes / 4);
  auto *x = rig.buffer(), *y = rig.buffer();
  motley_event* raw = nullptr;
  ASSERT_EQ(rig.try_add(&raw, x, y).code, MOTLEY_OK);
  const Owned<motley_event> added{raw, sim().event_release};
  rig.fence(1, raw);
  motley_event* copied = rig.read(host.data(), x, 1);
  rig.ran(copied, rig.now_ns + kAdd_ns, rig.now_ns + kAdd_ns + kCopy_ns);
  EXPECT_EQ(rig.wait(copied).code, MOTLEY_OK);
}

TEST(SimVirtualTime, UnfencedReadOfPendingWork_Fails) {
  Rig rig(kPlain);
  std::vector<float> host(kBytes / 4);
  auto *x = rig.buffer(), *y = rig.buffer();
  motley_event* raw = nullptr;
  ASSERT_EQ(rig.try_add(&raw, x, y).code, MOTLEY_OK);
  const Owned<motley_event> added{raw, sim().event_release};
  const Answer early = rig.wait(rig.read(host.data(), x, 1));
  EXPECT_EQ(early.code, MOTLEY_FAILED_PRECONDITION);
  EXPECT_NE(early.text.find("fence"), std::string::npos) << early.text;
  EXPECT_TRUE(std::isnan(host[0]));
  EXPECT_EQ(rig.wait(rig.read(host.data(), y, 1)).code, MOTLEY_OK) << "only read by the program";
  EXPECT_EQ(rig.wait(raw).code, MOTLEY_OK);
  EXPECT_EQ(rig.wait(rig.read(host.data(), x, 1)).code, MOTLEY_OK) << "the host has waited";
}

TEST(SimVirtualTime, QueuesOfADevice_ShareItsEngine) {
  Rig rig(kPlain);
  motley_event *first = rig.add(0), *second = rig.add(1);
  rig.ran(first, rig.now_ns, rig.now_ns + kAdd_ns);
  rig.ran(second, rig.now_ns + kAdd_ns, rig.now_ns + 2 * kAdd_ns);
}

TEST(SimVirtualTime, Depth_IsThatOfTheHostsClock) {
  Rig rig(kPlain);
  auto *x = rig.buffer(), *y = rig.buffer();
  std::vector<motley_event*> events;
  for (int i = 0; i < 4; ++i) events.push_back(rig.add());
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_RESOURCE_EXHAUSTED);
  rig.now_ns += kAdd_ns;
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_OK) << "one has ended";
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_EQ(rig.wait(events[2]).code, MOTLEY_OK);
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_OK) << "the host has seen that there is room";
}

TEST(SimVirtualTime, DevicesOfAGroupThatHaveQueues_ShareTheBus) {
  const std::string shared = with("memory_group = 31\ncontention = 1\n");
  Rig rig(shared);
  const auto duration = [&] {
    const motley_event_times t = rig.times(rig.add());
    return t.end_ns - t.start_ns;
  };
  EXPECT_EQ(duration(), kAdd_ns);
  {
    Rig beside(shared), elsewhere(with("memory_group = 32\n"));
    EXPECT_EQ(duration(), kDispatch_ns + 2 * (kAdd_ns - kDispatch_ns));
  }
  EXPECT_EQ(duration(), kAdd_ns);
}

// ---- faults ----

void expect_lost(Rig& rig) {
  EXPECT_EQ(rig.stats().lost, 1);
  EXPECT_EQ(rig.try_alloc(64).code, MOTLEY_UNAVAILABLE);
  motley_queue* queue = nullptr;
  motley_error error{};
  EXPECT_EQ(sim().queue_create(rig.device(), &queue, &error), MOTLEY_UNAVAILABLE);
  EXPECT_NE(std::string(error.text).find("lost"), std::string::npos);
}

TEST(SimFaults, DeathAtAProgram_EveryLaterCallIsUnavailable) {
  Rig rig(fault("at_program = 3\nwhat = \"death\"\n"));
  auto *x = rig.buffer(), *y = rig.buffer();
  motley_event *first = rig.add(), *second = rig.add();
  EXPECT_EQ(rig.stats().lost, 0);
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_UNAVAILABLE);
  EXPECT_EQ(rig.wait(first).code, MOTLEY_OK);
  EXPECT_EQ(rig.wait(second).code, MOTLEY_OK);
  expect_lost(rig);
  motley_error error{};
  EXPECT_EQ(sim().fence(rig.queue(), first, &error), MOTLEY_UNAVAILABLE);
}

TEST(SimFaults, DeathAtATime_FailsWhatRunsThen) {
  Rig rig(fault("at_ns = 1020000\nwhat = \"death\"\n"));  // within the second program
  motley_event *first = rig.add(), *second = rig.add();
  EXPECT_EQ(rig.wait(first).code, MOTLEY_OK);
  EXPECT_EQ(rig.wait(second).code, MOTLEY_UNAVAILABLE);
  expect_lost(rig);
}

TEST(SimFaults, Stall_DelaysOneProgram) {
  Rig rig(fault("at_program = 2\nwhat = \"stall\"\nfor_ms = 2\n"));
  motley_event *first = rig.add(), *second = rig.add(), *third = rig.add();
  const int64_t now = rig.now_ns;
  rig.ran(first, now, now + kAdd_ns);
  rig.ran(second, now + kAdd_ns, now + 2 * kAdd_ns + 2'000'000);
  rig.ran(third, now + 2 * kAdd_ns + 2'000'000, now + 3 * kAdd_ns + 2'000'000);
}

TEST(SimFaults, StallForEver_HoldsAllThatFollowsUntilTheQueueGoes) {
  Rig rig(fault("at_program = 2\nwhat = \"stall\"\n")), healthy(kPlain);
  motley_event *first = rig.add(), *second = rig.add(), *third = rig.add(1);
  EXPECT_EQ(rig.wait(first).code, MOTLEY_OK);
  EXPECT_EQ(rig.wait(second, 1'000'000).code, MOTLEY_DEADLINE_EXCEEDED);
  EXPECT_EQ(rig.wait(third, 0).code, MOTLEY_DEADLINE_EXCEEDED);
  healthy.fence(0, second);
  motley_event* behind = healthy.add();
  EXPECT_EQ(healthy.wait(behind, 0).code, MOTLEY_DEADLINE_EXCEEDED) << "it waits for what hangs";
  EXPECT_EQ(rig.stats().lost, 0) << "nobody knows";
  rig.drop_queues();
  EXPECT_EQ(rig.wait(second).code, MOTLEY_UNAVAILABLE);
  EXPECT_EQ(rig.wait(third).code, MOTLEY_UNAVAILABLE);
  healthy.drop_queues();
  EXPECT_EQ(healthy.wait(behind).code, MOTLEY_UNAVAILABLE);
}

TEST(SimFaults, DeathOfAHungDevice_EndsWhatIsPending) {
  Rig rig(fault("at_program = 1\nwhat = \"stall\"\n[[fault]]\nat_program = 2\nwhat = \"death\"\n"));
  auto *x = rig.buffer(), *y = rig.buffer();
  motley_event* pending = rig.add();
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_UNAVAILABLE);
  EXPECT_EQ(rig.wait(pending).code, MOTLEY_UNAVAILABLE);
}

TEST(SimFaults, Slow_MultipliesForAWhile) {
  // From the second program for 0.04 ms: that one and what begins within.
  Rig rig(fault("at_program = 2\nwhat = \"slow\"\nfactor = 2\nfor_ms = 0.04\n"));
  std::vector<int64_t> durations;
  for (int i = 0; i < 4; ++i) {
    const motley_event_times t = rig.times(rig.add());
    durations.push_back(t.end_ns - t.start_ns);
  }
  EXPECT_EQ(durations, (std::vector<int64_t>{kAdd_ns, 2 * kAdd_ns, 2 * kAdd_ns, kAdd_ns}));
}

// ---- wall time ----

TEST(SimWallTime, Programs_LastNoLessThanSimulated) {
  Rig rig(with("memory_group = 0\n").replace(0, std::strlen(kPlain), R"(memory_bytes = 4194304
bandwidth_gb_s = 1
dispatch_us = 3000
gflops = {f32 = 100}
)"),
          false);
  motley_event *first = rig.add(), *second = rig.add();
  const motley_event_times a = rig.times(first), b = rig.times(second);
  EXPECT_GE(a.end_ns - a.start_ns, 3'000'000 + 3 * static_cast<int64_t>(kBytes));
  EXPECT_GE(b.end_ns - b.start_ns, 3'000'000 + 3 * static_cast<int64_t>(kBytes));
  EXPECT_GE(b.start_ns, a.end_ns);
  EXPECT_GE(rig.stats().busy_ns, 6'000'000u);
}

TEST(SimWallTime, UnfencedReadOfPendingWork_Fails) {
  Rig rig(fault("at_program = 1\nwhat = \"stall\"\nfor_ms = 100000\n"), false);  // until the queue goes
  std::vector<float> host(kBytes / 4);
  auto *x = rig.buffer(), *y = rig.buffer();
  motley_event* raw = nullptr;
  ASSERT_EQ(rig.try_add(&raw, x, y).code, MOTLEY_OK);
  const Owned<motley_event> added{raw, sim().event_release};
  EXPECT_EQ(rig.wait(rig.read(host.data(), x, 1)).code, MOTLEY_FAILED_PRECONDITION);
  EXPECT_EQ(rig.wait(raw, 0).code, MOTLEY_DEADLINE_EXCEEDED);
  rig.drop_queues();
  EXPECT_EQ(rig.wait(raw).code, MOTLEY_OK) << "a stall that ends early ends well";
}

TEST(SimWallTime, Death_FailsWhatIsPending) {
  Rig rig(fault("at_program = 1\nwhat = \"stall\"\nfor_ms = 100000\n[[fault]]\nat_program = 2\nwhat = \"death\"\n"),
          false);
  auto *x = rig.buffer(), *y = rig.buffer();
  motley_event* pending = rig.add();
  EXPECT_EQ(rig.try_add(nullptr, x, y).code, MOTLEY_UNAVAILABLE);
  EXPECT_EQ(rig.stats().lost, 1);
  EXPECT_EQ(rig.wait(pending).code, MOTLEY_UNAVAILABLE);
}

TEST(SimWallTime, Preset_RunsOnAMeasuredCore) {
  motley_open_options options{};
  options.struct_size = sizeof options;
  motley_device* raw = nullptr;
  motley_error error{};
  ASSERT_EQ(sim().open(0, &options, &raw, &error), MOTLEY_OK) << error.text;
  sim().close(raw);
}

}  // namespace
