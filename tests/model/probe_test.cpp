// What is measured of a model: which layers, and parts as drivers run them.
#include "runtime/probe.hpp"

#include <gtest/gtest.h>

#include <optional>

#include "base/config.hpp"
#include "device/registry.hpp"
#include "model/random_model.hpp"
#include "runtime/measured_layers.hpp"

namespace motley {
namespace {

make_model::ModelSpec spec_of(uint32_t layers) {
  make_model::ModelSpec spec;
  spec.type = "F32";
  spec.layers = layers;
  spec.hidden = 64, spec.heads = 4, spec.kv_heads = 2, spec.head_dim = 16, spec.ffn = 128, spec.vocab = 320;
  return spec;
}

LayerRange measured(const make_model::ModelSpec& spec, uint64_t memory_free = uint64_t{1} << 40, uint32_t least = 1) {
  const testing::RandomModel random(spec);
  return measured_layers(random.model(), memory_free, least);
}

TEST(MeasuredLayers, AllButTheFirstAndTheLast) {
  EXPECT_EQ(measured(spec_of(6)).first, 1u);
  EXPECT_EQ(measured(spec_of(6)).count, 4u);
  EXPECT_EQ(measured(spec_of(3)).first, 1u);
  EXPECT_EQ(measured(spec_of(3)).count, 1u);
}

TEST(MeasuredLayers, NoMoreThanTheCachesHold) {
  make_model::ModelSpec spec = spec_of(8);
  spec.ffn = 1 << 17;  // 100 MB a layer
  EXPECT_EQ(measured(spec).count, 1u);
  EXPECT_EQ(measured(spec).first, 4u);
  EXPECT_EQ(measured(spec, uint64_t{1} << 40, 3).count, 3u);  // asked for
  EXPECT_EQ(measured(spec, uint64_t{1} << 20, 3).count, 1u);  // and no memory
}

// 2 MB of KV and 0.1 MB of weights a layer.
TEST(MeasuredLayers, AQuarterOfTheMemoryAtMost_ButOne) {
  EXPECT_EQ(measured(spec_of(6), 20u << 20).count, 2u);
  EXPECT_EQ(measured(spec_of(6), 1u << 20).count, 1u);
  EXPECT_EQ(measured(spec_of(6), 0).count, 1u);
}

TEST(MeasuredLayers, AlikeInWhatTheySee) {
  make_model::ModelSpec spec = spec_of(8);
  spec.architecture = "gemma3", spec.window = 32;  // but for every sixth layer
  EXPECT_EQ(measured(spec).first, 1u);
  EXPECT_EQ(measured(spec).count, 4u);
}

TEST(MeasuredLayers, AFewOfThem_WhereMemoryIsScarce) {
  const testing::RandomModel random(spec_of(6));
  EXPECT_EQ(few_layers(random.model(), true).count, 1u);
  const LayerRange dense = few_layers(random.model(), false);
  EXPECT_EQ(dense.count, 2u);  // one behind the other
  EXPECT_GE(dense.first, 1u);
  EXPECT_LE(dense.first + dense.count, 5u);
  const testing::RandomModel small(spec_of(3));
  EXPECT_EQ(few_layers(small.model(), false).count, 1u);  // more are not alike
}

TEST(MeasuredLayers, ChunksSeeEnoughForTheirReadingToShow_AndNoMoreThanAnyLayer) {
  make_model::ModelSpec spec = spec_of(8);
  const auto seen = [&](bool own_memory, uint32_t rows_max, uint32_t positions) {
    const testing::RandomModel random(spec);
    const ChunkLoads loads =
        chunk_loads(random.model(), measured_layers(random.model(), UINT64_MAX), own_memory, rows_max, positions);
    EXPECT_EQ(loads.near.rows, loads.far.rows);
    EXPECT_EQ(loads.near.context, loads.near.rows);
    EXPECT_LT(loads.near.context, loads.far.context);
    return std::pair(loads.far.rows, loads.far.context);
  };
  spec.context = 8192;
  EXPECT_EQ(seen(false, 512, 8192), std::pair(64u, 512u));
  EXPECT_EQ(seen(true, 512, 8192), std::pair(256u, 4096u));
  EXPECT_EQ(seen(true, 16, 100), std::pair(16u, 100u));
  EXPECT_EQ(seen(true, 256, 100), std::pair(50u, 100u));
  spec.architecture = "gemma3", spec.window = 1024;  // but for every sixth layer; all see as far as 512
  EXPECT_EQ(seen(true, 512, 8192), std::pair(256u, 1024u));
  EXPECT_EQ(seen(false, 512, 8192), std::pair(64u, 512u));
  spec.context = 600;
  EXPECT_EQ(seen(true, 512, 8192), std::pair(256u, 600u));
}

class ProbeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    registry_ = DeviceRegistry::scan(plugin_directory());
    const auto entry = registry_.find("CPU:0");
    ASSERT_TRUE(entry.ok()) << entry.error().message();
    DeviceOptions options;
    options.threads = 1;
    auto device = Device::open(*(*entry)->plugin, 0, options);
    ASSERT_TRUE(device.ok()) << device.error().message();
    device_.emplace(*std::move(device));
  }
  std::unique_ptr<Probe> probe(const ProbeShare& share) {
    auto made = Probe::create(random_.model(), *device_, share, {{16}, MOTLEY_F32});
    EXPECT_TRUE(made.ok()) << made.error().message();
    return made.ok() ? *std::move(made) : nullptr;
  }

  const testing::RandomModel random_{spec_of(6)};
  DeviceRegistry registry_;
  std::optional<Device> device_;
};

TEST_F(ProbeTest, Parts_RunByTurns_AndMeetAfterEach) {
  const auto both = probe({.layers = {1, 4}, .kv_heads = 1, .ffn_columns = 64});
  ASSERT_NE(both, nullptr);
  ASSERT_TRUE(both->write_kv(16).ok());
  int met = 0;
  const auto times = both->parts_ns({.rows = 4, .context = 4, .one_sequence = true, .prompt = true}, 3, [&] {
    ++met;
    return ok_status();
  });
  ASSERT_TRUE(times.ok()) << times.error().message();
  EXPECT_EQ(met, 6);  // both parts of three layers
  EXPECT_GT(times->attention_ns, 0);
  EXPECT_GT(times->ffn_ns, 0);
}

TEST_F(ProbeTest, APartWithoutUnits_StillAddsTheSum) {
  const auto heads = probe({.layers = {1, 4}, .kv_heads = 2});
  ASSERT_NE(heads, nullptr);
  int met = 0;
  const auto times = heads->parts_ns({}, 2, [&] {
    ++met;
    return ok_status();
  });
  ASSERT_TRUE(times.ok()) << times.error().message();
  EXPECT_EQ(met, 4);
}

TEST_F(ProbeTest, AMeetingThatFails_EndsIt) {
  const auto both = probe({.layers = {1, 4}, .kv_heads = 1, .ffn_columns = 64});
  ASSERT_NE(both, nullptr);
  int met = 0;
  const auto times = both->parts_ns(
      {}, 4, [&]() -> Status { return ++met == 3 ? error(MOTLEY_UNAVAILABLE, "nobody came") : ok_status(); });
  EXPECT_EQ(times.error().message(), "nobody came");
  EXPECT_EQ(met, 3);
}

}  // namespace
}  // namespace motley
