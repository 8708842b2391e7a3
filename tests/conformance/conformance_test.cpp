// Every plugin that lies in lib/motley is judged.
#include "conformance.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace motley::conformance {
namespace {

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

// The other kernels of a device that has several; "" above was its best. Not under ThreadSanitizer: they run on the
// same threads as the best ones, and would take many minutes.
#ifndef __SANITIZE_THREAD__
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
