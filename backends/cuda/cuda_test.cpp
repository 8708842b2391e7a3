// What needs no GPU: why there is none, how columns are cut, and the table's answers without a device.
#include "cuda/cuda.hpp"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "cuda/attention/plan.hpp"
#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "cuda/records.hpp"
#include "cuda/weight.hpp"
#include "kit/reference.hpp"

namespace motley::cuda {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kTargets = "arch=compute_90a,code=sm_90a arch=compute_80,code=compute_80";

Gpu gpu(int major) { return {3, "a GPU", major, 5, 100, 90}; }

std::string reason(const Sight& sight) {
  std::string why;
  EXPECT_TRUE(usable(sight, kTargets, &why).empty());
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
  EXPECT_EQ(reason(sight), "GPU 3 (a GPU, compute capability 7.5) is too old: the plugin needs 8.0");
}

TEST(Driver, GpuWithoutCodeForIt_IsLeftOutAndNamed) {
  Sight sight;
  sight.gpus = {gpu(9)};
  std::string why;
  EXPECT_TRUE(usable(sight, "arch=compute_100a,code=sm_100a", &why).empty());
  EXPECT_EQ(why,
            "GPU 3 (a GPU, compute capability 9.5) is left out: this build has no code for it (MOTLEY_CUDA_TARGETS)");
}

TEST(Driver, CodeOfATarget_RunsWhereCudaSaysThatItDoes) {
  struct Case {
    const char* code;
    int major, minor;
    bool runs;
  };
  for (const Case& c : std::initializer_list<Case>{{"sm_86", 8, 6, true},
                                                   {"sm_86", 8, 9, true},
                                                   {"sm_86", 8, 0, false},
                                                   {"sm_86", 9, 0, false},
                                                   {"sm_90a", 9, 0, true},
                                                   {"sm_90a", 9, 1, false},
                                                   {"compute_90a", 10, 0, false},
                                                   {"sm_100f", 10, 3, true},
                                                   {"compute_100f", 10, 3, true},
                                                   {"sm_100f", 12, 0, false},
                                                   {"compute_100f", 12, 0, false},
                                                   {"compute_80", 8, 0, true},
                                                   {"compute_80", 12, 1, true},
                                                   {"compute_80", 7, 5, false},
                                                   {"[sm_90,compute_80]", 8, 0, true},
                                                   {"[sm_80,sm_86]", 9, 0, false},
                                                   {"[sm_80,sm_86]", 8, 6, true},
                                                   {"lto_80", 9, 0, false},
                                                   {"sm_", 9, 0, false},
                                                   {"", 9, 0, false}})
    EXPECT_EQ(has_code(std::string("arch=compute_50,code=") + c.code, c.major, c.minor), c.runs)
        << c.code << " at " << c.major << "." << c.minor;
  EXPECT_TRUE(has_code(kTargets, 9, 0));
  EXPECT_TRUE(has_code(kTargets, 10, 0));
}

TEST(Driver, OldGpuBesideANewOne_IsLeftOutAndNamed) {
  Sight sight;
  sight.gpus = {gpu(7), gpu(9)};
  std::string why;
  const std::vector<Gpu> found = usable(sight, kTargets, &why);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].major, 9);
  EXPECT_EQ(why, "GPU 3 (a GPU, compute capability 7.5) is too old: the plugin needs 8.0");
}

