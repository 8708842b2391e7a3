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

TEST(Buckets, TheLargestAndTheSmallestFirst_ThenWhatLeavesNoWideStep) {
  EXPECT_EQ(row_buckets(2048), (Rows{4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048}));
  EXPECT_EQ(row_buckets(2048, 9), (Rows{8, 16, 32, 64, 128, 256, 512, 1024, 2048}));
  EXPECT_EQ(row_buckets(2048, 6), (Rows{8, 16, 64, 128, 512, 2048}));
  EXPECT_EQ(row_buckets(2048, 10), row_buckets(2048));
  EXPECT_EQ(row_buckets(2048, 4), (Rows{8, 32, 256, 2048}));
  EXPECT_EQ(row_buckets(2048, 3), (Rows{8, 128, 2048}));
  EXPECT_EQ(row_buckets(2048, 2), (Rows{8, 2048}));
  EXPECT_EQ(row_buckets(2048, 1), Rows{2048});
  EXPECT_EQ(row_buckets(2048, 0), Rows{2048});
  EXPECT_EQ(row_buckets(16), (Rows{4, 8, 16}));
  EXPECT_EQ(row_buckets(8), (Rows{4, 8}));
  EXPECT_EQ(row_buckets(3, 2), Rows{3});
}

// Two layers are three programs around what a partner attends to, of 10 s each for a row count.
TEST(Buckets, AsManyAsTheTimeCompiles) {
  const testing::SimFile file(
      "kind = \"npu\"\nmemory_bytes = 1000000000\nbandwidth_gb_s = 10\ngflops = {f32 = 10}\ndynamic_rows = false\n"
      "paged_attention = false\ncompile_s = 10\ncompile_op_s = 0\ncompile_max_s = 10\n");
  const Device device = file.open();
  const testing::RandomModel random(make_model::ModelSpec{});
  const auto of = [&](double seconds, bool any_rows = false) {
    const auto made = buckets_of(random.model(), device, {any_rows, 1024, seconds});
    EXPECT_TRUE(made.ok()) << made.error().message();
    return made.ok() ? made->rows : Rows{};
  };
  EXPECT_EQ(of(kCompileSecondsMax), row_buckets(1024));
  EXPECT_EQ(of(119), (Rows{8, 64, 1024}));
  EXPECT_EQ(of(89), (Rows{8, 1024}));
  EXPECT_EQ(of(30), Rows{1024});
  EXPECT_EQ(of(0, true), Rows{1024});
  const auto none = buckets_of(random.model(), device, {false, 1024, 29});
  EXPECT_EQ(none.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_THAT(none.error().message(), HasSubstr("1024 rows alone would take 30 s to compile (29 may)"));
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
  EXPECT_EQ(of(27000), row_buckets(1024));
  EXPECT_EQ(of(26999).size(), 8u);
  EXPECT_EQ(of(6000), (Rows{8, 1024}));
  EXPECT_EQ(of(3000), Rows{1024});
  const auto none =
      buckets_of(random.model(), device, {.any_rows = false, .rows_max = 1024, .program_bytes_max = 2999});
  EXPECT_EQ(none.error().code(), MOTLEY_RESOURCE_EXHAUSTED);
}

}  // namespace
}  // namespace motley
