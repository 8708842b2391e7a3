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
  Options options;
  options.line = [](const std::string& line) { std::printf("  %s\n", line.c_str()); };
  const Report report = run_conformance(*backend, options);
  EXPECT_TRUE(report.ok()) << report.failed << " failed, " << report.passed << " passed";
  EXPECT_GT(report.passed, 500u) << "a judge that looks at little proves little";
}

INSTANTIATE_TEST_SUITE_P(Built, Plugin, testing::ValuesIn(plugins()), [](const auto& plugin) { return plugin.param; });

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
}

}  // namespace
}  // namespace motley::conformance
