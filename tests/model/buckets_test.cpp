// Which row counts a device of fixed ones is compiled for.
#include "runtime/buckets.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/random_model.hpp"
#include "model/sim_file.hpp"

namespace motley {
namespace {

using ::testing::HasSubstr;
using Rows = std::vector<uint32_t>;

Rows few(uint32_t rows_max, size_t most) { return fewer_row_counts(row_counts(rows_max), most); }

// Which have 31 programs, of 11.8 s each for a row count; half an hour is for four.
TEST(Buckets, ThirtyLayersGetFourOfAnNpuByDefault) {
  make_model::ModelSpec spec;
  spec.layers = 30;
  const testing::RandomModel random(spec);
  const DeviceRegistry registry = DeviceRegistry::scan(plugin_directory());
  const auto listed = parse_device_list(registry, "SIM:intel-npu-like");
  ASSERT_TRUE(listed.ok()) << listed.error().message();
  const auto device = Device::open(*listed->front().plugin, listed->front().description.desc.index, {});
  ASSERT_TRUE(device.ok()) << device.error().message();
  const auto made = buckets_of(random.model(), *device, {.any_rows = false, .rows_max = 2048});
  ASSERT_TRUE(made.ok()) << made.error().message();
  EXPECT_EQ(made->rows, few(2048, 4));
}

// Two layers are three programs around what a partner attends to, of 10 s each for a row count.
TEST(Buckets, AsManyAsTheTimeCompiles) {
  const testing::SimFile file(
      "kind = \"npu\"\nmemory_bytes = 1000000000\nbandwidth_gb_s = 10\ngflops = {f32 = 10}\ndynamic_rows = false\n"
      "paged_attention = false\ncompile_s = 10\ncompile_op_s = 0\ncompile_max_s = 10\n");
  const Device device = file.open();
  const testing::RandomModel random(make_model::ModelSpec{});
  const auto of = [&](double seconds, bool any_rows = false, const Rows& without = {}, const Rows& choice = {}) {
    const BucketOptions options{
        .any_rows = any_rows, .rows_max = 1024, .compile_seconds_max = seconds, .without = without, .of = choice};
    const auto made = buckets_of(random.model(), device, options);
    EXPECT_TRUE(made.ok()) << made.error().message();
    return made.ok() ? made->rows : Rows{};
  };
  EXPECT_EQ(of(kCompileSecondsMax), row_counts(1024));
  EXPECT_EQ(of(119), few(1024, 3));
  EXPECT_EQ(of(89), few(1024, 2));
  EXPECT_EQ(of(30), Rows{1024});
  EXPECT_EQ(of(0, true), Rows{1024});
  EXPECT_EQ(of(kCompileSecondsMax, false, {64, 1024}), (Rows{4, 8, 16, 32, 128, 256, 512}));
  EXPECT_EQ(of(kCompileSecondsMax, false, {64}, {16, 64, 256}), (Rows{16, 256}));
  EXPECT_EQ(of(89, false, {}, {16, 64, 256}), (Rows{16, 256}));
  EXPECT_EQ(buckets_of(random.model(), device, {.any_rows = false, .rows_max = 8, .without = {4, 8}}).error().code(),
            MOTLEY_UNIMPLEMENTED);
  const auto none = buckets_of(random.model(), device, {false, 1024, 29});
  EXPECT_EQ(none.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_THAT(none.error().message(), HasSubstr("1024 rows alone would take 30 s to compile (29 may)"));
}

TEST(Buckets, OfTwoDevices_AreThoseThatNeitherPads) {
  EXPECT_EQ(common_row_counts({4, 64, 512}, {4, 8, 16, 64, 256}), (Rows{4, 64, 256}));
  EXPECT_EQ(common_row_counts({4, 8, 16, 64, 256}, {4, 64, 512}), (Rows{4, 64, 256}));
  EXPECT_EQ(common_row_counts({512}, {4, 8, 512}), Rows{512});
  EXPECT_EQ(common_row_counts({32}, {8, 16}), Rows{16});
}

// Three programs of 1000 bytes each for a row count.
TEST(Buckets, AsManyAsTheMemoryHolds) {
  const testing::SimFile file(
      "kind = \"npu\"\nmemory_bytes = 1000000000\nbandwidth_gb_s = 10\ngflops = {f32 = 10}\ndynamic_rows = false\n"
      "paged_attention = false\nprogram_bytes = 1000\n");
  const Device device = file.open();
  const testing::RandomModel random(make_model::ModelSpec{});
  const auto of = [&](uint64_t bytes) {
    const auto made =
        buckets_of(random.model(), device, {.any_rows = false, .rows_max = 1024, .program_bytes_max = bytes});
    EXPECT_TRUE(made.ok()) << made.error().message();
    EXPECT_EQ(made->program_bytes, 3000 * made->rows.size());
    return made->rows;
  };
  EXPECT_EQ(of(27000), row_counts(1024));
  EXPECT_EQ(of(26999), few(1024, 8));
  EXPECT_EQ(of(6000), few(1024, 2));
  EXPECT_EQ(of(3000), Rows{1024});
  const auto none =
      buckets_of(random.model(), device, {.any_rows = false, .rows_max = 1024, .program_bytes_max = 2999});
  EXPECT_EQ(none.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace motley
