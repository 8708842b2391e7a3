// What a worker process costs a step:
//   worker_overhead PLUGIN.so WORKER_PROGRAM [ROUNDS [SPIN_US]]
// runs a program that adds one number to itself, in this process and in a worker, and prints the medians of the time
// from enqueue to event_wait's return, to the eventfd's ring (event_notify), and of enqueue alone, in microseconds;
// with a pause before each round, as between the steps of a model, and without. The difference is the worker's cost.
// Build, after `tools/build release motley conformance_test`:
//   g++ -std=c++20 -O2 -Iinclude -Isrc benchmarks/worker_overhead.cpp build/src/device/libmotley_device.a
//     build/src/base/libmotley_base.a -lspdlog -lfmt -ldl -pthread -o worker_overhead
//   ./worker_overhead build/lib/motley/cpu.so build/bin/motley
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "device/handles.hpp"
#include "device/wait.hpp"

namespace {

using namespace motley;
using std::chrono::steady_clock;

template <class T>
T value(Result<T> result) {
  if (result.ok()) return *std::move(result);
  std::fprintf(stderr, "%s\n", result.error().to_string().c_str());
  std::exit(1);
}

double microseconds(steady_clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(steady_clock::now() - begin).count();
}

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

struct Medians {
  double enqueue, wait, ring;
};

Medians measure(const Device& device, int rounds, int pause_us) {
  const motley_value values[2] = {{MOTLEY_F32, 2, {MOTLEY_DIM_ROWS, 1}}, {MOTLEY_F32, 2, {MOTLEY_DIM_ROWS, 1}}};
  motley_op op{};
  op.kind = MOTLEY_OP_ADD;
  for (int i = 0; i < 4; ++i) op.in[i] = op.out[i] = op.weight[i] = MOTLEY_NONE;
  op.in[0] = op.in[1] = 0, op.out[0] = 1;
  const int32_t input = 0, output = 1;
  motley_segment segment{};
  segment.struct_size = sizeof segment, segment.cut = MOTLEY_CUT_STAGE;
  segment.values = values, segment.value_count = 2, segment.ops = &op, segment.op_count = 1;
  segment.inputs = &input, segment.input_count = 1, segment.outputs = &output, segment.output_count = 1;
  const uint32_t bucket = 1;
  const uint8_t generated = 0;
  const auto programs = value(device.compile(segment, {}, std::span(&bucket, 1)));
  const auto queue = value(device.create_queue());
  const auto from = value(device.allocate(64, MOTLEY_USE_ACTIVATION));
  const auto to = value(device.allocate(64, MOTLEY_USE_ACTIVATION));
  const motley_binding bindings[] = {{0, from.get(), 0}, {1, to.get(), 0}};
  motley_batch batch{};
  batch.struct_size = sizeof batch, batch.rows = 1, batch.generated = &generated;
  motley_enqueue_args args{};
  args.struct_size = sizeof args, args.bindings = bindings, args.binding_count = 2, args.batch = &batch;
  const Waiter waiter = value(Waiter::create());
  std::vector<double> enqueue, wait, ring;
  for (int round = 0; round < 2 * rounds; ++round) {
    if (pause_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    const auto begin = steady_clock::now();
    const EventHandle event = value(device.enqueue(queue, programs, args));
    enqueue.push_back(microseconds(begin));
    if (round % 2 == 0) {
      device.api().event_wait(event.get(), UINT64_MAX, nullptr);
      wait.push_back(microseconds(begin));
    } else {
      if (!waiter.watch({&device.api(), event.get()}).ok()) std::exit(1);
      waiter.wait(kNoDeadline, system_clock());
      ring.push_back(microseconds(begin));
    }
  }
  return {median(enqueue), median(wait), median(ring)};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "worker_overhead PLUGIN.so WORKER_PROGRAM [ROUNDS [SPIN_US]]\n"), 1;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 2000;
  WorkerOptions worker;
  worker.program = argv[2];
  if (argc > 4) worker.spin_ns = std::atoi(argv[4]) * int64_t{1000};
  DeviceOptions options;
  options.threads = 1;
  const auto plugin = value(Plugin::open(argv[1]));
  std::printf("medians in us    pause  enqueue     wait     ring\n");
  for (const int pause_us : {0, 1000}) {
    Medians here{}, there{};
    {
      const Device device = value(Device::open(*plugin, 0, options));
      here = measure(device, rounds, pause_us);
    }
    {
      const Device device = value(Device::open_isolated(argv[1], 0, options, worker));
      there = measure(device, rounds, pause_us);
    }
    std::printf("in process      %6d %8.1f %8.1f %8.1f\n", pause_us, here.enqueue, here.wait, here.ring);
    std::printf("in a worker     %6d %8.1f %8.1f %8.1f\n", pause_us, there.enqueue, there.wait, there.ring);
    std::printf("the worker's    %6d %8.1f %8.1f %8.1f\n", pause_us, there.enqueue - here.enqueue,
                there.wait - here.wait, there.ring - here.ring);
  }
  return 0;
}
