// A model in service whose devices change.
#include "llm/instance.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "llm/generate.hpp"
#include "make_model/make_model.hpp"

namespace motley {
namespace {

// A tiny model on one simulated device, to which an equal one is added. Their memory is the host's.
class InstanceOfTwo : public ::testing::Test {
 protected:
  InstanceOfTwo() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-instance-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    CHECK(setenv("MOTLEY_CACHE_DIR", folder_.c_str(), 1) == 0);
    make_model::ModelSpec spec;
    spec.type = "F32", spec.seed = 3;
    CHECK(make_model::make_model(spec, folder_ / "model.gguf").ok());
    for (const std::string name : {"first", "second"}) {
      std::ofstream(folder_ / (name + ".toml")) << "memory_bytes = 268435456\nbandwidth_gb_s = 0.5\n"
                                                   "gflops = {f32 = 1}\ndispatch_us = 5\n";
    }
  }
  ~InstanceOfTwo() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string name(const std::string& device) const { return "SIM:" + (folder_ / (device + ".toml")).string(); }
  std::unique_ptr<Instance> open() {
    InstanceOptions options;
    options.model = folder_ / "model.gguf";
    options.devices = name("first");
    options.kv_cache_memory_bytes = 4 << 20;
    options.engine.max_num_batched_tokens = 64, options.engine.max_num_seqs = 4;
    options.host_memory = [this] { return free_.load(); };
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

  std::filesystem::path folder_;
  std::atomic<uint64_t> free_ = 0;
};

// A plan over both needs 3.8 MiB beside the one in force, of which the first device gives back 2.6 in the end.
TEST_F(InstanceOfTwo, AnAddedDevice_TakesNoMoreThanTheHostHas) {
  free_ = 1 << 10;
  const auto instance = open();
  const std::vector<TokenId> before = answer(*instance);
  const auto refused = instance->add_devices({name("second")});
  EXPECT_EQ(refused.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.error().message().find("1.0 KiB are free"), std::string::npos) << refused.error().message();
  EXPECT_EQ(instance->devices_in_force().size(), 1u);
  EXPECT_EQ(answer(*instance), before);
  free_ = 5 << 19;
  ::testing::internal::CaptureStderr();
  const auto added = instance->add_devices({name("second")});
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(added.ok()) << added.error().message();
  EXPECT_NE(log.find("the host has no room for both plans at once"), std::string::npos) << log;
  EXPECT_EQ(instance->devices_in_force().size(), 2u);
  EXPECT_EQ(answer(*instance), before);
}

}  // namespace
}  // namespace motley
