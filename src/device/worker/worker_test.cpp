// Workers as processes: how they start, die, hang and end.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/file_place.hpp"
#include "device/handles.hpp"
#include "device/wait.hpp"
#include "device/worker/channel.hpp"
#include "device/worker/isolated.hpp"

namespace motley {
namespace {

constexpr uint64_t kPatience_ns = 60'000'000'000;
constexpr int64_t kRows = MOTLEY_DIM_ROWS;
const char* const kCpu = MOTLEY_BINARY_DIR "/lib/motley/cpu.so";
const char* const kRef = MOTLEY_BINARY_DIR "/lib/motley/ref.so";

WorkerOptions worker_options() {
  WorkerOptions options;
  options.program = MOTLEY_BINARY_DIR "/tests/motley_test_worker";
  return options;
}

Device open_or_die(const WorkerOptions& options = worker_options(), const char* plugin = kCpu) {
  DeviceOptions device;
  device.threads = 1;
  Result<Device> opened = Device::open_isolated(plugin, 0, device, options);
  CHECK(opened.ok(), "{}", opened.error().to_string());
  return *std::move(opened);
}

// A chain x += x of `ops` additions over rows of `width` floats: work of any length.
struct Work {
  Work(const Device& device, uint32_t rows_in, int64_t width, int op_count) : rows(rows_in) {
    values.push_back({MOTLEY_F32, 2, {kRows, width}});
    for (int i = 0; i < op_count; ++i) {
      values.push_back({MOTLEY_F32, 2, {kRows, width}});
      motley_op op{};
      op.kind = MOTLEY_OP_ADD;
      std::fill_n(op.in, MOTLEY_OP_INPUTS_MAX, MOTLEY_NONE);
      std::fill_n(op.out, MOTLEY_OP_OUTPUTS_MAX, MOTLEY_NONE);
      std::fill_n(op.weight, MOTLEY_OP_WEIGHTS_MAX, MOTLEY_NONE);
      op.in[0] = op.in[1] = i, op.out[0] = i + 1;
      ops.push_back(op);
    }
    output = op_count;
    queue = *device.create_queue();
    const uint64_t bytes = uint64_t{rows} * static_cast<uint64_t>(width) * 4;
    from = *device.allocate(bytes, MOTLEY_USE_ACTIVATION);
    to = *device.allocate(bytes, MOTLEY_USE_ACTIVATION);
    batch.struct_size = sizeof batch;
    batch.rows = rows;
    generated.resize(rows);
    batch.generated = generated.data();
    args.struct_size = sizeof args;
    args.bindings = bindings, args.binding_count = 2, args.batch = &batch;
    if (op_count > 0) compile(device, {});
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  void compile(const Device& device, std::span<motley_weight* const> weights) {
    motley_segment segment{};
    segment.struct_size = sizeof segment;
    segment.cut = MOTLEY_CUT_STAGE;
    segment.values = values.data(), segment.value_count = static_cast<uint32_t>(values.size());
    segment.ops = ops.data(), segment.op_count = static_cast<uint32_t>(ops.size());
    segment.inputs = &input, segment.input_count = 1, segment.outputs = &output, segment.output_count = 1;
    segment.weight_count = static_cast<uint32_t>(weights.size());
    auto compiled = device.compile(segment, weights, std::span(&rows, 1));
    CHECK(compiled.ok(), "{}", compiled.error().to_string());
    programs = *std::move(compiled);
    bindings[0] = {input, from.get(), 0}, bindings[1] = {output, to.get(), 0};
  }

  uint32_t rows;
  int32_t input = 0, output = 0;
  std::vector<motley_value> values;
  std::vector<motley_op> ops;
  std::vector<uint8_t> generated;
  ProgramsHandle programs;
  QueueHandle queue;
  BufferHandle from, to;
  motley_batch batch{};
  motley_binding bindings[2];
  motley_enqueue_args args{};
};

Status wait_for(const Device& device, const EventHandle& event, uint64_t timeout_ns = kPatience_ns) {
  motley_error failure{};
  return to_status(device.api().event_wait(event.get(), timeout_ns, &failure), failure, "event_wait");
}

size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

// Children that run or wait to be reaped.
bool has_children() { return waitid(P_ALL, 0, nullptr, WEXITED | WNOHANG | WNOWAIT) == 0; }

// Returns once the child has stopped.
void stop(pid_t pid) {
  siginfo_t facts{};
  EXPECT_EQ(kill(pid, SIGSTOP), 0);
  EXPECT_EQ(waitid(P_PID, static_cast<id_t>(pid), &facts, WSTOPPED), 0);
}

bool contains(const Status& status, std::string_view text) { return status.message().find(text) != std::string::npos; }

// Sums of the rows of ones times a weight of one row.
std::vector<float> sums_of(const Device& device, const PackedWeight& weight, uint32_t rows, int64_t cols) {
  Work work(device, rows, cols, 0);
  work.values.push_back({MOTLEY_F32, 2, {kRows, 1}});
  motley_op op{};
  op.kind = MOTLEY_OP_MATMUL;
  std::fill_n(op.in, MOTLEY_OP_INPUTS_MAX, MOTLEY_NONE);
  std::fill_n(op.out, MOTLEY_OP_OUTPUTS_MAX, MOTLEY_NONE);
  std::fill_n(op.weight, MOTLEY_OP_WEIGHTS_MAX, MOTLEY_NONE);
  op.in[0] = 0, op.out[0] = work.output = 1, op.weight[0] = 0;
  work.ops = {op};
  motley_weight* const weights[] = {weight.weight.get()};
  work.compile(device, weights);
  const std::vector<float> ones(rows * static_cast<size_t>(cols), 1.0f);
  std::vector<float> sums(rows);
  EXPECT_TRUE(wait_for(device, *device.copy_from_host(work.queue, work.from, std::as_bytes(std::span(ones)))).ok());
  const auto done = device.enqueue(work.queue, work.programs, work.args);
  EXPECT_TRUE(done.ok()) << done.error().to_string();
  EXPECT_TRUE(
      wait_for(device, *device.copy_to_host(work.queue, std::as_writable_bytes(std::span(sums)), work.to)).ok());
  return sums;
}

// Read from the file, here other bytes than the host's, not copied; they stay for the plugin that keeps no copy (ref).
TEST(Worker, WeightOfAMappedFile_IsReadThere) {
  constexpr size_t kCols = 64, kBefore = 1000;
  const std::filesystem::path path = testing::TempDir() + "weights";
  std::vector<float> host(kBefore + kCols, 1.0f), there(host.size(), 3.0f);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(there.data()), static_cast<std::streamsize>(4 * there.size()));
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc;
  desc.name = "w", desc.dtype = desc.format = MOTLEY_F32, desc.uses = MOTLEY_WEIGHT_MATMUL;
  desc.experts = desc.rows = 1, desc.cols = kCols;
  desc.data = host.data() + kBefore, desc.bytes = 4 * kCols;
  for (const char* plugin : {kCpu, kRef}) {
    const Device device = open_or_die(worker_options(), plugin);
    const auto copied = device.pack(desc);
    ASSERT_TRUE(copied.ok()) << copied.error().to_string();
    EXPECT_EQ(sums_of(device, *copied, 2, kCols), std::vector<float>(2, kCols)) << plugin;

    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    note_mapping(std::as_bytes(std::span(host)), path, file);
    close(file);
    const size_t before = open_descriptors();
    const auto named = device.pack(desc);
    EXPECT_EQ(open_descriptors(), before);
    forget_mapping(std::as_bytes(std::span(host)));
    ASSERT_TRUE(named.ok()) << named.error().to_string();
    EXPECT_EQ(named->info.aliases_source, 0);
    EXPECT_EQ(sums_of(device, *named, 2, kCols), std::vector<float>(2, 3 * kCols)) << plugin;

    std::filesystem::resize_file(path, 4 * (host.size() - 1));
    const int shorter = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    note_mapping(std::as_bytes(std::span(host)), path, shorter);
    close(shorter);
    EXPECT_EQ(device.pack(desc).error().code(), MOTLEY_DATA_LOSS) << plugin;
    forget_mapping(std::as_bytes(std::span(host)));
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(there.data()), static_cast<std::streamsize>(4 * there.size()));
  }
  std::filesystem::remove(path);
}

TEST(Worker, MappedBuffer_IsSharedWithTheDevice) {
  const Device device = open_or_die();
  Work work(device, 4, 8, 3);
  auto* from = static_cast<float*>(*device.map(work.from));
  const auto* to = static_cast<const float*>(*device.map(work.to));
  for (int i = 0; i < 32; ++i) from[i] = static_cast<float>(i);
  auto event = device.enqueue(work.queue, work.programs, work.args);
  ASSERT_TRUE(event.ok()) << event.error().to_string();
  ASSERT_TRUE(wait_for(device, *event).ok());
  for (int i = 0; i < 32; ++i) EXPECT_EQ(to[i], static_cast<float>(8 * i));
}

TEST(Worker, KilledAtWork_EveryEventFiresUnavailableAndNothingHangs) {
  const Device device = open_or_die();
  Work work(device, 512, 4096, 200);
  const auto waiter = Waiter::create();
  std::vector<EventHandle> events;
  for (int i = 0; i < 8; ++i) {
    auto event = device.enqueue(work.queue, work.programs, work.args);
    ASSERT_TRUE(event.ok());
    events.push_back(*std::move(event));
  }
  ASSERT_TRUE(waiter->watch({&device.api(), events.back().get()}).ok());
  std::jthread asleep([&] {  // sleeps on an event while its worker dies
    EXPECT_EQ(wait_for(device, events[6]).code(), MOTLEY_UNAVAILABLE);
  });
  ASSERT_EQ(kill(device.worker()->pid(), SIGKILL), 0);
  EXPECT_TRUE(waiter->wait(system_clock().now_ns() + static_cast<int64_t>(kPatience_ns), system_clock()));
  const Status lost = wait_for(device, events[7]);
  EXPECT_EQ(lost.code(), MOTLEY_UNAVAILABLE);
  EXPECT_TRUE(contains(lost, "CPU:0")) << lost.message();
  EXPECT_TRUE(contains(lost, "signal 9")) << lost.message();
  asleep.join();
  EXPECT_TRUE(device.worker()->wait_ended(static_cast<int64_t>(kPatience_ns)));
  EXPECT_EQ(device.enqueue(work.queue, work.programs, work.args).error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_EQ(device.allocate(64, MOTLEY_USE_ACTIVATION).error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_EQ(device.create_queue().error().code(), MOTLEY_UNAVAILABLE);
  ASSERT_TRUE(device.stats().ok());
  EXPECT_EQ(device.stats()->lost, 1);
}

TEST(Worker, Stopped_CallsAndWaitsGiveUpAtTheirDeadlinesAndKillFreesTheRest) {
  WorkerOptions options = worker_options();
  options.call_timeout_ns = 3'000'000'000;  // long enough for the calls before the stop
  const Device device = open_or_die(options);
  Work work(device, 4, 8, 1);
  stop(device.worker()->pid());
  auto event = device.enqueue(work.queue, work.programs, work.args);
  ASSERT_TRUE(event.ok()) << "a step call does not wait for the worker: " << event.error().to_string();
  EXPECT_EQ(wait_for(device, *event, 50'000'000).code(), MOTLEY_DEADLINE_EXCEEDED);
  const Status late = device.allocate(64, MOTLEY_USE_ACTIVATION).error();
  EXPECT_EQ(late.code(), MOTLEY_DEADLINE_EXCEEDED) << late.to_string();
  EXPECT_EQ(device.allocate(64, MOTLEY_USE_ACTIVATION).error().code(), MOTLEY_UNAVAILABLE);
  device.worker()->kill();
  EXPECT_TRUE(device.worker()->wait_ended(0));
  const Status lost = wait_for(device, *event, 0);
  EXPECT_EQ(lost.code(), MOTLEY_UNAVAILABLE);
  EXPECT_TRUE(contains(lost, "given up")) << lost.message();
}

TEST(Worker, Compiling_HasATimeOfItsOwn) {
  WorkerOptions options = worker_options();
  options.call_timeout_ns = static_cast<int64_t>(kPatience_ns);
  options.compile_timeout_ns = 50'000'000;
  const Device device = open_or_die(options);
  stop(device.worker()->pid());
  motley_segment segment{};
  segment.struct_size = sizeof segment;
  segment.cut = MOTLEY_CUT_STAGE;
  const uint32_t rows = 4;
  const Status late = device.compile(segment, {}, std::span(&rows, 1)).error();
  EXPECT_EQ(late.code(), MOTLEY_DEADLINE_EXCEEDED);
  EXPECT_TRUE(contains(late, "within 50 ms")) << late.message();
  device.worker()->kill();
}

TEST(Worker, AtWork_IsSeenWhileItComputesAndNotWhileItIsStopped) {
  const Device device = open_or_die();
  Work work(device, 512, 4096, 200);
  auto event = device.enqueue(work.queue, work.programs, work.args);
  ASSERT_TRUE(event.ok());
  bool seen = false;
  while (!seen && wait_for(device, *event, 0).code() == MOTLEY_DEADLINE_EXCEEDED) seen = device.worker()->at_work();
  EXPECT_TRUE(seen);
  stop(device.worker()->pid());
  EXPECT_FALSE(device.worker()->at_work());
  device.worker()->kill();
  EXPECT_FALSE(device.worker()->at_work());
}

TEST(Worker, Stopped_FiguresSayThatItIsLost) {
  WorkerOptions options = worker_options();
  options.stats_timeout_ns = 100'000'000;
  options.call_timeout_ns = static_cast<int64_t>(kPatience_ns);
  const Device device = open_or_die(options);
  stop(device.worker()->pid());
  const auto stats = device.stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->lost, 1);
  device.worker()->kill();
}

TEST(Worker, TwoAtOnce_OneDies_TheOtherWorksOn) {
  const Device first = open_or_die(), second = open_or_die();
  Work left(first, 4, 8, 2), right(second, 4, 8, 2);
  EXPECT_NE(first.worker()->pid(), second.worker()->pid());
  first.worker()->kill();
  EXPECT_EQ(first.enqueue(left.queue, left.programs, left.args).error().code(), MOTLEY_UNAVAILABLE);
  auto event = second.enqueue(right.queue, right.programs, right.args);
  ASSERT_TRUE(event.ok());
  EXPECT_TRUE(wait_for(second, *event).ok());
  motley_error failure{};
  EXPECT_EQ(second.api().copy_to_host(right.queue.get(), nullptr, left.from.get(), 0, 4, nullptr, &failure),
            MOTLEY_INVALID_ARGUMENT);
}

TEST(Worker, ManyOpenedAndClosed_NoDescriptorOrChildIsLeft) {
  { const Device warm = open_or_die(); }
  const size_t before = open_descriptors();
  for (int i = 0; i < 3; ++i) {
    const Device device = open_or_die();
    Work work(device, 4, 8, 1);
    auto event = device.enqueue(work.queue, work.programs, work.args);
    if (i == 1) device.worker()->kill();
    if (i == 2) {
      EXPECT_TRUE(wait_for(device, *event).ok());
    }
  }
  ASSERT_TRUE(enumerate_isolated(kCpu, worker_options()).ok());
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_FALSE(has_children());
}

TEST(Worker, WhatCannotStart_IsRefusedWithTheReason) {
  const size_t before = open_descriptors();
  WorkerOptions options = worker_options();
  options.program = "/nonexistent/motley";
  Status refused = Device::open_isolated(kCpu, 0, {}, options).error();
  EXPECT_EQ(refused.code(), MOTLEY_NOT_FOUND);
  EXPECT_TRUE(contains(refused, "/nonexistent/motley")) << refused.message();
  refused = Device::open_isolated("/nonexistent/plugin.so", 0, {}, worker_options()).error();
  EXPECT_EQ(refused.code(), MOTLEY_NOT_FOUND);
  EXPECT_TRUE(contains(refused, "/nonexistent/plugin.so")) << refused.message();
  refused = Device::open_isolated(kCpu, 1000, {}, worker_options()).error();
  EXPECT_EQ(refused.code(), MOTLEY_NOT_FOUND);
  EXPECT_TRUE(contains(refused, "1000")) << refused.message();
  options.program = "/bin/true";  // a program that is no worker
  refused = Device::open_isolated(kCpu, 0, {}, options).error();
  EXPECT_EQ(refused.code(), MOTLEY_UNAVAILABLE);
  EXPECT_TRUE(contains(refused, "code 0")) << refused.message();
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_FALSE(has_children());
}

TEST(Worker, SpecOfAPluginWithoutDescriptions_IsRefused) {
  WorkerOptions options = worker_options();
  options.spec = "CPU:imagined";
  EXPECT_EQ(Device::open_isolated(kCpu, 0, {}, options).error().code(), MOTLEY_UNIMPLEMENTED);
}

// A device with memory of its own: what it is given and gives back goes through staging.
TEST(Worker, DescribedDevice_OpensByItsSpecAndCopies) {
  WorkerOptions options = worker_options();
  options.spec = "gpu-like";
  const auto device = Device::open_isolated(MOTLEY_BINARY_DIR "/lib/motley/sim.so", 0, {}, options);
  ASSERT_TRUE(device.ok()) << device.error().to_string();
  const Work work(*device, 2, 4, 1);
  EXPECT_EQ(device->map(work.from).error().code(), MOTLEY_FAILED_PRECONDITION);
  const std::vector<float> given = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> got(8);
  motley_error failure{};
  ASSERT_EQ(device->api().copy_from_host(work.queue.get(), work.from.get(), 0, given.data(), 32, nullptr, &failure),
            MOTLEY_OK)
      << failure.text;
  ASSERT_TRUE(device->enqueue(work.queue, work.programs, work.args).ok());
  motley_event* raw = nullptr;
  ASSERT_EQ(device->api().copy_to_host(work.queue.get(), got.data(), work.to.get(), 0, 32, &raw, &failure), MOTLEY_OK);
  const EventHandle event(&device->api(), raw);
  ASSERT_TRUE(wait_for(*device, event).ok());
  EXPECT_EQ(got, (std::vector<float>{2, 4, 6, 8, 10, 12, 14, 16}));
}

// ---- the worker program itself, met with a socket that no host of ours holds ----

struct RawWorker {
  RawWorker() {
    auto ends = Channel_pair();
    std::string lines;
    process = *WorkerProcess::start(worker_options().program,
                                    {std::move(ends.second), {}, worker::Descriptor(eventfd(0, EFD_CLOEXEC))}, {});
    host = std::move(ends.first);
  }
  static std::pair<worker::Descriptor, worker::Descriptor> Channel_pair() {
    return *worker::Channel::pair(SOCK_STREAM);
  }
  std::string end() const {
    EXPECT_TRUE(process->wait_ended(static_cast<int64_t>(kPatience_ns)));
    return process->how_it_ended();
  }
  worker::Descriptor host;
  std::unique_ptr<WorkerProcess> process;
};

TEST(WorkerProgram, HostGone_Ends) {
  RawWorker worker;
  worker.host.reset();
  EXPECT_NE(worker.end().find("code 1"), std::string::npos) << worker.process->how_it_ended();
}

TEST(WorkerProgram, Garbage_EndsWithoutACrash) {
  RawWorker worker;
  const std::string garbage(100, 'x');
  ASSERT_EQ(write(worker.host.get(), garbage.data(), garbage.size()), static_cast<ssize_t>(garbage.size()));
  EXPECT_NE(worker.end().find("code 2"), std::string::npos) << worker.process->how_it_ended();
}

TEST(WorkerProgram, EveryCallWithRandomBytes_IsAnsweredWithAnError) {
  RawWorker worker;
  const worker::Channel channel(std::move(worker.host));
  uint64_t noise = 1;
  for (uint16_t call = 0; call < static_cast<uint16_t>(worker::Call::kCount); ++call) {
    if (static_cast<worker::Call>(call) == worker::Call::kClose) continue;
    for (const size_t length : {0, 7, 8, 40, 200}) {
      std::vector<std::byte> body(length);
      for (std::byte& byte : body) byte = static_cast<std::byte>((noise = noise * 6364136223846793005u + 1) >> 56);
      ASSERT_TRUE(channel.send(static_cast<worker::Call>(call), 5, body, {}, worker::kForever).ok());
      const auto reply = channel.receive(system_clock().now_ns() + static_cast<int64_t>(kPatience_ns));
      ASSERT_TRUE(reply.ok()) << "call " << call << ": " << reply.error().to_string();
      worker::Reader reader(reply->body);
      EXPECT_NE(reader.get<int32_t>(), MOTLEY_OK) << "call " << call;
      EXPECT_FALSE(reader.get_text().value_or("").empty());
    }
  }
}

// A host (this program, forked before it has threads of its own to lose) that is killed while its worker computes.
TEST(WorkerProgram, HostKilled_WorkerDies) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t host = fork();
  ASSERT_GE(host, 0);
  if (host == 0) {
    const Device device = open_or_die();
    const pid_t worker = device.worker()->pid();
    if (write(ends[1], &worker, sizeof worker) != sizeof worker) _exit(1);
    for (;;) pause();
  }
  pid_t worker = 0;
  ASSERT_EQ(read(ends[0], &worker, sizeof worker), static_cast<ssize_t>(sizeof worker));
  const worker::Descriptor pidfd(static_cast<int>(syscall(SYS_pidfd_open, worker, 0)));
  ASSERT_TRUE(pidfd);
  ASSERT_EQ(kill(host, SIGKILL), 0);
  ASSERT_EQ(waitpid(host, nullptr, 0), host);
  pollfd entry{pidfd.get(), POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, static_cast<int>(kPatience_ns / 1'000'000)), 1) << "the worker outlives its host";
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace motley
