// A model in service whose devices change.
#include "llm/instance.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <regex>
#include <thread>

#include "llm/generate.hpp"
#include "make_model/make_model.hpp"

namespace motley {
namespace {

// A tiny model on one simulated device, to which one as fast is added that holds no more than a part of it: whatever
// their speed is measured to be, the plan over both takes weights off the first; layers, for each program takes them a
// millisecond. Their memory is the host's.
// Measuring it takes some 250; then it serves for two seconds or three.
constexpr int kProgramsUntilItFades = 900;

class InstanceOfTwo : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {  // measured once
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-instance-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    CHECK(setenv("MOTLEY_CACHE_DIR", folder_.c_str(), 1) == 0);
    make_model::ModelSpec spec;
    spec.type = "F32", spec.seed = 3, spec.layers = 16, spec.hidden = 64, spec.ffn = 128;
    CHECK(make_model::make_model(spec, folder_ / "model.gguf").ok());
    const auto add_device = [](const std::string& device, int mib, int dispatch_us, const std::string& more = "") {
      std::ofstream(folder_ / (device + ".toml"))
          << fmt::format("memory_bytes = {}\nbandwidth_gb_s = 0.5\ngflops = {{f32 = 1}}\ndispatch_us = {}\n{}",
                         mib << 20, dispatch_us, more);
    };
    add_device("first", 256, 1000);
    add_device("second", 3, 1000);
    add_device("steady", 256, 300);
    add_device("fades", 256, 300,
               fmt::format("[[fault]]\nwhat = \"slow\"\nat_program = {}\nfactor = 5\n", kProgramsUntilItFades));
  }
  static void TearDownTestSuite() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  static std::string name(const std::string& device) { return "SIM:" + (folder_ / (device + ".toml")).string(); }
  InstanceOptions options_of(const std::string& devices) {
    InstanceOptions options;
    options.model = folder_ / "model.gguf";
    options.devices = devices;
    options.kv_cache_memory_bytes = 1 << 20;
    options.planning.concurrency = 4, options.planning.prompt_len = 64, options.planning.output_len = 32;
    options.engine.max_num_batched_tokens = 64, options.engine.max_num_seqs = 4, options.engine.max_model_len = 512;
    options.host_memory = [this] { return free_.load(); };
    return options;
  }
  std::unique_ptr<Instance> open() {
    InstanceOptions options = options_of(name("first"));
    options.planning.use_all_devices = true;
    auto opened = Instance::open(options);
    CHECK(opened.ok(), "{}", opened.error().message());
    return *std::move(opened);
  }
  static std::vector<TokenId> answer(Instance& instance) {
    Request request;
    request.prompt = {1, 5, 9, 2};
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = 8;
    const auto made = generate(instance.engine(), instance.tokenizer(), std::move(request), {},
                               [](std::string_view) { return true; });
    CHECK(made.ok(), "{}", made.error().message());
    std::vector<TokenId> ids;
    for (const SampledToken& token : made->tokens) ids.push_back(token.id);
    return ids;
  }

  // Adds the second, and keeps what is logged.
  Status add(Instance& instance) {
    ::testing::internal::CaptureStderr();
    const Status added = instance.add_devices({name("second")}).error();
    log_ = ::testing::internal::GetCapturedStderr();
    return added;
  }
  // As the log says: "... 1.5 MiB were packed beside the steps, 3.0 MiB in the pause".
  double kib_packed(const std::string& where) const {
    std::smatch found;
    const std::regex text("([0-9.]+) (B|KiB|MiB) (were packed )?" + where);
    CHECK(std::regex_search(log_, found, text), "{}", log_);
    return std::stod(found[1]) * (found[2] == "MiB" ? 1024 : found[2] == "KiB" ? 1 : 1.0 / 1024);
  }

