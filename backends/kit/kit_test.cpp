// Kit from inside: formats, weights, plans, noise, team, events. The ABI as a whole is judged by tests/conformance.
#include "kit/kit.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <set>
#include <string>

#include "kit/event.hpp"
#include "kit/kv.hpp"
#include "kit/noise.hpp"
#include "kit/program.hpp"
#include "kit/queue.hpp"
#include "kit/reference.hpp"
#include "kit/reference_backend.hpp"
#include "kit/team.hpp"

namespace motley::kit {
namespace {

TEST(HalfFloats, EveryPattern_RoundTrips) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float half = f16_to_f32(static_cast<uint16_t>(bits)), brain = bf16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(half))
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(half))));
    else
      EXPECT_EQ(f32_to_f16(half), bits);
    if (std::isnan(brain))
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(brain))));
    else
      EXPECT_EQ(f32_to_bf16(brain), bits);
  }
}

TEST(HalfFloats, BetweenTwo_RoundsToNearestEven) {
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), 0x3c00);             // a tie: the even one below
  EXPECT_EQ(f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3c02);         // a tie: the even one above
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);  // just above the tie
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0x0000);
  EXPECT_EQ(f32_to_f16(0x1.8p-25f), 0x0001);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
}

TEST(EightBitFloats, EveryPattern_RoundTrips) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const float value = f8_e4m3_to_f32(static_cast<uint8_t>(bits));
    if (std::isnan(value))
      EXPECT_EQ(bits & 0x7f, 0x7f);
    else
      EXPECT_EQ(f32_to_f8_e4m3(value), bits);
  }
  EXPECT_EQ(f8_e4m3_to_f32(0x7e), 448.0f);
  EXPECT_EQ(f8_e4m3_to_f32(0x01), 0x1p-9f);
  EXPECT_EQ(f8_e4m3_to_f32(0xb8), -1.0f);
}

TEST(EightBitFloats, BetweenTwo_RoundsToNearestEvenAndStopsAtTheLargest) {
  EXPECT_EQ(f32_to_f8_e4m3(1.0625f), 0x38);             // a tie: the even one below
  EXPECT_EQ(f32_to_f8_e4m3(1.1875f), 0x3a);             // a tie: the even one above
  EXPECT_EQ(f32_to_f8_e4m3(1.0625f + 0x1p-20f), 0x39);  // just above the tie
  EXPECT_EQ(f32_to_f8_e4m3(0x1p-10f), 0x00);
  EXPECT_EQ(f32_to_f8_e4m3(0x1.8p-10f), 0x01);
  EXPECT_EQ(f32_to_f8_e4m3(0x1.fp-7f), 0x08);  // up to the smallest normal number
  EXPECT_EQ(f32_to_f8_e4m3(460.0f), 0x7e);
  EXPECT_EQ(f32_to_f8_e4m3(-1e9f), 0xfe);
  EXPECT_EQ(f32_to_f8_e4m3(INFINITY), 0x7e);
  EXPECT_EQ(f32_to_f8_e4m3(-NAN), 0x7f);
}

struct Block {
  int32_t dtype;
  std::vector<std::pair<int, int>> bytes;     // offset, value; all others are 0
  std::vector<std::pair<int, float>> values;  // element, wanted
};

