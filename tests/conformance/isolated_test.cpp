// A plugin in a worker process is judged like any other: the same contract either way.
#include "device/worker/isolated.hpp"

#include <gtest/gtest.h>

#include <atomic>

#include "conformance.hpp"

namespace motley::conformance {
namespace {

const std::string& plugin_file() {
  static const std::string file = MOTLEY_BINARY_DIR "/lib/motley/cpu.so";
  return file;
}

WorkerOptions worker_options() {
  WorkerOptions options;
  options.program = MOTLEY_BINARY_DIR "/tests/motley_test_worker";
  return options;
}

motley_code fail(const Status& status, motley_error* error) {
  error->code = status.code();
  std::snprintf(error->text, sizeof error->text, "%s", status.message().c_str());
  return status.code();
}

motley_code enumerate(motley_device_desc* out, uint32_t capacity, uint32_t* count, motley_error* error) {
  const auto found = enumerate_isolated(plugin_file(), worker_options());
  if (!found.ok()) return fail(found.error(), error);
  *count = static_cast<uint32_t>(found->size());
  for (uint32_t i = 0; i < *count && i < capacity; ++i) out[i] = (*found)[i];
  return MOTLEY_OK;
}

// What a sanitizer finds in a worker, it prints there.
std::atomic<int> findings{0};
void look_for_findings(void*, int32_t, const char* text) {
  if (std::string_view(text).find("Sanitizer") == std::string_view::npos &&
      std::string_view(text).find("runtime error") == std::string_view::npos) {
    return;
  }
  ++findings;
  std::printf("  worker: %s\n", text);
}

motley_code open(uint32_t index, const motley_open_options* options, motley_device** out, motley_error* error) {
  if (options->struct_size < sizeof *options) return fail(invalid_argument("options of another version"), error);
  motley_open_options watched = *options;
  watched.log = look_for_findings;
  const auto opened = open_isolated(plugin_file(), index, watched, worker_options());
  if (!opened.ok()) return fail(opened.error(), error);
  *out = opened->device;
  return MOTLEY_OK;
}

// One table that opens each device in a worker of its own.
TEST(IsolatedCpu, Judged_EveryGroup_Passes) {
  motley_open_options plain{};
  plain.struct_size = sizeof plain;
  const auto first = open_isolated(plugin_file(), 0, plain, worker_options());
  ASSERT_TRUE(first.ok()) << first.error().to_string();
  motley_backend table = *first->api;  // the entries are the same for every device of the plugin
  const std::string name = table.name, version = table.version;
  table.name = name.c_str(), table.version = version.c_str();
  table.enumerate = enumerate, table.open = open;
  first->api->close(first->device);
#ifdef MOTLEY_SANITIZED
  // What crosses is the same in every group; under a sanitizer all of them would take many minutes.
  const std::vector<std::string> groups = {"kv", "queues", "errors"};
#else
  const std::vector<std::string> groups = {""};
#endif
  uint64_t passed = 0;
  for (const std::string& group : groups) {
    Options options;
    options.only = group;
    options.line = [](const std::string& line) { std::printf("  %s\n", line.c_str()); };
    const Report report = run_conformance(table, options);
    EXPECT_TRUE(report.ok()) << report.failed << " failed, " << report.passed << " passed";
    passed += report.passed;
  }
  EXPECT_EQ(findings, 0);
  EXPECT_GT(passed, 200u) << "a judge that looks at little proves little";
}

}  // namespace
}  // namespace motley::conformance
