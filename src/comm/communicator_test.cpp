// What every implementation of Communicator must do: the same tests over shared memory and over Gloo.
#include "comm/communicator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>

#include "base/clock.hpp"

namespace motley {
namespace {

constexpr int64_t kSoonNs = 30'000'000;
constexpr int64_t kPatienceNs = 120'000'000'000;  // no test waits that long unless something is broken

CommCall patient(int64_t* virtual_ns = nullptr) { return {system_clock().now_ns() + kPatienceNs, virtual_ns}; }
CommCall hasty() { return {system_clock().now_ns() + kSoonNs, nullptr}; }

struct Implementation {
  const char* name;
  Result<CommGroup> (*make)(const GroupOptions&);
};

CommGroup make_group(const Implementation& implementation, uint32_t size, uint64_t message_bytes_max = 1 << 20) {
  Result<CommGroup> group = implementation.make({.size = size, .message_bytes_max = message_bytes_max});
  CHECK(group.ok(), "{}", group.error().to_string());
  return *std::move(group);
}

// Runs body(rank's communicator) on a thread per rank; what each answered.
std::vector<Status> on_ranks(CommGroup& group, const std::function<Status(Communicator&)>& body) {
  std::vector<Status> answers(group.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < group.size(); ++r) threads.emplace_back([&, r] { answers[r] = body(*group[r]); });
  for (std::thread& thread : threads) thread.join();
  return answers;
}

void expect_all(const std::vector<Status>& answers, Code code) {
  for (size_t r = 0; r < answers.size(); ++r) {
    EXPECT_EQ(answers[r].code(), code) << "rank " << r << ": " << answers[r].to_string();
    EXPECT_EQ(answers[r].to_string(), answers[0].to_string()) << "rank " << r;
  }
}

// Floats of several magnitudes, so that another order of addition gives other bits.
std::vector<float> floats_of(uint32_t rank, size_t count, uint32_t seed = 1) {
  std::mt19937 random(seed * 1000 + rank);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  std::vector<float> values(count);
  for (float& value : values) value = std::ldexp(mantissa(random), static_cast<int>(random() % 24));
  return values;
}

std::vector<std::byte> bytes_of(uint32_t rank, size_t count, uint32_t seed = 1) {
  std::mt19937 random(seed * 1000 + rank);
  std::vector<std::byte> values(count);
  for (std::byte& value : values) value = static_cast<std::byte>(random());
  return values;
}

// Added in rank order in f32.
std::vector<float> expected_sum(const std::vector<uint32_t>& ranks, size_t count, uint32_t seed = 1) {
  std::vector<float> sum(count, 0.0f);
  for (size_t k = 0; k < ranks.size(); ++k) {
    const std::vector<float> values = floats_of(ranks[k], count, seed);
    for (size_t i = 0; i < count; ++i) sum[i] = k == 0 ? values[i] : sum[i] + values[i];
  }
  return sum;
}

template <typename T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return same_bits(std::span<const T>(a), std::span<const T>(b));
}

std::vector<uint32_t> all_ranks(uint32_t size) {
  std::vector<uint32_t> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0u);
  return ranks;
}

Status verdict(bool right) { return right ? ok_status() : error(MOTLEY_DATA_LOSS, "other bits than expected"); }

class CommunicatorTest : public testing::TestWithParam<Implementation> {};

constexpr size_t kSizes[] = {0, 1, 7, 64, 8191, 8192, 8193, 40'000, 100'003};

TEST_P(CommunicatorTest, AllReduce_AnySizeAndRanks_AddsInRankOrder) {
  for (uint32_t size = 1; size <= 8; ++size) {
    CommGroup group = make_group(GetParam(), size);
    for (const size_t count : kSizes) {
      const std::vector<float> expected = expected_sum(all_ranks(size), count);
      expect_all(on_ranks(group,
                          [&](Communicator& rank) {
                            std::vector<float> data = floats_of(rank.rank(), count);
                            RETURN_IF_ERROR(rank.all_reduce(data, true, patient()));
                            return verdict(same_bits(data, expected));
                          }),
                 MOTLEY_OK);
    }
  }
}

TEST_P(CommunicatorTest, AllReduce_AMillionFloats_AddsInRankOrder) {
  CommGroup group = make_group(GetParam(), 3);
  const size_t count = 1'000'000;
  const std::vector<float> expected = expected_sum({0, 1, 2}, count);
  expect_all(on_ranks(group,
                      [&](Communicator& rank) {
                        std::vector<float> data = floats_of(rank.rank(), count);
                        RETURN_IF_ERROR(rank.all_reduce(data, true, patient()));
                        return verdict(same_bits(data, expected));
                      }),
             MOTLEY_OK);
}

