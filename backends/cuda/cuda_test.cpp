// What needs no GPU: why there is none, how columns are cut, and the table's answers without a device.
#include "cuda/cuda.hpp"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "cuda/driver.hpp"
#include "cuda/weight.hpp"
#include "kit/reference.hpp"

namespace motley::cuda {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Gpu gpu(int major) { return {3, "a GPU", major, 5, 100, 90}; }

std::string reason(const Sight& sight) {
  std::string why;
  EXPECT_TRUE(usable(sight, &why).empty());
  return why;
}

TEST(Driver, NoUsableGpu_SaysWhy) {
  Sight sight;
  sight.load_error = "the driver library is missing";
  EXPECT_EQ(reason(sight), "no NVIDIA driver: the driver library is missing");
  sight = Sight{};
  sight.code = cudaErrorInsufficientDriver, sight.driver_version = 12040, sight.runtime_version = 13000;
  EXPECT_EQ(reason(sight), "the NVIDIA driver is too old: it serves CUDA 12.4, the plugin needs 13.0");
  sight.code = cudaErrorNoDevice;
  EXPECT_THAT(reason(sight), HasSubstr("no GPU that this process may use"));
  sight.code = cudaSuccess;
  EXPECT_THAT(reason(sight), HasSubstr("no GPU that this process may use"));
  sight.code = cudaErrorUnknown, sight.code_text = "unknown error";
  EXPECT_EQ(reason(sight), "the NVIDIA driver does not start: unknown error");
  sight.code = cudaSuccess, sight.gpus = {gpu(7)};
  EXPECT_EQ(reason(sight), "a GPU is too old: compute capability 7.5, the plugin needs 8.0");
}

TEST(Driver, OldGpuBesideANewOne_IsLeftOut) {
  Sight sight;
  sight.gpus = {gpu(7), gpu(9)};
  std::string why;
  const std::vector<Gpu> found = usable(sight, &why);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].major, 9);
}

TEST(Plugin, Enumerate_GivesGpusOrAReason) {
  const motley_backend* table = kit::backend_table<CudaBackend>(MOTLEY_BACKEND_ABI, "cuda", "test");
  uint32_t count = 1;
  motley_error error{};
  ASSERT_EQ(table->enumerate(nullptr, 0, &count, &error), MOTLEY_OK);
  if (count > 0) GTEST_SKIP() << "this machine has a GPU; motley conformance examines it";
  EXPECT_EQ(error.code, MOTLEY_NOT_FOUND);
  EXPECT_STRNE(error.text, "");
  motley_device* device = nullptr;
  EXPECT_EQ(table->open(0, nullptr, &device, &error), MOTLEY_NOT_FOUND);
  EXPECT_EQ(device, nullptr);
}

TEST(CutColumns, WholeBlocks_NeedNoMap) {
  const kit::Format& format = *kit::find_format(MOTLEY_Q4_0);
  const std::vector<motley_range> ranges = {{64, 128}, {0, 32}};
  const Columns columns = cut_columns(format, ranges);
  EXPECT_THAT(columns.blocks, ElementsAre(2, 3, 0));
  EXPECT_TRUE(columns.sub_block_of.empty());
}

TEST(CutColumns, PartsOfBlocks_AreFoundInTheHeldOnes) {
  const kit::Format& format = *kit::find_format(MOTLEY_Q4_K);  // 8 sub-blocks of 32
  const std::vector<motley_range> ranges = {{192, 320}, {512, 544}};
  const Columns columns = cut_columns(format, ranges);
  EXPECT_THAT(columns.blocks, ElementsAre(0, 1, 2));
  EXPECT_THAT(columns.sub_block_of, ElementsAre(6, 7, 8, 9, 16));
}

TEST(CutColumns, SinglesAsBlocks_AreEachOne) {
  const Columns columns = cut_columns(*kit::find_format(MOTLEY_BF16), std::vector<motley_range>{{3, 6}});
  EXPECT_THAT(columns.blocks, ElementsAre(3, 4, 5));
  EXPECT_TRUE(columns.sub_block_of.empty());
}

TEST(Rope, AnglesAreLinearInThePosition) {  // what the table of turns rests on
  motley_attr attr{};
  attr.rope = {MOTLEY_ROPE_NEOX, 1, 64, 64, 10000, 0.5f, 1, 4, 1, 8, 24};
  for (const int32_t pair : {0, 12, 31})
    EXPECT_NEAR(kit::rope_angle(attr.rope, 1000, pair, 1.5f), 1000 * kit::rope_angle(attr.rope, 1, pair, 1.5f), 1e-9);
}

}  // namespace
}  // namespace motley::cuda
