// KV that was saved by some owners, cut for others: byte for byte what those would have saved.
#include "runtime/kv_recut.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace motley {
namespace {

constexpr uint32_t kBlockSize = 4;

// Heads of layers, of an owner.
struct Part {
  uint32_t layer_begin, layer_end;
  std::vector<uint32_t> heads;
};

uint32_t head_dim_of(uint32_t layer) { return layer % 2 == 0 ? 8 : 6; }  // layers may differ

std::vector<uint32_t> head_dims(const Part& part) {
  std::vector<uint32_t> dims;
  for (uint32_t layer = part.layer_begin; layer < part.layer_end; ++layer) dims.push_back(head_dim_of(layer));
  return dims;
}

// A byte that only its place decides.
std::byte at(uint32_t layer, uint32_t plane, BlockId block, uint32_t position, uint32_t head, uint64_t byte) {
  uint64_t x = layer;
  for (const uint64_t next : {uint64_t{plane}, static_cast<uint64_t>(block), uint64_t{position}, uint64_t{head}, byte})
    x = (x * 1000003) ^ (next + 0x9e37);
  return static_cast<std::byte>((x * 0x9e3779b97f4a7c15u) >> 56);
}

// docs/formats/kv.md, written out. A scale's bytes are those behind the elements.
void append_canonical(const Part& part, const KvForm& form, std::span<const BlockId> blocks,
                      std::vector<std::byte>* to) {
  for (uint32_t layer = part.layer_begin; layer < part.layer_end; ++layer) {
    const uint64_t element_bytes = head_dim_of(layer) * form.element_bytes;
    for (uint32_t plane = 0; plane < 2; ++plane) {
      for (const auto& [begin, end] :
           {std::pair{uint64_t{0}, element_bytes}, std::pair{element_bytes, element_bytes + form.scale_bytes}}) {
        for (const BlockId block : blocks)
          for (uint32_t position = 0; position < form.block_size; ++position)
            for (const uint32_t head : part.heads)
              for (uint64_t byte = begin; byte < end; ++byte)
                to->push_back(at(layer, plane, block, position, head, byte));
      }
    }
  }
}

KvContents saved(const std::vector<Part>& parts, int32_t dtype, uint32_t run_blocks) {
  KvContents contents;
  contents.block_size = kBlockSize;
  contents.dtype = dtype;
  contents.blocks = {{}, {1, 2, 5, 6, 9}};  // of pool 1
  const KvForm form = *KvForm::of(kBlockSize, dtype);
  for (const Part& part : parts) {
    KvSlice& slice = contents.slices.emplace_back();
    slice.pool = 1;
    slice.place_end = contents.blocks[1].size();
    slice.layer_begin = part.layer_begin;
    slice.head_dims = head_dims(part);
    slice.heads = part.heads;
    slice.run_blocks = run_blocks;
    std::vector<std::byte> bytes;
    const std::span<const BlockId> blocks(contents.blocks[1]);
    for (size_t begin = 0; begin < blocks.size(); begin += run_blocks)
      append_canonical(part, form, blocks.subspan(begin, std::min<size_t>(run_blocks, blocks.size() - begin)), &bytes);
    slice.size = bytes.size();
    slice.bytes = std::make_unique<std::byte[]>(bytes.size());
    std::memcpy(slice.bytes.get(), bytes.data(), bytes.size());
  }
  return contents;
}

void expect_recut(const std::vector<Part>& from, const std::vector<Part>& to) {
  for (const int32_t dtype : {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16, MOTLEY_F8_E4M3, MOTLEY_I8}) {
    for (const uint32_t run_blocks : {1, 2, 3, 64}) {
      const KvContents contents = saved(from, dtype, run_blocks);
      for (const Part& part : to) {
        const auto dims = head_dims(part);
        const auto recut = KvRecut::create(contents, 1, 0, {part.layer_begin, dims, part.heads});
        ASSERT_TRUE(recut.ok()) << recut.error().message();
        const std::vector<size_t> places = {4, 0, 2};  // in any order
        std::vector<std::byte> got(places.size() * recut->block_bytes()), want;
        recut->write(places, got);
        append_canonical(part, *KvForm::of(kBlockSize, dtype), std::vector<BlockId>{9, 1, 5}, &want);
        EXPECT_EQ(got, want) << "format " << dtype << ", runs of " << run_blocks;
      }
    }
  }
}

TEST(KvRecut, TwoShardsBecomeThreeUnevenOnes) {
  expect_recut({{0, 3, {0, 1, 2, 3}}, {0, 3, {4, 5, 6, 7}}}, {{0, 3, {0}}, {0, 3, {1, 2, 3, 4, 5}}, {0, 3, {6, 7}}});
}

TEST(KvRecut, TheBordersOfAPipelineMove) {
  expect_recut({{0, 2, {0, 1}}, {2, 7, {0, 1}}}, {{0, 5, {0, 1}}, {5, 7, {0, 1}}});
}

TEST(KvRecut, OneDeviceBecomesStagesOfShards_AndBack) {
  const std::vector<Part> one = {{0, 4, {0, 1, 2}}};
  const std::vector<Part> many = {{0, 3, {0, 2}}, {0, 3, {1}}, {3, 4, {0}}, {3, 4, {1, 2}}};
  expect_recut(one, many);
  expect_recut(many, one);
}

TEST(KvRecut, HeadsThatSeveralKeep_AreReadFromOneAndWrittenToAll) {
  expect_recut({{0, 2, {0}}, {0, 2, {0, 1}}, {0, 2, {1}}}, {{0, 2, {0, 1}}, {0, 2, {0, 1}}, {0, 2, {1}}});
}

TEST(KvRecut, HeadsLieInAnyOrder) { expect_recut({{0, 2, {3, 1}}, {0, 2, {0, 2}}}, {{0, 2, {2, 0, 1, 3}}}); }

TEST(KvRecut, WhatWasNotSaved_IsAnError) {
  const KvContents contents = saved({{0, 2, {0, 1}}}, MOTLEY_F16, 2);
  const std::vector<uint32_t> one = {head_dim_of(0)}, wrong = {head_dim_of(0) + 1}, two = {0, 2}, last = {1};
  EXPECT_EQ(KvRecut::create(contents, 1, 0, {0, one, two}).error().code(), MOTLEY_FAILED_PRECONDITION);
  EXPECT_EQ(KvRecut::create(contents, 1, 0, {2, one, last}).error().code(), MOTLEY_FAILED_PRECONDITION);
  EXPECT_EQ(KvRecut::create(contents, 1, 0, {0, wrong, last}).error().code(), MOTLEY_FAILED_PRECONDITION);
  EXPECT_EQ(KvRecut::create(contents, 0, 0, {0, one, last}).error().code(), MOTLEY_FAILED_PRECONDITION);
  EXPECT_EQ(KvRecut::create(contents, 1, 1, {0, one, last}).error().code(), MOTLEY_FAILED_PRECONDITION);
  EXPECT_TRUE(KvRecut::create(contents, 1, 0, {0, one, last}).ok());
  EXPECT_EQ(KvForm::of(4, MOTLEY_Q4_0).error().code(), MOTLEY_UNIMPLEMENTED);
}

}  // namespace
}  // namespace motley
