// What an expert layer's product costs, beside the same number of plain rows:
//   grouped_matmul PLUGIN.so THREADS
// prints a table: GROUPED_MATMUL of R rows with top_k of `experts` matrices (random choices) and MATMUL of R * top_k
// rows with one such matrix; milliseconds (best of five) and 10^9 multiply-adds/s. The plain product reads one matrix,
// the grouped one every chosen expert's: with few rows it is bound by memory. Build, after `ninja conformance_test`:
//   g++ -std=c++20 -O2 -Iinclude -Ibackends -Itests/conformance benchmarks/grouped_matmul.cpp
//     build/tests/conformance/libmotley_conformance.a build/backends/kit/libmotley_kit.a -ldl -pthread -o
//     grouped_matmul
// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "harness.hpp"
#include "kit/kit.hpp"

namespace {

using namespace motley::conformance;

constexpr int64_t kR = MOTLEY_DIM_ROWS;
constexpr int kPasses = 5;

struct Shape {
  int64_t experts, top_k, n, k;
  int32_t dtype;
};

// Milliseconds of one run, the best of some; bindings are made once.
double milliseconds(const Device& device, const GraphBuilder& graph, const std::map<int32_t, Bytes>& given,
                    uint32_t rows) {
  const Program program = device.compile(graph, {rows});
  const BatchData data = plain_batch(rows);
  const motley_batch batch = data.view();
  std::vector<Owned<motley_buffer>> buffers;
  std::vector<motley_binding> bindings;
  const auto bind = [&](int32_t id) {
    const motley_value& v = program.values[static_cast<size_t>(id)];
    uint64_t bytes = rows * 4;
    for (int32_t i = 1; i < v.rank; ++i) bytes *= static_cast<uint64_t>(v.dims[i]);
    buffers.push_back(device.buffer(bytes));
    if (const auto found = given.find(id); found != given.end()) device.write(buffers.back().get(), found->second);
    bindings.push_back({id, buffers.back().get(), 0});
  };
  for (const int32_t id : program.inputs) bind(id);
  for (const int32_t id : program.outputs) bind(id);
  motley_enqueue_args args{};
  args.struct_size = sizeof args;
  args.bindings = bindings.data(), args.binding_count = static_cast<uint32_t>(bindings.size());
  args.batch = &batch;
  double best = 1e30;
  for (int pass = 0; pass < kPasses; ++pass) {
    motley_error error{};
    motley_event* event = nullptr;
    const auto begin = std::chrono::steady_clock::now();
    require_ok(device.api().enqueue(device.queue(), program.programs.get(), &args, &event, &error), error, "enqueue");
    device.finish(event, "the program");
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best;
}

void compare(const Device& device, const Shape& s) {
  std::printf("%s, %lld of %lld experts, %lld x %lld\n", motley::kit::find_format(s.dtype)->name,
              static_cast<long long>(s.top_k), static_cast<long long>(s.experts), static_cast<long long>(s.n),
              static_cast<long long>(s.k));
  Random random(1);
  GraphBuilder grouped, plain;
  const int32_t gx = grouped.input(MOTLEY_F32, {kR, s.k}), ids = grouped.input(MOTLEY_I32, {kR, s.top_k});
  grouped.op(MOTLEY_OP_GROUPED_MATMUL, {gx, ids}, {grouped.output(MOTLEY_F32, {kR, s.top_k, s.n})},
             {grouped.weight(random_weight(random, s.dtype, MOTLEY_WEIGHT_MATMUL, s.n, s.k, s.experts))});
  const int32_t px = plain.input(MOTLEY_F32, {kR, s.k});
  plain.op(MOTLEY_OP_MATMUL, {px}, {plain.output(MOTLEY_F32, {kR, s.n})},
           {plain.weight(random_weight(random, s.dtype, MOTLEY_WEIGHT_MATMUL, s.n, s.k))});
  for (const uint32_t rows : {1u, 8u, 32u, 128u, 512u}) {
    const auto pairs = rows * static_cast<uint32_t>(s.top_k);
    std::vector<int32_t> chosen;
    for (uint32_t i = 0; i < pairs; ++i)
      chosen.push_back(static_cast<int32_t>(random.below(static_cast<uint32_t>(s.experts))));
    const Bytes x = to_bytes(random.normals(static_cast<size_t>(pairs) * static_cast<size_t>(s.k)));
    const Bytes few(x.begin(), x.begin() + static_cast<long>(rows) * s.k * 4);
    const double g = milliseconds(device, grouped, {{gx, few}, {ids, to_bytes(chosen)}}, rows);
    const double p = milliseconds(device, plain, {{px, x}}, pairs);
    const double work = static_cast<double>(pairs) * static_cast<double>(s.n * s.k) * 1e-6;  // 10^6 multiply-adds
    std::printf("  rows %4u: grouped %8.3f ms %6.1f G/s   plain %4u rows %8.3f ms %6.1f G/s\n", rows, g, work / g,
                pairs, p, work / p);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: grouped_matmul PLUGIN.so THREADS\n"), 2;
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  const auto entry =
      library ? reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY)) : nullptr;
  const motley_backend* backend = entry ? entry(MOTLEY_BACKEND_ABI) : nullptr;
  if (!backend) return std::fprintf(stderr, "%s is no plugin: %s\n", argv[1], library ? "" : dlerror()), 1;
  try {
    const Device device(*backend, {}, static_cast<uint32_t>(std::atoi(argv[2])));
    for (const Shape& s : {Shape{128, 8, 768, 2048, MOTLEY_Q4_K},
                           {8, 2, 4096, 2048, MOTLEY_Q4_0},
                           {32, 4, 1024, 1024, MOTLEY_Q8_0},
                           {32, 4, 512, 1024, MOTLEY_F16}})
      compare(device, s);
  } catch (const Stop& stop) {
    return std::fprintf(stderr, "%s\n", stop.text.c_str()), 1;
  }
  return 0;
}
