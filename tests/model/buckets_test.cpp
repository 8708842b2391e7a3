// Which row counts a device of fixed ones is compiled for.
#include "runtime/buckets.hpp"

#include <gtest/gtest.h>

#include "model/random_model.hpp"
#include "model/sim_file.hpp"

namespace motley {
namespace {

using Rows = std::vector<uint32_t>;

TEST(Buckets, TheLargestAndTheSmallestFirst_ThenWhatLeavesNoWideStep) {
  EXPECT_EQ(row_buckets(2048), (Rows{16, 64, 256, 512, 1024, 2048}));
  EXPECT_EQ(row_buckets(2048, 9), row_buckets(2048));
  EXPECT_EQ(row_buckets(2048, 4), (Rows{16, 64, 512, 2048}));
  EXPECT_EQ(row_buckets(2048, 3), (Rows{16, 256, 2048}));
  EXPECT_EQ(row_buckets(2048, 2), (Rows{16, 2048}));
  EXPECT_EQ(row_buckets(2048, 1), Rows{2048});
  EXPECT_EQ(row_buckets(2048, 0), Rows{2048});
  EXPECT_EQ(row_buckets(16), Rows{16});
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
  EXPECT_EQ(of(kCompileSecondsMax), (Rows{16, 64, 256, 512, 1024}));
  EXPECT_EQ(of(119), (Rows{16, 256, 1024}));
  EXPECT_EQ(of(89), (Rows{16, 1024}));
  EXPECT_EQ(of(0), Rows{1024});
  EXPECT_EQ(of(0, true), Rows{1024});
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
  EXPECT_EQ(of(15000), (Rows{16, 64, 256, 512, 1024}));
  EXPECT_EQ(of(14999).size(), 4u);
  EXPECT_EQ(of(6000), (Rows{16, 1024}));
  EXPECT_EQ(of(0), Rows{1024});
}

}  // namespace
}  // namespace motley