TEST_P(CommunicatorTest, AllReduce_SomeDoNotContribute_TheyOnlyReceive) {
  CommGroup group = make_group(GetParam(), 4);
  for (const std::vector<uint32_t>& contributors :
       std::vector<std::vector<uint32_t>>{{1, 3}, {0}, {3}, {0, 1, 2}, {}}) {
    for (const size_t count : {size_t{5}, size_t{50'000}}) {
      const std::vector<float> expected = expected_sum(contributors, count);
      expect_all(on_ranks(group,
                          [&](Communicator& rank) {
                            std::vector<float> data = floats_of(rank.rank(), count);
                            const bool contributes = std::count(contributors.begin(), contributors.end(), rank.rank());
                            RETURN_IF_ERROR(rank.all_reduce(data, contributes, patient()));
                            return verdict(same_bits(data, expected));
                          }),
                 MOTLEY_OK);
    }
  }
}

// Counts of all kinds: none, all with one rank, even, uneven.
std::vector<std::vector<uint64_t>> counts_for(uint32_t size, uint64_t unit) {
  std::vector<uint64_t> none(size), one(size), even(size, unit), uneven(size);
  one[size - 1] = 3 * unit + 1;
  for (uint32_t r = 0; r < size; ++r) uneven[r] = (r * 7 % 4) * unit + r;
  return {none, one, even, uneven};
}

uint64_t sum_of(std::span<const uint64_t> counts) { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }

TEST_P(CommunicatorTest, AllGatherV_UnevenCounts_GivesAllPartsToAll) {
  for (const uint32_t size : {1u, 2u, 3u, 5u, 8u}) {
    CommGroup group = make_group(GetParam(), size);
    for (const uint64_t unit : {uint64_t{3}, uint64_t{20'000}, uint64_t{150'001}}) {
      for (const std::vector<uint64_t>& counts : counts_for(size, unit)) {
        std::vector<std::byte> expected;
        for (uint32_t r = 0; r < size; ++r)
          for (const std::byte value : bytes_of(r, counts[r])) expected.push_back(value);
        expect_all(on_ranks(group,
                            [&](Communicator& rank) {
                              std::vector<std::byte> data(expected.size());
                              const uint64_t begin = sum_of(std::span(counts).first(rank.rank()));
                              const std::vector<std::byte> own = bytes_of(rank.rank(), counts[rank.rank()]);
                              std::copy(own.begin(), own.end(), data.begin() + static_cast<ptrdiff_t>(begin));
                              RETURN_IF_ERROR(rank.all_gather_v(data, counts, patient()));
                              return verdict(same_bits(data, expected));
                            }),
                   MOTLEY_OK);
      }
    }
  }
}

TEST_P(CommunicatorTest, ReduceScatterV_UnevenCounts_SumsTheOwnPartAndLeavesTheOthers) {
  for (const uint32_t size : {1u, 2u, 3u, 5u, 8u}) {
    CommGroup group = make_group(GetParam(), size);
    for (const uint64_t unit : {uint64_t{3}, uint64_t{20'000}}) {
      for (const std::vector<uint64_t>& counts : counts_for(size, unit)) {
        const std::vector<float> sum = expected_sum(all_ranks(size), sum_of(counts));
        expect_all(on_ranks(group,
                            [&](Communicator& rank) {
                              std::vector<float> data = floats_of(rank.rank(), sum.size());
                              std::vector<float> expected = data;
                              const auto begin = static_cast<ptrdiff_t>(sum_of(std::span(counts).first(rank.rank())));
                              std::copy_n(sum.begin() + begin, counts[rank.rank()], expected.begin() + begin);
                              RETURN_IF_ERROR(rank.reduce_scatter_v(data, counts, patient()));
                              return verdict(same_bits(data, expected));
                            }),
                   MOTLEY_OK);
      }
    }
  }
}

TEST_P(CommunicatorTest, Broadcast_AnyRootAndSize_GivesItsBytesToAll) {
  CommGroup group = make_group(GetParam(), 4);
  for (uint32_t root = 0; root < 4; ++root) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{30'000}, size_t{500'000}}) {
      const std::vector<std::byte> expected = bytes_of(root, count);
      expect_all(on_ranks(group,
                          [&](Communicator& rank) {
                            std::vector<std::byte> data = bytes_of(rank.rank(), count);
                            RETURN_IF_ERROR(rank.broadcast(data, root, patient()));
                            return verdict(same_bits(data, expected));
                          }),
                 MOTLEY_OK);
    }
  }
}

TEST_P(CommunicatorTest, Send_TwoLargestMessages_ReturnsWithoutAReceiver) {
  const size_t most = 300'000;
  CommGroup group = make_group(GetParam(), 2, most);
  const std::vector<std::byte> first = bytes_of(0, most), second = bytes_of(1, most), none;
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(group[0]->send(1, first, patient()).ok());
    ASSERT_TRUE(group[0]->send(1, second, patient()).ok());
    std::vector<std::byte> got(most);
    ASSERT_TRUE(group[1]->recv(0, got, patient()).ok());
    EXPECT_TRUE(same_bits(got, first));
    ASSERT_TRUE(group[1]->recv(0, got, patient()).ok());
    EXPECT_TRUE(same_bits(got, second));
    ASSERT_TRUE(group[0]->send(1, none, patient()).ok());
    ASSERT_TRUE(group[1]->recv(0, std::span(got).first(0), patient()).ok());
  }
}