  static inline std::filesystem::path folder_;
  std::string log_;
  std::atomic<uint64_t> free_ = 0;
};

// What stays is packed in neither case. Where the host has no room for both plans, what it has room for is packed
// beside the first, and the rest in the pause.
TEST_F(InstanceOfTwo, WeightsThatStay_AreNotPackedAgain_WhereTheHostHasNoRoomForBothPlans) {
  constexpr double kRounded = 128;  // KiB, of two figures
  free_ = 0;                        // nobody knows
  ASSERT_TRUE(add(*open()).ok()) << log_;
  const double anew = kib_packed("beside the steps");
  EXPECT_EQ(kib_packed("in the pause"), 0);
  EXPECT_LT(anew, 0.7 * static_cast<double>(std::filesystem::file_size(folder_ / "model.gguf") >> 10));
  const auto instance = open();
  Status added = error(MOTLEY_RESOURCE_EXHAUSTED, "not tried");
  while (added.code() == MOTLEY_RESOURCE_EXHAUSTED && free_ < 32 << 20) {
    free_ += 512 << 10;
    added = add(*instance);
  }
  ASSERT_TRUE(added.ok()) << added.message();
  const double beside = kib_packed("beside the steps"), paused = kib_packed("in the pause");
  EXPECT_GT(beside, 0);
  EXPECT_LE(beside, static_cast<double>(free_ >> 10));
  EXPECT_GT(paused, 0);
  EXPECT_NEAR(beside + paused, anew, kRounded);
}

// What the first gives back counts only once it is given back: so the least memory that lets the plan over both be is
// too little for both plans at once.
TEST_F(InstanceOfTwo, AnAddedDevice_TakesNoMoreThanTheHostHas) {
  free_ = 1 << 10;
  const auto instance = open();
  const std::vector<TokenId> before = answer(*instance);
  const auto refused = instance->add_devices({name("second")});
  EXPECT_EQ(refused.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.error().message().find("1.0 KiB are free"), std::string::npos) << refused.error().message();
  EXPECT_EQ(instance->devices_in_force().size(), 1u);
  EXPECT_EQ(answer(*instance), before);
  auto added = error(MOTLEY_RESOURCE_EXHAUSTED, "not tried");
  for (free_ = 256 << 10; added.code() == MOTLEY_RESOURCE_EXHAUSTED && free_ < 32 << 20; free_ += 256 << 10) {
    added = add(*instance);
  }
  EXPECT_TRUE(added.ok()) << added.message();
  EXPECT_NE(log_.find("the host has no room for both plans at once"), std::string::npos) << log_;
  EXPECT_EQ(instance->devices_in_force().size(), 2u);
  EXPECT_EQ(answer(*instance), before);
}

// The first device serves while both are measured; the plan over both takes over, and once one of them fades a plan
// that gives it less to do. No request fails, or notices.
TEST_F(InstanceOfTwo, APlanMadeWhileServing_TakesOver_AndFollowsADeviceThatFades) {
  InstanceOptions options = options_of(name("steady") + "," + name("fades"));
  options.serve_first = options.adapt = true;
  auto opened = Instance::open(options);
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  Instance& instance = **opened;
  const std::vector<TokenId> before = answer(instance);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const auto waits_for = [&](uint64_t replacements) {
    return instance.engine().stats().replacements < replacements && std::chrono::steady_clock::now() < end;
  };
  EXPECT_EQ(instance.devices_in_force().size(), 1u);
  while (waits_for(1)) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // measured faster than beside steps
  EXPECT_EQ(instance.devices_in_force().size(), 2u);
  std::vector<std::thread> streams;
  for (int i = 0; i < 4; ++i) {
    streams.emplace_back([&] {
      while (waits_for(2)) EXPECT_EQ(answer(instance), before);
    });
  }
  for (std::thread& stream : streams) stream.join();
  EXPECT_EQ(instance.engine().stats().replacements, 2u);
  EXPECT_NE(instance.plan_picture().find("moved "), std::string::npos) << instance.plan_picture();
  EXPECT_EQ(answer(instance), before);
}

}  // namespace
}  // namespace motley
