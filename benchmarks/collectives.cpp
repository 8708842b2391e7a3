// What an operation between ranks costs: `collectives` prints, for groups of 2 to 4 ranks (one thread each) over shared
// memory and over Gloo, the microseconds of an all-reduce and of half a message there and back, by size; median of five
// runs. On a machine with fewer cores than ranks plus Gloo's thread it shows the scheduler as much as the transport.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "comm/communicator.hpp"

namespace {

using namespace motley;

constexpr int kRuns = 5;
constexpr int64_t kRunNs = 40'000'000;  // about, after which the number of repetitions is chosen

struct Implementation {
  const char* name;
  Result<CommGroup> (*make)(const GroupOptions&);
};

// Nanoseconds until every rank has made `body` `repetitions` times.
int64_t time_ns(CommGroup& group, int repetitions, const std::function<Status(Communicator&)>& body) {
  std::vector<std::thread> threads;
  const int64_t start_ns = system_clock().now_ns();
  for (auto& rank : group) {
    threads.emplace_back([&] {
      for (int i = 0; i < repetitions; ++i) CHECK(body(*rank).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return system_clock().now_ns() - start_ns;
}

double median_us(CommGroup& group, const std::function<Status(Communicator&)>& body) {
  int repetitions = 16;
  const int64_t trial_ns = std::max<int64_t>(1, time_ns(group, repetitions, body));
  repetitions = static_cast<int>(std::clamp<int64_t>(kRunNs * repetitions / trial_ns, 4, 20'000));
  std::vector<double> runs;
  for (int run = 0; run < kRuns; ++run)
    runs.push_back(static_cast<double>(time_ns(group, repetitions, body)) / repetitions / 1000);
  std::nth_element(runs.begin(), runs.begin() + kRuns / 2, runs.end());
  return runs[kRuns / 2];
}

void measure(const Implementation& implementation, uint32_t size, size_t bytes) {
  Result<CommGroup> group = implementation.make({.size = size, .message_bytes_max = bytes});
  CHECK(group.ok(), "{}", group.error().to_string());
  std::vector<std::vector<float>> data(size, std::vector<float>(bytes / sizeof(float)));
  const double all_reduce =
      median_us(*group, [&](Communicator& rank) { return rank.all_reduce(data[rank.rank()], true, CommCall{}); });
  const double message = median_us(*group, [&](Communicator& rank) {
    const std::span<std::byte> own = std::as_writable_bytes(std::span(data[rank.rank()]));
    if (rank.rank() > 1) return ok_status();
    const uint32_t peer = 1 - rank.rank();
    if (rank.rank() == 0) RETURN_IF_ERROR(rank.send(peer, own, {}));
    RETURN_IF_ERROR(rank.recv(peer, own, {}));
    return rank.rank() == 1 ? rank.send(peer, own, {}) : ok_status();
  });
  std::printf("%-13s %5u %9zu %13.1f %13.1f\n", implementation.name, size, bytes, all_reduce, message / 2);
}

}  // namespace

int main() {
  std::printf("%-13s %5s %9s %13s %13s\n", "over", "ranks", "bytes", "all_reduce us", "message us");
  for (const Implementation& implementation :
       {Implementation{"shared memory", make_shared_memory_group}, Implementation{"Gloo", make_gloo_group}})
    for (const uint32_t size : {2u, 3u, 4u})
      for (const size_t bytes : {64u, 8u << 10, 64u << 10, 256u << 10, 4u << 20}) measure(implementation, size, bytes);
}