TEST_P(CommunicatorTest, Send_ManyMessagesAround_ArriveInOrder) {
  CommGroup group = make_group(GetParam(), 3, 100'000);
  expect_all(on_ranks(group,
                      [&](Communicator& rank) {
                        const uint32_t to = (rank.rank() + 1) % 3, from = (rank.rank() + 2) % 3;
                        for (uint32_t i = 0; i < 40; ++i) {
                          const size_t bytes = i * 2'503 % 100'001;
                          RETURN_IF_ERROR(rank.send(to, bytes_of(rank.rank(), bytes, i), patient()));
                          std::vector<std::byte> got(bytes);
                          RETURN_IF_ERROR(rank.recv(from, got, patient()));
                          RETURN_IF_ERROR(verdict(same_bits(got, bytes_of(from, bytes, i))));
                        }
                        return ok_status();
                      }),
             MOTLEY_OK);
}

// Small and large operations of all kinds after one another: no round may read what another round wrote.
TEST_P(CommunicatorTest, AnyOperations_InARow_DoNotDisturbOneAnother) {
  const uint32_t size = 3;
  CommGroup group = make_group(GetParam(), size, 4096);
  expect_all(on_ranks(group,
                      [&](Communicator& rank) {
                        std::mt19937 random(5);  // the same on every rank
                        for (uint32_t i = 0; i < 150; ++i) {
                          const uint32_t kind = random() % 4;
                          const size_t count = random() % (random() % 5 == 0 ? 60'000 : 300);
                          const uint32_t root = random() % size;
                          const std::vector<uint64_t> counts{count, 0, count / 3};
                          if (kind == 0) {
                            std::vector<float> data = floats_of(rank.rank(), count, i);
                            RETURN_IF_ERROR(rank.all_reduce(data, true, patient()));
                            RETURN_IF_ERROR(verdict(same_bits(data, expected_sum(all_ranks(size), count, i))));
                          } else if (kind == 1) {
                            std::vector<std::byte> data = bytes_of(rank.rank(), count, i);
                            RETURN_IF_ERROR(rank.broadcast(data, root, patient()));
                            RETURN_IF_ERROR(verdict(same_bits(data, bytes_of(root, count, i))));
                          } else if (kind == 2) {
                            std::vector<float> data = floats_of(rank.rank(), count + count / 3, i);
                            const std::vector<float> sum = expected_sum(all_ranks(size), data.size(), i);
                            RETURN_IF_ERROR(rank.reduce_scatter_v(data, counts, patient()));
                            if (rank.rank() == 2)
                              RETURN_IF_ERROR(verdict(same_bits(std::span<const float>(data).subspan(count),
                                                                std::span<const float>(sum).subspan(count))));
                          } else if (rank.rank() == root) {
                            const uint32_t to = (root + 1) % size;
                            RETURN_IF_ERROR(rank.send(to, bytes_of(root, count % 4096, i), patient()));
                          } else if (rank.rank() == (root + 1) % size) {
                            std::vector<std::byte> got(count % 4096);
                            RETURN_IF_ERROR(rank.recv(root, got, patient()));
                            RETURN_IF_ERROR(verdict(same_bits(got, bytes_of(root, got.size(), i))));
                          }
                        }
                        return ok_status();
                      }),
             MOTLEY_OK);
}

using RankCall = std::function<Status(Communicator&)>;

TEST_P(CommunicatorTest, AnyCall_OthersDoNotCome_EndsAtTheDeadlineAndBreaksTheGroup) {
  std::vector<float> floats(10);
  std::vector<std::byte> bytes(20);
  const std::vector<uint64_t> counts{10, 10}, float_counts{5, 5};
  const std::vector<RankCall> calls = {
      [&](Communicator& rank) { return rank.all_reduce(floats, true, hasty()); },
      [&](Communicator& rank) { return rank.all_gather_v(bytes, counts, hasty()); },
      [&](Communicator& rank) { return rank.reduce_scatter_v(floats, float_counts, hasty()); },
      [&](Communicator& rank) { return rank.broadcast(bytes, 0, hasty()); },
      [&](Communicator& rank) { return rank.recv(1, bytes, hasty()); },
      [&](Communicator& rank) {  // as many as may be on their way, then one too many
        for (;;) RETURN_IF_ERROR(rank.send(1, bytes, hasty()));
      }};
  for (const RankCall& call : calls) {
    CommGroup group = make_group(GetParam(), 2, 20);
    EXPECT_EQ(call(*group[0]).code(), MOTLEY_DEADLINE_EXCEEDED);
    EXPECT_EQ(group[1]->broadcast(bytes, 0, patient()).code(), MOTLEY_DEADLINE_EXCEEDED);
    EXPECT_EQ(group[0]->send(1, bytes, patient()).code(), MOTLEY_DEADLINE_EXCEEDED);
  }
}

TEST_P(CommunicatorTest, AnyCall_AnotherRankTimesOut_AllAnswerTheSame) {
  CommGroup group = make_group(GetParam(), 4);
  std::vector<Status> answers = on_ranks(group, [&](Communicator& rank) {
    std::vector<float> data(30'000);
    if (rank.rank() == 3) return error(MOTLEY_DEADLINE_EXCEEDED, "was not there");
    return rank.all_reduce(data, true, rank.rank() == 1 ? hasty() : patient());
  });
  answers.pop_back();
  expect_all(answers, MOTLEY_DEADLINE_EXCEEDED);
}

TEST_P(CommunicatorTest, Abort_WhileOthersWait_AllAnswerItsStatus) {
  for (int repetition = 0; repetition < 10; ++repetition) {
    CommGroup group = make_group(GetParam(), 4);
    const Status why = error(MOTLEY_ABORTED, "epoch 7 has ended");
    const std::vector<Status> answers = on_ranks(group, [&](Communicator& rank) {
      std::vector<float> data(10);
      std::vector<std::byte> bytes(10);
      if (rank.rank() == 3) {
        rank.abort(why);
        rank.abort(error(MOTLEY_INTERNAL, "a later reason"));
      }
      return rank.rank() == 0 ? rank.recv(1, bytes, patient()) : rank.all_reduce(data, true, patient());
    });
    expect_all(answers, MOTLEY_ABORTED);
    EXPECT_EQ(answers[0].message(), why.message());
  }
}

TEST_P(CommunicatorTest, Abort_InTheMiddleOfLargeOperations_AllStop) {
  for (int repetition = 0; repetition < 5; ++repetition) {
    CommGroup group = make_group(GetParam(), 3);
    std::thread aborter([&] { group[0]->abort(error(MOTLEY_ABORTED, "enough")); });
    expect_all(on_ranks(group,
                        [&](Communicator& rank) -> Status {
                          std::vector<float> data(100'000);
                          for (;;) RETURN_IF_ERROR(rank.all_reduce(data, true, patient()));
                        }),
               MOTLEY_ABORTED);
    aborter.join();
  }
}

TEST_P(CommunicatorTest, Destroy_OneRank_TheOthersAnswerUnavailable) {
  for (int repetition = 0; repetition < 25; ++repetition) {
    CommGroup group = make_group(GetParam(), 3);
    std::thread leaver([&, leaving = std::move(group[2])]() mutable { leaving.reset(); });
    group.pop_back();
    expect_all(on_ranks(group,
                        [&](Communicator& rank) {
                          std::vector<float> data(10);
                          return rank.all_reduce(data, true, patient());
                        }),
               MOTLEY_UNAVAILABLE);
    leaver.join();
  }
}

TEST_P(CommunicatorTest, Calls_ThatDiffer_AreRefusedOnAllRanks) {
  const auto all_reduce = [](size_t count) -> RankCall {
    return [count](Communicator& rank) {
      std::vector<float> data(count);
      return rank.all_reduce(data, true, patient());
    };
  };
  const auto broadcast = [](size_t count, uint32_t root) -> RankCall {
    return [=](Communicator& rank) {
      std::vector<std::byte> data(count);
      return rank.broadcast(data, root, patient());
    };
  };
  const auto gather = [](std::vector<uint64_t> counts) -> RankCall {
    return [=](Communicator& rank) {
      std::vector<std::byte> data(sum_of(counts));
      return rank.all_gather_v(data, counts, patient());
    };
  };
  const auto scatter = [](std::vector<uint64_t> counts) -> RankCall {
    return [=](Communicator& rank) {
      std::vector<float> data(sum_of(counts));
      return rank.reduce_scatter_v(data, counts, patient());
    };
  };
  const std::vector<std::pair<RankCall, RankCall>> cases = {
      {all_reduce(10), all_reduce(12)},
      {all_reduce(10), all_reduce(100'000)},
      {all_reduce(100'000), all_reduce(100'001)},
      {all_reduce(100'000), scatter({50'000, 25'000, 25'000})},
      {all_reduce(10), broadcast(10, 0)},
      {broadcast(10, 0), broadcast(10, 1)},
      {broadcast(10, 0), gather({10, 0, 0})},
      {gather({1, 2, 3}), gather({3, 2, 1})},
      {gather({100'000, 2, 3}), gather({3, 2, 100'000})},
      {scatter({1, 2, 3}), scatter({2, 1, 3})},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const uint32_t odd : {0u, 2u}) {
      SCOPED_TRACE(testing::Message() << "case " << i << ", odd rank " << odd);
      CommGroup group = make_group(GetParam(), 3);
      expect_all(on_ranks(group,
                          [&](Communicator& rank) {
                            return rank.rank() == odd ? cases[i].second(rank) : cases[i].first(rank);
                          }),
                 MOTLEY_INVALID_ARGUMENT);
    }
  }
}

TEST_P(CommunicatorTest, Calls_WithBadArguments_AreRefusedAndBreakTheGroup) {
  std::vector<float> floats(10);
  std::vector<std::byte> bytes(65);
  const std::vector<uint64_t> few{10}, less{4, 5}, more{6, 5}, vast{UINT64_MAX, 11}, right{5, 5};
  const std::vector<RankCall> calls = {
      [&](Communicator& rank) { return rank.reduce_scatter_v(floats, few, patient()); },
      [&](Communicator& rank) { return rank.reduce_scatter_v(floats, less, patient()); },
      [&](Communicator& rank) { return rank.reduce_scatter_v(floats, more, patient()); },
      [&](Communicator& rank) { return rank.reduce_scatter_v(floats, vast, patient()); },
      [&](Communicator& rank) { return rank.all_gather_v(bytes, right, patient()); },
      [&](Communicator& rank) { return rank.broadcast(bytes, 2, patient()); },
      [&](Communicator& rank) { return rank.send(2, std::span(bytes).first(1), patient()); },
      [&](Communicator& rank) { return rank.send(0, std::span(bytes).first(1), patient()); },
      [&](Communicator& rank) { return rank.recv(0, std::span(bytes).first(1), patient()); },
      [&](Communicator& rank) { return rank.send(1, bytes, patient()); },
      [&](Communicator& rank) { return rank.recv(1, bytes, patient()); },
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    SCOPED_TRACE(i);
    CommGroup group = make_group(GetParam(), 2, 64);
    EXPECT_EQ(calls[i](*group[0]).code(), MOTLEY_INVALID_ARGUMENT);
    EXPECT_EQ(group[1]->all_reduce(floats, true, patient()).code(), MOTLEY_INVALID_ARGUMENT);
  }
}

TEST_P(CommunicatorTest, Recv_OfAnotherSize_IsRefusedOnBothRanks) {
  CommGroup group = make_group(GetParam(), 2, 64);
  std::vector<std::byte> bytes(30), other(31);
  ASSERT_TRUE(group[0]->send(1, bytes, patient()).ok());
  EXPECT_EQ(group[1]->recv(0, other, patient()).code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(group[0]->send(1, bytes, patient()).code(), MOTLEY_INVALID_ARGUMENT);
}

TEST_P(CommunicatorTest, VirtualTime_OfAnyOperation_IsTheLatestRanksPlusTheCost) {
  const GroupOptions options{.size = 3, .message_bytes_max = 100, .link_latency_ns = 1000, .link_ns_per_byte = 0.5};
  EXPECT_EQ(virtual_cost_ns(options, CommOp::kAllReduce, 40), 2040);
  EXPECT_EQ(virtual_cost_ns(options, CommOp::kBroadcast, 41), 1021);
  EXPECT_EQ(virtual_cost_ns({.size = 1, .link_latency_ns = 1000}, CommOp::kAllReduce, 40), 0);
  CommGroup group = *GetParam().make(options);
  std::vector<std::vector<int64_t>> times(3);
  expect_all(on_ranks(group,
                      [&](Communicator& rank) {
                        int64_t now = 100 + 1000 * rank.rank();
                        std::vector<float> data(10), large(50'000);
                        std::vector<std::byte> message(100);
                        RETURN_IF_ERROR(rank.all_reduce(data, rank.rank() == 1, patient(&now)));
                        times[rank.rank()].push_back(now);  // 2100 + 2040 on all
                        now += rank.rank();
                        RETURN_IF_ERROR(rank.all_reduce(large, true, patient(&now)));
                        times[rank.rank()].push_back(now);  // + 2 + 202000
                        if (rank.rank() == 0) RETURN_IF_ERROR(rank.send(1, message, patient(&now)));
                        if (rank.rank() == 1) RETURN_IF_ERROR(rank.recv(0, message, patient(&now)));
                        times[rank.rank()].push_back(now);
                        return ok_status();
                      }),
             MOTLEY_OK);
  const int64_t first = 2100 + 2040, second = first + 2 + 202'000;
  EXPECT_THAT(times, testing::ElementsAre(testing::ElementsAre(first, second, second),
                                          testing::ElementsAre(first, second, second + 1050),
                                          testing::ElementsAre(first, second, second)));
}

TEST_P(CommunicatorTest, Make_BadOptions_IsRefused) {
  EXPECT_EQ(GetParam().make({.size = 0}).error().code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(GetParam().make({.size = kCommRanksMax + 1}).error().code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(GetParam().make({.size = 2, .message_bytes_max = UINT64_MAX}).error().code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(GetParam().make({.size = 2, .link_latency_ns = -1}).error().code(), MOTLEY_INVALID_ARGUMENT);
}

INSTANTIATE_TEST_SUITE_P(Over, CommunicatorTest,
                         testing::Values(Implementation{"SharedMemory", make_shared_memory_group},
                                         Implementation{"Gloo", make_gloo_group}),
                         [](const auto& test) { return test.param.name; });

TEST(Route, Names_AreThoseOfFiles) {
  EXPECT_EQ(route_name(Route::kSharedMemory), "shared-memory");
  EXPECT_EQ(route_name(Route::kGloo), "gloo");
  for (const Route route : kRoutes) EXPECT_EQ(find_route(route_name(route)), route);
  for (const char* none : {"", "Gloo", "shared memory"}) EXPECT_EQ(find_route(none), std::nullopt);
}

TEST(Route, EachThatIsAvailable_MakesAGroupThatSaysSo) {
  const std::vector<Route> routes = available_routes();
  EXPECT_THAT(routes, testing::ElementsAreArray(kRoutes));  // the tests have a loopback interface
  for (const Route route : routes) {
    auto group = motley::make_group(route, {.size = 2});
    ASSERT_TRUE(group.ok()) << group.error().to_string();
    for (const auto& rank : *group) EXPECT_EQ(rank->route(), route);
    expect_all(on_ranks(*group,
                        [](Communicator& rank) {
                          float one = 1;
                          const Status status = rank.all_reduce({&one, 1}, true, patient());
                          EXPECT_EQ(one, 2);
                          return status;
                        }),
               MOTLEY_OK);
  }
}

TEST(SharedMemoryGroup_Test, RanksOfTwoProcesses_GetTheSameSum) {
  CommGroup group = make_group({"", make_shared_memory_group}, 2);
  const std::vector<float> expected = expected_sum({0, 1}, 100'000);
  std::vector<float> own[] = {floats_of(0, 100'000), floats_of(1, 100'000)};
  const auto right = [&](uint32_t r) {
    return group[r]->all_reduce(own[r], true, patient()).ok() && same_bits(own[r], expected);
  };
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(right(1) ? 0 : 1);
  EXPECT_TRUE(right(0));
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace motley