// Blocks written by hand from the format's description. 0x3c00 = 1.0, 0x4000 = 2.0.
TEST(Formats, HandMadeBlocks_GiveTheirNumbers) {
  const Block blocks[] = {
      {MOTLEY_Q8_0, {{1, 0x40}, {2, 3}, {33, 0xfe}}, {{0, 6}, {31, -4}, {1, 0}}},
      {MOTLEY_Q4_0, {{1, 0x3c}, {2, 0x1f}, {17, 0x80}}, {{0, 7}, {16, -7}, {15, -8}, {31, 0}}},
      {MOTLEY_Q4_1, {{1, 0x3c}, {3, 0x40}, {4, 0x1f}}, {{0, 17}, {16, 3}, {1, 2}}},
      // d = 1, dmin = 2; scale_0 = 5, min_0 = 3; scale_4 = 6 | 1 << 4, min_4 = 2 | 1 << 4.
      {MOTLEY_Q4_K,
       {{1, 0x3c}, {3, 0x40}, {4, 5 | 1 << 6}, {8, 3 | 1 << 6}, {12, 6 | 2 << 4}, {16, 0x09}, {80, 0x0a}},
       {{0, 5 * 9 - 6}, {128, 22 * 10 - 36}}},
      // d = 1 (last); element 0: low 5, high 2 -> 37 - 32 = 5, scale 3; element 96: ql[32] high nibble, qh bits 6-7.
      {MOTLEY_Q6_K,
       {{209, 0x3c}, {0, 0x05}, {128, 0x02 | 3 << 6}, {192, 3}, {32, 0xf0}, {198, 0xff}},
       {{0, 15}, {96, -31}}},
      // d = 1; qh bits 0 and 31: element 0 = 1 + 16 - 16, element 31 = 2 + 16 - 16, the others -16.
      {MOTLEY_Q5_0, {{1, 0x3c}, {2, 1}, {5, 0x80}, {6, 0x01}, {21, 0x20}}, {{0, 1}, {31, 2}, {1, -16}, {16, -16}}},
      {MOTLEY_Q5_1, {{1, 0x3c}, {3, 0x40}, {6, 1}, {8, 0x30}}, {{0, 2}, {16, 3 + 16 + 2}}},
      // d = 1, dmin = 2 (last); elements 16-31: scale 5, minimum 3; element 17: bits 0-1 of qs[17]; element 144 = 128
      // + 16.
      {MOTLEY_Q2_K, {{81, 0x3c}, {83, 0x40}, {1, 5 | 3 << 4}, {33, 2}}, {{17, 2 * 5 - 6}, {16, -6}, {0, 0}}},
      // d = 1 (last); scale_0 = (2 | 3 << 4) - 32 = 18, all others 0 - 32; element 0: low 3, high set; element 128:
      // high not set.
      {MOTLEY_Q3_K, {{109, 0x3c}, {96, 2}, {104, 3}, {32, 3}, {0, 1}}, {{0, 18 * 3}, {1, 18 * -4}, {128, -32 * -4}}},
      // As the Q4_K block, with bit 0 of qh[0] for element 0 and bit 4 for element 128.
      {MOTLEY_Q5_K,
       {{1, 0x3c}, {3, 0x40}, {4, 5 | 1 << 6}, {8, 3 | 1 << 6}, {12, 6 | 2 << 4}, {16, 0x11}, {48, 0x09}, {112, 0x0a}},
       {{0, 5 * 25 - 6}, {128, 22 * 26 - 36}, {1, -6}}},
      {MOTLEY_IQ4_NL, {{1, 0x3c}, {2, 0xf0}}, {{0, -127}, {16, 113}}},
      // d = 1; scale of elements 32-63: (5 | 1 << 4) - 32 = -11.
      {MOTLEY_IQ4_XS, {{1, 0x3c}, {2, 1 << 2}, {4, 5 << 4}, {24, 0x78}}, {{32, -11}, {48, 110}}},
      {MOTLEY_MXFP4, {{0, 129}, {1, 0xf7}}, {{0, 24}, {16, -24}, {1, 0}}},
      {MOTLEY_MXFP4, {{0, 0}, {1, 0x01}}, {{0, 0x1p-128f}}},
      {MOTLEY_MXFP4, {{0, 1}, {1, 0x0d}}, {{0, -6 * 0x1p-127f}}},
      {MOTLEY_F8_E4M3_S64, {{3, 0x40}, {4, 0x38}, {66, 0xfe}, {67, 0x01}}, {{0, 2}, {62, -896}, {63, 0x1p-8f}, {1, 0}}},
  };
  for (const Block& block : blocks) {
    const Format& format = *find_format(block.dtype);
    std::vector<uint8_t> bytes(static_cast<size_t>(format.bytes));
    for (const auto& [at, value] : block.bytes) bytes[static_cast<size_t>(at)] = static_cast<uint8_t>(value);
    std::vector<float> out(static_cast<size_t>(format.block));
    format.dequantise(bytes.data(), format.block, out.data());
    for (const auto& [at, value] : block.values)
      EXPECT_EQ(out[static_cast<size_t>(at)], value) << format.name << " " << at;
  }
}

