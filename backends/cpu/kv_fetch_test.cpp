// What products ask for of the KV of the attention behind them. That it changes no result is conformance's to judge.
// SPDX-License-Identifier: Apache-2.0
#include "cpu/kv_fetch.hpp"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace motley::cpu {
namespace {

constexpr int64_t kBlocks = 40, kBlockBytes = 4 * 64;

// Three sequences in a pool of blocks of 16 positions: generated rows at contexts 100 and 33, and a prompt.
class Step {
 public:
  Step() : memory_(2 * kBlocks * kBlockBytes) {
    pool_.dtype = MOTLEY_F16, pool_.element_bytes = 2, pool_.block_size = 16, pool_.blocks = kBlocks;
    layer_.k = memory_.data(), layer_.v = memory_.data() + kBlocks * kBlockBytes;
    layer_.block_stride = kBlockBytes / 2;
    pool_.layers = {layer_};
    batch_.rows = 7, batch_.seqs = 3;
    batch_.generated = generated_, batch_.seq_row_begin = row_begin_, batch_.seq_context = contexts_;
    batch_.seq_block_begin = block_begin_, batch_.blocks = blocks_;
  }
  void set_window(int32_t window) { pool_.layers[0].window = window; }

  // How often each line is asked for by all threads in the products whose parts are these, by its place in the pool.
  std::map<int64_t, int> lines(const std::vector<int64_t>& borders, int64_t most, uint32_t threads = 3) {
    std::map<int64_t, int> seen;
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      for (uint32_t t = 0; t < threads; ++t)
        take_all({0, borders[i], borders[i + 1], borders.back(), most}, t, threads, &seen);
    }
    return seen;
  }
  bool asks(const FetchShare& share) {
    std::map<int64_t, int> seen;
    return take_all(share, 0, 1, &seen);
  }

 private:
  bool take_all(const FetchShare& share, uint32_t thread, uint32_t threads, std::map<int64_t, int>* seen) {
    kit::OpCall call;
    kit::Tensor rows;
    rows.rows = batch_.rows;
    call.batch = &batch_, call.kv = &pool_, call.thread = thread, call.threads = threads, call.in = {&rows, 1};
    KvFetch fetch;
    KvLines* of = fetch.of(call, share);
    if (!of) return false;
    const uint8_t* at = nullptr;
    for (int64_t n = of->take(3, &at); n > 0; n = of->take(3, &at)) {
      EXPECT_LE(n, 3);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t place = at + i * kLineBytes - reinterpret_cast<const uint8_t*>(memory_.data());
        EXPECT_TRUE(place >= 0 && place + kLineBytes <= static_cast<int64_t>(memory_.size()));
        ++(*seen)[place];
      }
    }
    return true;
  }

  std::vector<std::byte> memory_;
  kit::KvPool pool_;
  kit::KvLayer layer_;
  motley_batch batch_{};
  uint8_t generated_[7] = {1, 0, 0, 0, 0, 0, 1};
  uint32_t row_begin_[4] = {0, 1, 6, 7};
  int32_t contexts_[3] = {100, 80, 33};
  uint32_t block_begin_[4] = {0, 7, 12, 15};
  int32_t blocks_[15] = {3, 9, 4, MOTLEY_NONE, 30, 31, 0, 11, 12, 13, 14, 15, 39, 20, 2};
};

std::map<int64_t, int> lines_of(std::vector<int64_t> blocks) {
  std::map<int64_t, int> lines;
  for (const int64_t block : blocks) {
    for (int64_t i = 0; i < kBlockBytes; i += kLineBytes) {
      lines[block * kBlockBytes + i] = lines[(kBlocks + block) * kBlockBytes + i] = 1;
    }
  }
  return lines;
}

TEST(KvFetch, ProductsAndThreads_AskOnceForEachLineThatGeneratedRowsSee) {
  const auto all = lines_of({3, 9, 4, 30, 31, 0, 39, 20, 2});
  Step step;
  EXPECT_EQ(step.lines({0, 10}, 1 << 20), all);
  EXPECT_EQ(step.lines({0, 3, 4, 10}, 1 << 20), all);
  EXPECT_EQ(step.lines({0, 1, 2, 3, 4}, 1 << 20, 1), all);
}

TEST(KvFetch, OfAWindow_AskForItsBlocksAlone) {
  Step step;
  step.set_window(20);  // positions 80 to 99, and 13 to 32
  EXPECT_EQ(step.lines({0, 7, 10}, 1 << 20), lines_of({31, 0, 39, 20, 2}));
}

TEST(KvFetch, AskForNoMoreThanCachesHold) {
  Step step;
  EXPECT_EQ(step.lines({0, 3, 10}, 2 * 2 * kBlockBytes), lines_of({3, 9}));
  EXPECT_TRUE(step.lines({0, 3, 10}, 0).empty());
}

TEST(KvFetch, WithoutAnAttentionBehindThem_AskForNothing) {
  Step step;
  EXPECT_TRUE(step.asks({0, 0, 1, 1, 1 << 20}));
  EXPECT_FALSE(step.asks({}));
}

}  // namespace
}  // namespace motley::cpu
