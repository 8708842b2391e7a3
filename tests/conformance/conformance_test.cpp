// Every plugin that lies in lib/motley is judged.
#include "conformance.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

namespace motley::conformance {
namespace {

constexpr uint64_t kPatience_ns = 60'000'000'000;

std::vector<std::string> plugins() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(MOTLEY_BINARY_DIR "/lib/motley"))
    if (entry.path().extension() == ".so") names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

class Plugin : public testing::TestWithParam<std::string> {};

TEST_P(Plugin, Judged_EveryGroup_Passes) {
  const std::string path = std::string(MOTLEY_BINARY_DIR "/lib/motley/") + GetParam() + ".so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  const auto entry = reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY));
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry(MOTLEY_BACKEND_ABI + 1000), nullptr) << "an unknown ABI must be declined";
  const motley_backend* backend = entry(MOTLEY_BACKEND_ABI);
  ASSERT_NE(backend, nullptr);
  uint32_t count = 0;
  motley_error error{};
  ASSERT_EQ(backend->enumerate(nullptr, 0, &count, &error), MOTLEY_OK) << error.text;
  if (count == 0) {
    ASSERT_STRNE(error.text, "") << "no device, and no reason";
    GTEST_SKIP() << error.text;
  }
  Options options;
  options.line = [](const std::string& line) { std::printf("  %s\n", line.c_str()); };
  const Report report = run_conformance(*backend, options);
  EXPECT_TRUE(report.ok()) << report.failed << " failed, " << report.passed << " passed";
  EXPECT_GT(report.passed, 500u) << "a judge that looks at little proves little";
}

INSTANTIATE_TEST_SUITE_P(Built, Plugin, testing::ValuesIn(plugins()), [](const auto& plugin) { return plugin.param; });

// A device file of the simulation's, described.
motley_device_desc described(const motley_backend& sim, const std::string& text) {
  const std::string path = testing::TempDir() + "conformance_test.toml";
  std::ofstream(path) << text;
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  motley_error error{};
  EXPECT_EQ(sim.describe(path.c_str(), &desc, &error), MOTLEY_OK) << error.text;
  return desc;
}

const motley_backend& sim_table() {
  void* library = dlopen(MOTLEY_BINARY_DIR "/lib/motley/sim.so", RTLD_NOW | RTLD_LOCAL);
  return *reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY))(MOTLEY_BACKEND_ABI);
}

// The simulation's other presets of note: those of fixed shapes, and one that keeps KV.
class SimPreset : public testing::TestWithParam<const char*> {};

TEST_P(SimPreset, Judged_EveryGroup_Passes) {
  const motley_backend& sim = sim_table();
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  motley_error error{};
  ASSERT_EQ(sim.describe(GetParam(), &desc, &error), MOTLEY_OK) << error.text;
  const motley_device_desc lost = described(sim, R"(kind = "npu"
memory_bytes = 67108864
bandwidth_gb_s = 40
gflops = {f32 = 1000}
dynamic_rows = false
paged_attention = false
weight_formats = ["F16"]
[[fault]]
at_program = 2
what = "death"
)");
  Options options;
  options.described = &desc, options.lost = &lost;
  options.line = [](const std::string& line) { std::printf("  %s\n", line.c_str()); };
  const Report report = run_conformance(sim, options);
  EXPECT_TRUE(report.ok()) << report.failed << " failed, " << report.passed << " passed";
  EXPECT_GT(report.passed, 1000u) << "a judge that looks at little proves little";
}