std::vector<uint8_t> from_hex(const std::string& text) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return bytes;
}

// Random blocks and what another implementation reads from them (tools/golden/formats.py).
TEST(Formats, GoldenBlocks_GiveTheSameBits) {
  std::ifstream file(MOTLEY_SOURCE_DIR "/tests/golden/formats.txt");
  std::string name, bytes, values;
  int seen = 0;
  while (file >> name >> bytes >> values) {
    const Format* format = nullptr;
    for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype)
      if (find_format(dtype) && find_format(dtype)->name == name) format = find_format(dtype);
    ASSERT_NE(format, nullptr) << name;
    const std::vector<uint8_t> block = from_hex(bytes), wanted = from_hex(values);
    ASSERT_EQ(block.size(), static_cast<size_t>(format->bytes)) << name;
    ASSERT_EQ(wanted.size(), static_cast<size_t>(format->block) * 4) << name;
    std::vector<float> out(static_cast<size_t>(format->block));
    format->dequantise(block.data(), format->block, out.data());
    for (size_t e = 0; e < out.size(); ++e) {
      float value = 0;
      std::memcpy(&value, wanted.data() + 4 * e, 4);
      EXPECT_EQ(out[e], value) << name << " " << e;
    }
    ++seen;
  }
  EXPECT_EQ(seen, 13);
}

TEST(WeightSource, ColumnsInsideASuperBlock_AreTheWholesColumns) {
  std::vector<uint8_t> data(2 * 3 * 210);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * 37 + i / 7);
  for (size_t b = 0; b < 6; ++b) data[b * 210 + 208] = 0, data[b * 210 + 209] = 0x2c;
  const motley_range rows[] = {{1, 2}, {0, 1}}, cols[] = {{16, 48}, {240, 272}, {0, 16}};
  motley_weight_desc desc{};
  desc.struct_size = sizeof desc, desc.dtype = desc.format = MOTLEY_Q6_K, desc.uses = MOTLEY_WEIGHT_MATMUL;
  desc.experts = 1, desc.rows = 2, desc.cols = 768, desc.data = data.data(), desc.bytes = data.size();
  std::vector<float> whole(2 * 768), cut(80);
  const WeightSource all(desc);
  for (int64_t r = 0; r < 2; ++r) all.read_row(0, r, whole.data() + r * 768);
  desc.row_ranges = rows, desc.row_range_count = 2, desc.col_ranges = cols, desc.col_range_count = 3;
  const auto weight = pack_reference(WeightSource(desc));
  ASSERT_EQ(weight->rows, 2);
  ASSERT_EQ(weight->cols, 80);
  weight->read_row(0, 0, cut.data());  // the file's row 1
  size_t i = 0;
  for (const motley_range& range : cols)
    for (int64_t c = range.begin; c < range.end; ++c) EXPECT_EQ(cut[i++], whole[static_cast<size_t>(768 + c)]) << c;
}