TEST(Memory, ErrorsAfterWhichAGpuIsLost) {
  for (const cudaError_t lost : {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorLaunchTimeout,
                                 cudaErrorAssert, cudaErrorECCUncorrectable, cudaErrorNvlinkUncorrectable,
                                 cudaErrorContained, cudaErrorMpsClientTerminated, cudaErrorUnknown})
    EXPECT_EQ(code_of(lost), MOTLEY_UNAVAILABLE) << cudaGetErrorName(lost);
  EXPECT_EQ(code_of(cudaErrorMemoryAllocation), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_EQ(code_of(cudaErrorInvalidValue), MOTLEY_INTERNAL);
  EXPECT_EQ(code_of(cudaSuccess), MOTLEY_OK);
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

// Less than goes by threads, and more of it, with an end inside of a piece; the second time with what the first made.
TEST(Uploader, AnyBytes_ArriveAsTheyWere) {
  std::string why;
  const std::vector<Gpu> gpus = find_gpus(&why);
  if (gpus.empty()) GTEST_SKIP() << why;
  CudaMemory memory(gpus[0].ordinal);
  for (const size_t bytes : {size_t{1000}, size_t{67'108'867}, size_t{40'000'001}}) {
    std::vector<uint32_t> from(bytes / 4 + 1), back(from.size());
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint32_t>(i * 2654435761u);
    const DeviceBytes there(memory, from.data(), bytes);
    ASSERT_EQ(cudaMemcpy(back.data(), there.as<std::byte>(), bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(0, std::memcmp(from.data(), back.data(), bytes)) << bytes;
  }
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

// Sequences of rows that end at a position, as a batch.
struct Rows {
  motley_batch b{};
  std::vector<int32_t> positions;
  std::vector<uint8_t> generated;
  std::vector<uint32_t> row_begin = {0}, block_begin = {0};
  void add(int32_t first, int32_t count, bool is_generated) {
    for (int32_t i = 0; i < count; ++i) positions.push_back(first + i), generated.push_back(is_generated);
    row_begin.push_back(static_cast<uint32_t>(positions.size()));
    block_begin.push_back(block_begin.back() + static_cast<uint32_t>(first + count) / 16 + 1);
  }
  AttentionPlan plan(const AttentionShape& shape, bool one_class, int32_t at_once = 49) {
    b.rows = static_cast<uint32_t>(positions.size()), b.seqs = static_cast<uint32_t>(row_begin.size()) - 1;
    b.positions = positions.data(), b.generated = generated.data();
    b.seq_row_begin = row_begin.data(), b.seq_block_begin = block_begin.data();
    return plan_attention(shape, b, one_class, at_once);
  }
};
constexpr AttentionShape kShape{32, 8, 128};  // four heads share a KV head: two rows make a tile

TEST(AttentionPlan, ChunksOfARow_DependOnItsPositionAlone) {
  EXPECT_EQ(chunk_positions(0), 256);
  EXPECT_EQ(chunk_count(255), 1);
  EXPECT_EQ(chunk_count(256), 2);
  EXPECT_EQ(chunk_positions(8191), 256);
  EXPECT_EQ(chunk_positions(8192), 512);
  for (const int32_t position : {8191, 8192, 16383, 131071, 1000000}) EXPECT_LE(chunk_count(position), kChunksMax);
  Rows alone, among;
  alone.add(700, 1, true);
  among.add(0, 40, false), among.add(700, 1, true), among.add(3, 1, true);
  const AttentionPlan one = alone.plan(kShape, false), of_three = among.plan(kShape, false);
  ASSERT_EQ(one.chunks.size(), 3u);
  ASSERT_EQ(of_three.chunks.size(), 4u);
  for (int32_t c = 0; c < 3; ++c) {
    EXPECT_EQ(one.chunks[static_cast<size_t>(c)].chunk_begin, c);
    EXPECT_EQ(of_three.chunks[static_cast<size_t>(c)].chunk_end, c + 1);
    EXPECT_EQ(of_three.chunks[static_cast<size_t>(c)].row, 40);
    EXPECT_EQ(of_three.chunks[static_cast<size_t>(c)].tile, 0);
  }
  EXPECT_EQ(of_three.chunks[3].partial, -1);  // one chunk is a tile's whole result
}

TEST(AttentionPlan, PromptRows_GoInOnePassUnlessThereIsOneClass) {
  Rows rows;
  rows.add(100, 400, false), rows.add(50, 2, true);
  const AttentionPlan two = rows.plan(kShape, false);
  ASSERT_EQ(two.passes.size(), 4u);
  EXPECT_EQ(two.passes[0].rows, 16);  // the one that sees most comes first
  EXPECT_EQ(two.passes[0].front, 484);
  EXPECT_EQ(two.passes[0].last, 499);
  EXPECT_EQ(two.passes[3].row, 0);
  EXPECT_EQ(two.passes[3].last, 227);
  EXPECT_EQ(two.chunks.size(), 1u);
  EXPECT_EQ(two.chunks[0].rows, 2);
  const AttentionPlan one = rows.plan(kShape, true);
  EXPECT_TRUE(one.passes.empty());
  int32_t covered = 0;
  for (const ChunkItem& item : one.chunks) {
    EXPECT_EQ(chunk_positions(item.front), chunk_positions(item.last));
    if (item.chunk_begin == 0) covered += item.rows;
  }
  EXPECT_EQ(covered, 402);
}

TEST(AttentionPlan, RowsWhoseChunksAreLongerThanTheirNeighbours_AreNoTileOfTheirs) {
  Rows rows;
  rows.add(8190, 4, true);
  const AttentionPlan plan = rows.plan({8, 8, 64}, true);  // eight rows a tile
  int32_t tiles = 0;
  for (const ChunkItem& item : plan.chunks) {
    EXPECT_EQ(item.rows, 2);
    tiles = std::max(tiles, item.tile + 1);
  }
  EXPECT_EQ(tiles, 2);
}

TEST(AttentionPlan, OnlyTheLastTurnsTiles_AreSplit) {
  Rows rows;
  for (int i = 0; i < 60; ++i) rows.add(600, 1, true);
  rows.add(5, 1, true);
  const AttentionPlan plan = rows.plan(kShape, false, 49);
  ASSERT_EQ(plan.chunks.size(), 49 + 11 * 3 + 1u);  // 61 tiles
  for (size_t i = 0; i < plan.chunks.size(); ++i) EXPECT_EQ(plan.chunks[i].partial < 0, i < 49 || i == 82);
  Rows long_one;  // that would keep its taker busy when all others are done
  long_one.add(6000, 1, true);
  for (int i = 0; i < 48; ++i) long_one.add(5, 1, true);
  EXPECT_EQ(long_one.plan(kShape, false, 49).chunks.size(), 24 + 48u);
}

TEST(AttentionPlan, MoreResultsThanHaveRoom_AreNotSplit) {
  Rows rows;
  for (int i = 0; i < 300; ++i) rows.add(4000, 1, true);  // of 16 chunks, for 32 heads
  const AttentionPlan plan = rows.plan(kShape, false, 301);
  ASSERT_EQ(plan.chunks.size(), 300u);
  for (const ChunkItem& item : plan.chunks) {
    EXPECT_EQ(item.partial, -1);
    EXPECT_EQ(item.chunk_end, 16);
  }
}

class StepRecords : public testing::Test {
 protected:
  static constexpr size_t kMost = 8;
  using Graphs = Records<std::shared_ptr<int>>;
  // As a stream uses them: recorded when a step comes for the second time.
  Graphs::Record& use(uint64_t step) {
    Graphs::Record& record = records_.use({step, 1}, [&] { ++waits_; });
    if (record.seen && !record.graph) record.graph = std::make_shared<int>(0);
    record.seen = true;
    return record;
  }
  bool is_recorded(uint64_t step) { return use(step).graph != nullptr; }
  void record(uint64_t step) { use(step), use(step); }

  Graphs records_{kMost};
  int waits_ = 0;
};

TEST_F(StepRecords, WhatCameOnce_MakesRoomFirst) {
  for (uint64_t step = 0; step < 5; ++step) record(step);
  for (uint64_t step = 10; step < 13; ++step) use(step);
  use(20);
  EXPECT_EQ(records_.size(), 6u);
  EXPECT_EQ(waits_, 0);  // no graph was destroyed
  for (uint64_t step = 0; step < 5; ++step) EXPECT_TRUE(is_recorded(step)) << step;
  EXPECT_FALSE(use(10).graph);
}

TEST_F(StepRecords, TheHalfNotUsedForLongest_MakesRoomThen) {
  for (uint64_t step = 0; step < kMost; ++step) record(step);
  const std::weak_ptr<int> kept = use(2).graph, dropped = use(0).graph;
  for (const uint64_t step : {1, 5, 6, 2}) use(step);  // 3, 4, 7 and 0 are older
  EXPECT_EQ(waits_, 0);
  use(20);
  EXPECT_EQ(waits_, 1);
  EXPECT_EQ(records_.size(), kMost / 2 + 1);
  for (const uint64_t step : {1, 2, 5, 6}) EXPECT_TRUE(is_recorded(step)) << step;
  EXPECT_FALSE(kept.expired());
  EXPECT_TRUE(dropped.expired());
}

TEST_F(StepRecords, WhatCannotBeRecorded_StaysKnown) {
  use(1).refused = true;
  for (uint64_t step = 10; step < 10 + kMost; ++step) use(step);
  EXPECT_TRUE(records_.use({1, 1}, [] {}).refused);
}

TEST(Rope, AnglesAreLinearInThePosition) {  // what the table of turns rests on
  motley_attr attr{};
  attr.rope = {MOTLEY_ROPE_NEOX, 1, 64, 64, 10000, 0.5f, 1, 4, 1, 8, 24};
  for (const int32_t pair : {0, 12, 31})
    EXPECT_NEAR(kit::rope_angle(attr.rope, 1000, pair, 1.5f), 1000 * kit::rope_angle(attr.rope, 1, pair, 1.5f), 1e-9);
}

}  // namespace
}  // namespace motley::cuda