INSTANTIATE_TEST_SUITE_P(Fixed, SimPreset,
                         testing::Values("intel-npu-like", "xdna-like", "hexagon-like", "ascend-like"),
                         [](const auto& preset) {
                           std::string name = preset.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// The other kernels of a device that has several; "" above was its best. Not under ThreadSanitizer: they run on the
// same threads as the best ones, and would take many minutes.
#ifndef MOTLEY_SANITIZED_THREADS
TEST_P(Plugin, JudgedVariants_EachPasses) {
  const std::string path = std::string(MOTLEY_BINARY_DIR "/lib/motley/") + GetParam() + ".so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  const motley_backend& backend =
      *reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY))(MOTLEY_BACKEND_ABI);
  motley_device_desc best{};
  best.struct_size = sizeof best;
  uint32_t count = 0;
  motley_error error{};
  ASSERT_EQ(backend.enumerate(&best, 1, &count, &error), MOTLEY_OK) << error.text;
  for (const char* variant : {"portable", "avx2", "avx-vnni", "avx512-vnni", "avx512-bf16", "amx"}) {
    if (count == 0 || std::string(variant) == best.variant) continue;
    motley_open_options open{};
    open.struct_size = sizeof open, open.variant = variant;
    motley_device* device = nullptr;
    const motley_code code = backend.open(0, &open, &device, &error);
    if (code == MOTLEY_NOT_FOUND || code == MOTLEY_UNIMPLEMENTED || code == MOTLEY_FAILED_PRECONDITION) continue;
    ASSERT_EQ(code, MOTLEY_OK) << variant << ": " << error.text;
    backend.close(device);
    Options options;
    options.variant = variant;
    options.line = [&](const std::string& line) { std::printf("  %s %s\n", variant, line.c_str()); };
    const Report report = run_conformance(backend, options);
    EXPECT_TRUE(report.ok()) << variant << ": " << report.failed << " failed, " << report.passed << " passed";
  }
}
#endif

// A device of fixed shapes that lets padding reach a real row in one bucket, or takes any blob, must not pass.
TEST(Judge, LyingFixedDevice_IsFound) {
  static const motley_backend& truth = sim_table();
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  motley_error error{};
  ASSERT_EQ(truth.describe("intel-npu-like", &desc, &error), MOTLEY_OK) << error.text;
  Options options;
  options.described = &desc;
  motley_backend liar = truth;
  liar.enqueue = [](motley_queue* queue, motley_programs* programs, const motley_enqueue_args* args,
                    motley_event** event, motley_error* failure) {
    const motley_code code = truth.enqueue(queue, programs, args, event, failure);
    if (code != MOTLEY_OK || args->bucket != 2 || !event) return code;
    truth.event_wait(*event, kPatience_ns, failure);
    const float leaked = NAN;  // into the first number of what was bound last, an output
    const motley_binding& out = args->bindings[args->binding_count - 1];
    motley_event* written = nullptr;
    truth.copy_from_host(queue, out.buffer, out.offset, &leaked, sizeof leaked, &written, failure);
    truth.event_wait(written, kPatience_ns, failure);
    truth.event_release(written);
    return code;
  };
  options.only = "parts";
  const Report leaking = run_conformance(liar, options);
  ASSERT_FALSE(leaking.ok());
  EXPECT_NE(leaking.failures.front().find("rows in 64"), std::string::npos) << leaking.failures.front();
  liar = truth;
  liar.compile = [](motley_device* device, const motley_segment* segment, motley_weight* const* weights,
                    const motley_compile_options* given, motley_programs** out, motley_error* failure) {
    motley_compile_options without = *given;
    without.blob = nullptr, without.blob_bytes = 0;
    return truth.compile(device, segment, weights, &without, out, failure);
  };
  options.only = "blobs";
  EXPECT_FALSE(run_conformance(liar, options).ok());
}

// A device that does something else must not pass: ref's table with one entry changed.
TEST(Judge, LyingDevice_IsFound) {
  void* library = dlopen(MOTLEY_BINARY_DIR "/lib/motley/ref.so", RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  const auto entry = reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY));
  motley_backend liar = *entry(MOTLEY_BACKEND_ABI);
  static const motley_backend& truth = *entry(MOTLEY_BACKEND_ABI);
  liar.copy_to_host = [](motley_queue* queue, void* dst, motley_buffer* src, uint64_t offset, uint64_t bytes,
                         motley_event** event, motley_error* error) {
    return truth.copy_to_host(queue, dst, src, offset ? offset - 1 : 0, bytes, event, error);
  };
  Options options;
  options.only = "queues";
  EXPECT_FALSE(run_conformance(liar, options).ok());
  // One that makes memory of its own where it should use what is given.
  liar = truth;
  liar.alloc = [](motley_device* device, uint64_t bytes, int32_t use, void*, motley_buffer** out, motley_error* error) {
    return truth.alloc(device, bytes, use, nullptr, out, error);
  };
  const Report report = run_conformance(liar, options);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.failures.front().find("imported memory"), std::string::npos) << report.failures.front();
}

}  // namespace
}  // namespace motley::conformance