TEST(Noise, KnownVectors_Match) {
  // Random123's published answers for philox4x32-10.
  EXPECT_EQ(Noise::philox({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Noise::philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Noise::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rope, Yarn_KeepsFastAndStretchesSlowPairs) {
  rope_attr a{};
  a.n_rot = 64, a.base = 10000, a.position_scale = 1, a.yarn_factor = 4, a.yarn_ext_factor = 1, a.yarn_low = 8,
  a.yarn_high = 16;
  const auto plain = [](int pair) { return 100 * std::pow(10000.0, -2.0 * pair / 64); };
  EXPECT_DOUBLE_EQ(rope_angle(a, 100, 3, 1), plain(3));
  EXPECT_DOUBLE_EQ(rope_angle(a, 100, 20, 1), plain(20) / 4);
  EXPECT_DOUBLE_EQ(rope_angle(a, 100, 12, 1), plain(12) * 0.5 + plain(12) / 4 * 0.5);
  EXPECT_DOUBLE_EQ(rope_angle(a, 100, 3, 2), plain(3) / 2);
}

TEST(KvStore, Int8_BoundsTheErrorAndShowsFaults) {
  const std::vector<float> x = {0.5f, -2, 1.27f, 0};
  std::vector<std::byte> stored(4);
  std::vector<float> back(4);
  float scale = 0;
  kv_store(MOTLEY_I8, x.data(), 4, stored.data(), &scale);
  kv_load(MOTLEY_I8, stored.data(), 4, scale, back.data());
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(back[i], x[i], 1.0 / 127);
  EXPECT_EQ(back[1], -127 * scale);
  const std::vector<float> fault = {1, NAN, 2, 3};
  kv_store(MOTLEY_I8, fault.data(), 4, stored.data(), &scale);
  EXPECT_TRUE(std::isnan(scale));
}

TEST(Parts, AnyTeam_CoversEachItemOnce) {
  for (const uint32_t threads : {1u, 2u, 3u, 7u})
    for (const int64_t count : {0, 1, 5, 64, 1000})
      for (const int64_t grain : {1, 8, 100}) {
        int64_t next = 0;
        for (uint32_t t = 0; t < threads; ++t) {
          const Range r = part_of(count, t, threads, grain);
          EXPECT_EQ(r.begin, next);
          EXPECT_TRUE(r.begin % grain == 0 || r.begin == count);
          next = r.end;
        }
        EXPECT_EQ(next, count);
      }
}

TEST(OpCall, Take_GivesEveryPartOnceAndSmallOnesAtTheEnd) {
  for (const uint32_t threads : {1u, 2u, 7u})
    for (const int64_t count : {0, 1, 6, 100, 1001})
      for (const int64_t grain : {1, 2, 8}) {
        std::atomic<int64_t> taken{0};
        OpCall call;
        call.taken = &taken, call.threads = threads;
        int64_t next = 0;
        for (Range r = call.take(count, grain); r.begin < r.end; r = call.take(count, grain)) {
          EXPECT_EQ(r.begin, next);
          EXPECT_TRUE((r.end - r.begin) % grain == 0 || r.end == count);
          if (threads > 1) {
            EXPECT_LE(r.end - r.begin, std::max(grain, (count - r.begin) / (2 * threads)));
          }
          next = r.end;
        }
        EXPECT_EQ(next, count);
        EXPECT_EQ(call.take(count, grain).begin, count) << "still nothing left";
      }
}

TEST(OpCall, Take_GivesNoPartToTwoThreads) {
  constexpr int64_t kCount = 20000;
  Team team(3, allowed_cores());
  struct Context {
    std::atomic<int64_t> taken{0};
    std::vector<std::atomic<int>> seen = std::vector<std::atomic<int>>(kCount);
  } context;
  team.run(
      [](void* opaque, uint32_t thread) {
        Context& c = *static_cast<Context*>(opaque);
        OpCall call;
        call.taken = &c.taken, call.thread = thread, call.threads = 3;
        for (Range r = call.take(kCount); r.begin < r.end; r = call.take(kCount))
          for (int64_t i = r.begin; i < r.end; ++i) ++c.seen[static_cast<size_t>(i)];
      },
      &context);
  for (const std::atomic<int>& seen : context.seen) EXPECT_EQ(seen, 1);
}

TEST(Team, ManyRuns_EveryThreadMeetsAtEveryBarrier) {
  for (const uint32_t threads : {1u, 2u, 5u}) {
    Team team(threads, allowed_cores());
    struct Context {
      Team& team;
      std::vector<int> seen;
      std::atomic<int> sum{0}, wrong{0};
    } context{team, std::vector<int>(threads), {}, {}};
    for (int run = 0; run < 200; ++run)
      team.run(
          [](void* opaque, uint32_t thread) {
            Context& c = *static_cast<Context*>(opaque);
            c.seen[thread] += 1;
            c.team.barrier();
            for (const int seen : c.seen) c.wrong += seen != c.seen[thread];  // all writes are visible
            c.team.barrier();
            c.sum += 1;
          },
          &context);
    EXPECT_EQ(context.sum, static_cast<int>(200 * threads));
    EXPECT_EQ(context.wrong, 0);
  }
}

TEST(Team, Cores_AreOwnOnlyIfNobodyElseWantsThem) {
  const int one = allowed_cores()[0];  // as many entries as the case needs: binding is best effort
  const std::vector<int> four(4, one);
  const auto widths = [](const Team& team) {
    return std::pair(team.cores_of(0).size(), team.cores_of(team.threads() - 1).size());
  };
  using Widths = std::pair<size_t, size_t>;
  EXPECT_EQ(widths(Team(4, four)), Widths(1, 1));
  EXPECT_EQ(widths(Team(2, four)), Widths(4, 4)) << "two servers of two threads would share two cores of four";
  EXPECT_EQ(widths(Team(1, four)), Widths(4, 4));
  EXPECT_EQ(widths(Team(2, four, true)), Widths(1, 1));
  EXPECT_EQ(widths(Team(3, {one, one}, true)), Widths(2, 2));
}

#ifndef MOTLEY_SANITIZED  // they need more address space than this leaves
// In a process of its own: the address space holds only some of the stacks.
[[noreturn]] void start_too_many_threads() {
  unsigned long long pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit limit{pages * kPageBytes + (256u << 20), RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &limit);
  try {
    const Team team(kThreadsMax, allowed_cores());
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    _exit(error.code() == MOTLEY_RESOURCE_EXHAUSTED ? 0 : 1);
  }
  _exit(2);
}

TEST(TeamDeathTest, ThreadsTheSystemDoesNotGive_AreRefusedWithTheRemedy) {
  EXPECT_EXIT(start_too_many_threads(), testing::ExitedWithCode(0), "of 1024 threads could be started.*--threads");
}
#endif

TEST(Queue, WorkThatThrows_FiresItsEventWithTheCodeAndTheNextOneRuns) {
  Queue queue(allowed_cores());
  const auto bad = std::make_shared<Event>(), good = std::make_shared<Event>();
  queue.push(
      Queue::Kind::kOther, []() -> std::unique_ptr<Mark> { throw Error(MOTLEY_DATA_LOSS, "gone"); }, bad);
  queue.push(
      Queue::Kind::kOther, [] { return nullptr; }, good);
  good->wait();
  ASSERT_TRUE(bad->fired());
  EXPECT_EQ(bad->outcome().code, MOTLEY_DATA_LOSS);
  EXPECT_EQ(bad->outcome().text, "gone");
  EXPECT_EQ(good->outcome().code, MOTLEY_OK);
}

TEST(Queue, Full_RefusesWithoutBlocking) {
  Queue queue(allowed_cores());
  const auto gate = std::make_shared<Event>();
  const auto wait = [gate] {
    gate->wait();
    return nullptr;
  };
  for (uint32_t i = 0; i < kQueueDepth; ++i) queue.push(Queue::Kind::kProgram, wait, nullptr);
  EXPECT_THROW(queue.push(Queue::Kind::kProgram, wait, nullptr), Error);
  EXPECT_NO_THROW(queue.push(Queue::Kind::kOther, wait, nullptr));  // copies have room of their own
  gate->fire({});
}

// A mark that a test lets go.
class Gate : public Mark {
 public:
  Gate(std::shared_ptr<Event> open, const char* fault = nullptr) : open_(std::move(open)), fault_(fault) {}
  void wait() override {
    open_->wait();
    if (fault_) throw Error(MOTLEY_DATA_LOSS, fault_);
  }

 private:
  std::shared_ptr<Event> open_;
  const char* fault_;
};

TEST(Queue, ThatRunsAhead_StartsTheNextWorkBeforeTheFirstIsDone) {
  const auto open = std::make_shared<Event>(), first = std::make_shared<Event>(), second = std::make_shared<Event>(),
             started = std::make_shared<Event>();
  std::vector<int> done;  // written by one thread of the queue
  {
    Queue queue(allowed_cores(), true);
    const auto note = [&done](int which) { return [&done, which](const Outcome&) { done.push_back(which); }; };
    queue.push(
        Queue::Kind::kProgram, [&] { return std::make_unique<Gate>(open, "late"); }, first, note(1));
    queue.push(
        Queue::Kind::kProgram,
        [&]() -> std::unique_ptr<Mark> {
          started->fire({});
          return nullptr;
        },
        second, note(2));
    started->wait();
    EXPECT_FALSE(first->fired());
    EXPECT_FALSE(second->wait_for(20'000'000)) << "an event fired before those of earlier work";
    open->fire({});
    second->wait();
    EXPECT_EQ(first->outcome().code, MOTLEY_DATA_LOSS);
    EXPECT_EQ(first->outcome().text, "late");
    EXPECT_EQ(second->outcome().code, MOTLEY_OK);
    EXPECT_GE(second->outcome().start_ns, first->outcome().end_ns);
  }
  EXPECT_EQ(done, (std::vector<int>{1, 2}));
}

TEST(Queue, ThatRunsAhead_EndsOnceAllOfItIsDone) {
  const auto open = std::make_shared<Event>(), last = std::make_shared<Event>();
  std::thread opener([&] { open->fire({}); });
  {
    Queue queue(allowed_cores(), true);
    for (uint32_t i = 0; i < kQueueDepth; ++i)
      queue.push(
          Queue::Kind::kProgram, [&] { return std::make_unique<Gate>(open); }, i + 1 < kQueueDepth ? nullptr : last);
  }
  EXPECT_TRUE(last->fired());
  opener.join();
}

// ---- plans ----

struct Chain {
  // x -> a -> b -> c -> out, each by SCALE; and beside it e = MUL(x, x), read only by the last op.
  Chain() {
    values.assign(6, motley_value{MOTLEY_F32, 2, {MOTLEY_DIM_ROWS, 8, 0, 0}});
    add(MOTLEY_OP_SCALE, {0}, 1);
    add(MOTLEY_OP_MUL, {0, 0}, 4);
    add(MOTLEY_OP_SCALE, {1}, 2);
    add(MOTLEY_OP_SCALE, {2}, 3);
    add(MOTLEY_OP_ADD, {3, 4}, 5);
    segment.struct_size = sizeof segment;
    segment.values = values.data(), segment.value_count = 6;
    segment.ops = ops.data(), segment.op_count = 5;
    segment.inputs = &in, segment.input_count = 1;
    segment.outputs = &out, segment.output_count = 1;
  }
  void add(int32_t kind, std::vector<int32_t> from, int32_t to) {
    motley_op op;
    std::memset(&op, 0xff, sizeof op);
    op.kind = kind, op.attr.scale.factor = 2, op.out[0] = to;
    std::copy(from.begin(), from.end(), op.in);
    ops.push_back(op);
  }
  Program compile() const {
    uint32_t bad = 0;
    CheckedSegment checked = check_segment(segment, &bad);
    for (PlanOp& op : checked.plan.ops) op.kernel = reference_kernels()[static_cast<size_t>(op.kind)].run;
    checked.plan.rows_max = 4;
    return Program(std::move(checked));
  }
  std::vector<motley_value> values;
  std::vector<motley_op> ops;
  int32_t in = 0, out = 5;
  motley_segment segment{};
};

TEST(Program, IndependentSteps_ShareALevelAndDeadValuesAPlace) {
  const Program program = Chain().compile();
  EXPECT_EQ(program.barriers(), 3u);  // SCALE and MUL of x run side by side
  // Values a, e, b live together; c may take a's place. 64-byte places of 4 rows * 8 * 4 bytes.
  EXPECT_EQ(program.workspace_bytes(4, 0, 0), 3u * 128);
}

TEST(Program, Chain_ComputesTheSameOnAnyTeam) {
  const std::vector<float> x = {1, -2, 3, 0.5f, 0, 7, -1, 2};
  for (const uint32_t threads : {1u, 3u}) {
    uint32_t bad = 0;
    const Chain chain;
    CheckedSegment checked = check_segment(chain.segment, &bad);
    for (PlanOp& op : checked.plan.ops) op.kernel = reference_kernels()[static_cast<size_t>(op.kind)].run;
    checked.plan.threads = threads;
    const Program program(std::move(checked));
    Team team(threads, allowed_cores());
    motley_batch batch{};
    batch.struct_size = sizeof batch, batch.rows = 1;
    std::vector<float> in = x, out(8);
    RunArgs args;
    args.batch = &batch;
    args.bound.assign(6, nullptr);
    args.bound[0] = reinterpret_cast<std::byte*>(in.data()), args.bound[5] = reinterpret_cast<std::byte*>(out.data());
    const Allocation workspace(main_memory(), program.workspace_bytes(1, 0, 0));
    program.run(team, args, workspace.data());
    for (size_t i = 0; i < 8; ++i) EXPECT_EQ(out[i], 8 * x[i] + x[i] * x[i]);
  }
}

TEST(Program, KernelThatFails_GivesItsCode) {
  uint32_t bad = 0;
  const Chain chain;
  CheckedSegment checked = check_segment(chain.segment, &bad);
  for (PlanOp& op : checked.plan.ops)
    op.kernel = [](const OpCall& call) { call.fail(MOTLEY_OUT_OF_RANGE, "a wild token"); };
  const Program program(std::move(checked));
  Team team(1, allowed_cores());
  motley_batch batch{};
  batch.struct_size = sizeof batch;
  RunArgs args;
  args.batch = &batch;
  args.bound.assign(6, nullptr);
  const Allocation workspace(main_memory(), program.workspace_bytes(1, 0, 0));
  try {
    program.run(team, args, workspace.data());
    FAIL() << "the failure was lost";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), MOTLEY_OUT_OF_RANGE);
    EXPECT_STREQ(error.what(), "a wild token");
  }
}

TEST(Cores, Text_IsParsedOrRefused) {
  const std::vector<int> allowed = allowed_cores();
  const std::string first = std::to_string(allowed[0]);
  EXPECT_EQ(parse_cores(first.c_str()), std::vector<int>{allowed[0]});
  EXPECT_EQ(parse_cores((first + "," + first + "-" + first).c_str()), std::vector<int>{allowed[0]});
  for (const char* bad : {"", "x", "1-", "-1", "3-1", "0,", "0 1", "99999999999", "0-100000"})
    EXPECT_THROW(parse_cores(bad), Error) << bad;
}

TEST(Table, UnknownAbi_IsDeclined) {
  EXPECT_EQ(backend_table<RefBackend>(MOTLEY_BACKEND_ABI + 1, "ref", "0"), nullptr);
  EXPECT_NE(backend_table<RefBackend>(MOTLEY_BACKEND_ABI, "ref", "0"), nullptr);
}

}  // namespace
}  // namespace motley::kit
