// KV that moves from the owners of one placement to those of another: what is said afterwards is what one device says,
// and what moves there and back is what it was, byte for byte.
#include <cstring>

#include "model/placement_cases.hpp"

namespace motley {
namespace {

using testing::cases;
using testing::Devices;
using testing::expect_same;
using testing::kDevices;
using testing::place;
using testing::PlacementCase;
using testing::RandomModel;
using testing::Reader;
using testing::spec_of;

constexpr BlockId kBlocksUsed = 8;  // by the reader's texts, at most

std::unique_ptr<RuntimeExecutor> made(const Model& model, const Placement& placement,
                                      const std::vector<NamedDevice>& devices, uint64_t host_memory = UINT64_MAX) {
  RuntimeOptions options;
  options.rows_max = 32;
  options.logit_rows_max = 4;
  options.host_memory = [host_memory] { return host_memory; };
  auto executor = RuntimeExecutor::create(model, placement, devices, options);
  CHECK(executor.ok(), "{}", executor.error().message());
  return *std::move(executor);
}

std::vector<KvBlock> first_blocks(uint32_t pool = 0) {
  std::vector<KvBlock> blocks;
  for (BlockId block = 0; block < kBlocksUsed; ++block) blocks.push_back({pool, block});
  return blocks;
}

std::vector<KvMove> in_place() {
  std::vector<KvMove> moves;
  for (const KvBlock& block : first_blocks()) moves.push_back({block, block});
  return moves;
}

std::shared_ptr<const KvContents> saved(RuntimeExecutor& from) {
  auto contents = from.save_kv(first_blocks());
  CHECK(contents.ok(), "{}", contents.error().message());
  return std::make_shared<const KvContents>(*std::move(contents));
}

void move(RuntimeExecutor& from, RuntimeExecutor& to) {
  const auto loaded = to.load_kv(saved(from), in_place());
  CHECK(loaded.ok(), "{}", loaded.error().message());
  EXPECT_GT(loaded->bytes, 0u);
}

class KvMoving : public ::testing::TestWithParam<std::tuple<const char*, uint32_t>> {};

// In the middle of the prompts, and in the middle of the answers.
TEST_P(KvMoving, FromEveryPlacementToTheNext_SaysWhatOneDeviceSays) {
  const auto [architecture, kv_heads] = GetParam();
  const RandomModel random(spec_of(architecture, kv_heads));
  const Model& model = random.model();
  const Devices devices("REF:0", kDevices, true);
  const PlacementCase whole = {"whole", {{1, {1}, {1}, {1}, {1}}}};
  const auto want = Reader(model).read(*made(model, place(model, whole), devices.named()));
  const std::vector<PlacementCase>& moving = cases();
  for (size_t i = 0; i <= moving.size(); ++i) {
    const PlacementCase& a = i == 0 ? whole : moving[i - 1];
    const PlacementCase& b = i == moving.size() ? whole : moving[i];
    SCOPED_TRACE(fmt::format("{} to {}", a.name, b.name));
    const auto first = made(model, place(model, a), devices.named());
    const auto second = made(model, place(model, b), devices.named());
    const size_t round = i % 2 == 0 ? 1 : 5;
    expect_same(want, Reader(model).read(*first, *second, round, [&] { move(*first, *second); }));
  }
}

INSTANTIATE_TEST_SUITE_P(All, KvMoving,
                         ::testing::Values(std::tuple{"llama", 3u}, std::tuple{"gemma3", 1u}, std::tuple{"gemma3", 2u},
                                           std::tuple{"qwen3moe", 2u}, std::tuple{"gpt-oss", 2u}),
                         [](const auto& info) {
                           std::string name = std::get<0>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + "_" + std::to_string(std::get<1>(info.param));
                         });

void expect_same_bytes(const KvContents& got, const KvContents& want) {
  EXPECT_EQ(got.blocks, want.blocks);
  ASSERT_EQ(got.slices.size(), want.slices.size());
  for (size_t i = 0; i < want.slices.size(); ++i) {
    ASSERT_EQ(got.slices[i].size, want.slices[i].size);
    EXPECT_EQ(std::memcmp(got.slices[i].bytes.get(), want.slices[i].bytes.get(), want.slices[i].size), 0);
  }
}

// On devices of either kind of layout, each placement by one of the formats of KV.
TEST(KvThereAndBack, IsTheSameBytes) {
  const RandomModel random(spec_of("llama", 3));
  const Model& model = random.model();
  for (const char* device : {"REF:0", "CPU:0"}) {
    const Devices devices(device, kDevices, true);
    constexpr std::array kFormats = {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16, MOTLEY_F8_E4M3, MOTLEY_I8};
    const std::vector<PlacementCase>& moving = cases();
    for (size_t i = 0; i + 1 < moving.size(); ++i) {
      Placement a = place(model, moving[i]), b = place(model, moving[i + 1]);
      a.kv_dtype = b.kv_dtype = kFormats[i % kFormats.size()];
      SCOPED_TRACE(fmt::format("{} from {} to {}, format {}", device, moving[i].name, moving[i + 1].name, a.kv_dtype));
      const auto first = made(model, a, devices.named()), second = made(model, b, devices.named());
      Reader(model).read(*first);
      const auto before = saved(*first);
      const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
      const KvSlice& slice = before->slices.front();
      EXPECT_FALSE(std::all_of(slice.bytes.get(), slice.bytes.get() + slice.size, is_zero));
      move(*first, *second);
      const auto third = made(model, a, devices.named());
      move(*second, *third);
      expect_same_bytes(*saved(*third), *before);
    }
  }
}

// What is most important comes first.
TEST(KvSaving, WithoutMemoryForAll_SavesTheFirst) {
  const RandomModel random(spec_of("llama", 3));
  const Placement placement = place(random.model(), cases()[1]);
  const Devices devices("REF:0", kDevices, true);
  const auto whole = made(random.model(), placement, devices.named());
  const uint64_t each = saved(*whole)->bytes / kBlocksUsed;
  const auto executor = made(random.model(), placement, devices.named(), 2 * (3 * each + each / 2));
  const auto contents = executor->save_kv({{0, 9}, {0, 4}, {0, 6}, {0, 1}, {0, 2}});
  ASSERT_TRUE(contents.ok()) << contents.error().message();
  EXPECT_EQ(contents->blocks, (std::vector<std::vector<BlockId>>{{4, 6, 9}}));
  EXPECT_EQ(contents->bytes, 3 * each);
}

TEST(KvLoading, WhatDoesNotFit_IsRefused) {
  const RandomModel random(spec_of("llama", 3));
  Placement placement = place(random.model(), cases()[0]);
  const Devices devices("REF:0", kDevices, true);
  const auto contents = saved(*made(random.model(), placement, devices.named()));
  const auto code = [&](const std::vector<KvMove>& moves) {
    return made(random.model(), placement, devices.named())->load_kv(contents, moves).error().code();
  };
  EXPECT_EQ(code(in_place()), MOTLEY_OK);
  EXPECT_EQ(code({{{0, kBlocksUsed}, {0, 0}}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code({{{1, 0}, {0, 0}}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code({{{0, 0}, {0, static_cast<BlockId>(testing::kBlocks)}}}), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code({{{0, 0}, {1, 0}}}), MOTLEY_INVALID_ARGUMENT);
  placement.kv_dtype = MOTLEY_F16;
  EXPECT_EQ(code(in_place()), MOTLEY_FAILED_PRECONDITION);
  placement.kv_dtype = MOTLEY_F32;
  placement.block_size = 2 * testing::kBlockSize;
  EXPECT_EQ(code(in_place()), MOTLEY_FAILED_PRECONDITION);
}

}  // namespace
}  // namespace motley
