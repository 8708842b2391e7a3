#include "runtime/flight.hpp"

#include <gtest/gtest.h>

#include <array>

namespace motley {
namespace {

using Ids = std::vector<int32_t>;
constexpr uint32_t kBlockSize = 4;

// A chunk of 3 rows at positions 6 to 8 of blocks 5, 0 and 9, and a row at position 4 of blocks 2 and 6; another block
// of each is held for later.
StepPlan plan() {
  StepPlan made;
  made.tokens = {1, 2, 3, 4};
  made.token_slots.assign(4, -1);
  made.positions = {6, 7, 8, 4};
  made.generated = {0, 0, 0, 1};
  made.sequences = {{7, 0, 3, 9, 0, 4, 0, 0}, {8, 3, 1, 5, 4, 3, 0, 1}};
  made.blocks = {5, 0, 9, 11, 2, 6, 3};
  return made;
}

Ids slots_of(const motley_batch& batch) { return {batch.kv_slots, batch.kv_slots + batch.rows}; }
Ids blocks_of(const motley_batch& batch) { return {batch.blocks, batch.blocks + batch.seq_block_begin[batch.seqs]}; }

TEST(Flight, OnePool_IsOneBatch) {
  Flight flight(plan());
  flight.prepare(kBlockSize, 16);
  EXPECT_EQ(slots_of(flight.batch), (Ids{2, 3, 36, 24}));
  EXPECT_EQ(blocks_of(flight.batch), (Ids{5, 0, 9, 11, 2, 6, 3}));
  EXPECT_EQ(flight.batch.seq_context[0], 9);
  EXPECT_EQ(flight.batch.seq_row_begin[2], 4u);
  EXPECT_EQ(flight.batch.slot_count, 16u);
  EXPECT_TRUE(flight.touches(0));
}

TEST(Flight, EachSection_HasItsBlocksAlone) {
  Flight flight(plan());
  const std::array<uint32_t, 4> sections = {4, 3, 3, 2};  // from 0, 4, 7 and 10 on
  flight.prepare(kBlockSize, 16, sections);
  constexpr int32_t kNone = MOTLEY_NONE;
  EXPECT_EQ(slots_of(flight.batch), (Ids{2, 3, kNone, kNone}));
  EXPECT_EQ(blocks_of(flight.batch_of(0)), (Ids{kNone, 0, kNone, kNone, 2, kNone, 3}));
  EXPECT_EQ(slots_of(flight.batch_of(1)), (Ids{kNone, kNone, kNone, 8}));
  EXPECT_EQ(blocks_of(flight.batch_of(1)), (Ids{1, kNone, kNone, kNone, kNone, 2, kNone}));
  EXPECT_EQ(slots_of(flight.batch_of(2)), (Ids{kNone, kNone, 8, kNone}));
  EXPECT_EQ(blocks_of(flight.batch_of(2)), (Ids{kNone, kNone, 2, kNone, kNone, kNone, kNone}));
  EXPECT_EQ(blocks_of(flight.batch_of(3)), (Ids{kNone, kNone, kNone, 1, kNone, kNone, kNone}));
  for (const uint32_t section : {0u, 1u, 2u}) EXPECT_TRUE(flight.touches(section)) << section;
  EXPECT_FALSE(flight.touches(3)) << "what lies there is for later";
  EXPECT_EQ(flight.batch_of(2).rows, 4u);
  EXPECT_EQ(flight.batch_of(2).positions, flight.batch.positions);
}

}  // namespace
}  // namespace motley
