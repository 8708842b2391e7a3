// What is measured of devices, kept, and found again at the next start.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "base/config.hpp"
#include "llm/placing.hpp"
#include "model/random_model.hpp"

namespace motley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Names = std::vector<std::string>;

constexpr uint32_t kRowsMax = 16;
constexpr uint64_t kLittle = 8 << 20;  // less than embedding, head and layers take together

class CostsOfDevices : public ::testing::Test {
 protected:
  CostsOfDevices() : registry_(DeviceRegistry::scan(plugin_directory())), random_(spec()) {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-costs-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    CHECK(setenv("MOTLEY_CACHE_DIR", folder_.c_str(), 1) == 0);
    options_.rows_max = options_.step_rows_max = kRowsMax;
    options_.kv_dtype = MOTLEY_F32;
    options_.brief = true;
    scope_.may_go_without = true;
  }
  ~CostsOfDevices() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  static make_model::ModelSpec spec() {
    make_model::ModelSpec spec;
    spec.type = "F32", spec.vocab = 4096;
    return spec;
  }
  // A device, described.
  std::string name(const std::string& device) const { return "SIM:" + (folder_ / (device + ".toml")).string(); }
  void make(const std::string& device, const std::string& more = "", double gflops = 1000) {
    std::ofstream(folder_ / (device + ".toml"))
        << fmt::format("memory_bytes = 268435456\nbandwidth_gb_s = 100\ngflops = {{f32 = {}}}\n", gflops) + more;
  }
  void make_npu(const std::string& device, const std::string& more = "") {
    make(device, "dynamic_rows = false\npaged_attention = false\ncompile_s = 10\ncompile_op_s = 0\n" + more);
  }
  // As at a start.
  DeviceSet open(const std::map<std::string, uint64_t>& memory = {}) {
    std::string list;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().extension() == ".toml") list += (list.empty() ? "SIM:" : ",SIM:") + entry.path().string();
    }
    auto listed = parse_device_list(registry_, list);
    CHECK(listed.ok(), "{}", listed.error().message());
    DeviceSetOptions options;
    options.memory_caps = memory;
    auto opened = DeviceSet::open(*std::move(listed), options);
    CHECK(opened.ok(), "{}", opened.error().message());
    return *std::move(opened);
  }
  MeasuredInput measure(const DeviceSet& devices) {
    measured_.clear();
    auto made = measured_input(
        random_.model(), devices, options_,
        [&](const std::string& what) {
          if (what.starts_with("measuring SIM:")) measured_.push_back(what.substr(10));
        },
        scope_);
    CHECK(made.ok(), "{}", made.error().message());
    return *std::move(made);
  }

  DeviceRegistry registry_;
  testing::RandomModel random_;
  std::filesystem::path folder_;
  MeasureOptions options_;
  MeasureScope scope_;
  Names measured_;  // by the last measure()
};

// Also where no other start was: what is found once there is room is kept.
TEST_F(CostsOfDevices, WhatWasMeasuredRoughly_IsMeasuredAnewWithMoreMemory) {
  make("gpu"), make("other");
  const MeasuredInput rough = measure(open({{name("gpu"), kLittle}}));
  EXPECT_EQ(measured_.size(), 2u);
  const DeviceProfile* gpu = find_profile(rough.input, name("gpu"));
  EXPECT_EQ(gpu->roughly_with, kLittle);
  EXPECT_EQ(find_profile(rough.input, name("other"))->roughly_with, 0u);
  measure(open({{name("gpu"), kLittle}}));
  EXPECT_THAT(measured_, IsEmpty());
  EXPECT_FALSE(known_input(random_.model(), open(), options_).has_value());
  const MeasuredInput fine = measure(open());
  EXPECT_THAT(measured_, ElementsAre(name("gpu")));
  EXPECT_EQ(find_profile(fine.input, name("gpu"))->roughly_with, 0u);
  measure(open({{name("gpu"), kLittle}}));
  EXPECT_THAT(measured_, IsEmpty());
}

// Each for itself: one that failed may be well, one that took too long will again.
TEST_F(CostsOfDevices, OneThatFailed_IsTriedAgain_OneThatTookTooLongIsNot) {
  make("well"), make("slow", "dispatch_us = 100000\n");
  make_npu("ill", "[[fault]]\nwhat = 'compile'\n");
  scope_.limit_s = 1;
  const MeasuredInput first = measure(open());
  EXPECT_EQ(measured_.size(), 3u);
  ASSERT_EQ(first.unmeasured.size(), 2u);
  for (const Unmeasured& each : first.unmeasured) EXPECT_EQ(each.again, each.left.device == name("ill"));
  const MeasuredInput second = measure(open());
  EXPECT_THAT(measured_, ElementsAre(name("ill")));
  EXPECT_EQ(second.unmeasured.size(), 2u);
  scope_.unmeasured = first.unmeasured;  // as a running server knows them
  measure(open());
  EXPECT_THAT(measured_, IsEmpty());
}

TEST_F(CostsOfDevices, OneBeyondTheCompileLimit_IsLeftOutWhateverTheTime) {
  make("well"), make_npu("npu");
  options_.compile_seconds_max = 1;
  const MeasuredInput made = measure(open());
  ASSERT_EQ(made.unmeasured.size(), 1u);
  EXPECT_THAT(made.unmeasured[0].left.reason, HasSubstr("(1 may)"));
  scope_.may_go_without = false;
  const auto forced = measured_input(
      random_.model(), open(), options_, [](const std::string&) {}, scope_);
  EXPECT_EQ(forced.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
}

// And what compiles in its place is no other count: it would not have been measured.
TEST_F(CostsOfDevices, RowCountsThatFailLater_AreKnownAtTheNextStart) {
  make("well"), make_npu("npu");
  options_.compile_seconds_max = 95;  // for three counts
  const std::vector<int64_t> counts = find_profile(measure(open()).input, name("npu"))->buckets;
  ASSERT_EQ(counts.size(), 3u);
  {
    const DeviceSet devices = open();
    const MeasuredInput now = measure(devices);
    for (const MeasuredDevice& device : devices.measured()) {
      if (device.description.name == name("npu")) device.uncompiled->add(kRowsMax, "it is too many");
    }
    // As where a device is added.
    scope_.have = &now.input;
    const MeasuredInput later = measure(devices);
    scope_.have = nullptr;
    EXPECT_THAT(measured_, IsEmpty());
    EXPECT_THAT(find_profile(later.input, name("npu"))->buckets, ElementsAre(counts[0], counts[1]));
    keep_uncompiled(random_.model(), devices, options_);
  }
  const DeviceSet devices = open();
  const std::optional<PlanInput> known = known_input(random_.model(), devices, options_);
  ASSERT_TRUE(known.has_value());
  EXPECT_THAT(find_profile(*known, name("npu"))->buckets, ElementsAre(counts[0], counts[1]));
  for (const MeasuredDevice& device : devices.measured()) {
    if (device.description.name == name("npu")) EXPECT_THAT(device.uncompiled->rows(), ElementsAre(kRowsMax));
  }
  options_.load.concurrency = 3;  // other counts are other costs
  EXPECT_FALSE(known_input(random_.model(), open(), options_).has_value());
}

// A device of whose programs a plan has more than the limit lets it compile, though of all layers alone it may have
// some.
TEST_F(CostsOfDevices, PlanBeyondTheCompileLimit_IsMadeWithoutTheDevice) {
  make("well", "", 2), make_npu("npu");
  const DeviceSet devices = open();
  RuntimeOptions runtime;
  runtime.rows_max = kRowsMax, runtime.logit_rows_max = 4, runtime.compile_seconds_max = 1000;
  PlanSettings settings;
  settings.prompt_len = settings.output_len = 16, settings.concurrency = 4;
  const auto plan_now = [&](const PlannedModel* have) {
    return plan_model(
        random_.model(), devices, settings, {.dtype = MOTLEY_F32}, runtime, [](const std::string&) {}, nullptr, have);
  };
  auto before = plan_now(nullptr);
  ASSERT_TRUE(before.ok()) << before.error().message();
  EXPECT_THAT(devices_of(before->report.placement), ::testing::Contains(name("npu")));
  runtime.compile_seconds_max = 5;
  const auto after = plan_now(&*before);
  ASSERT_TRUE(after.ok()) << after.error().message();
  EXPECT_THAT(devices_of(after->report.placement), ElementsAre(name("well")));
  ASSERT_EQ(after->report.left_out.size(), 1u);
  EXPECT_THAT(after->report.left_out[0].reason, HasSubstr("in all lanes of the plan: programs of"));
  EXPECT_EQ(find_profile(after->input, name("npu")), nullptr);
  settings.use_all_devices = true;
  EXPECT_EQ(plan_now(&*before).error().code(), MOTLEY_UNIMPLEMENTED);
}

}  // namespace
}  // namespace motley
