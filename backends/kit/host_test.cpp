// What the process may use, read from files made for the test.
#include "kit/host.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kit/kit.hpp"

namespace motley::kit {
namespace {

class Host : public testing::Test {
 protected:
  Host() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley_host_XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    put("/proc/meminfo", "MemTotal:       1000 kB\nMemFree:  5 kB\nMemAvailable:    800 kB\n");
  }
  ~Host() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void siblings(int cpu, const std::string& text) const {
    put("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list", text);
  }
  std::string root_;
};
constexpr uint64_t kKib = 1024;

TEST_F(Host, MemoryWithoutCgroups_IsTheMachines) {
  EXPECT_EQ(host_memory(root_).total, 1000 * kKib);
  EXPECT_EQ(host_memory(root_).free, 800 * kKib);
}

TEST_F(Host, MemoryOfCgroup2_IsTheTightestOfAllAbove) {
  put("/proc/self/cgroup", "0::/a/b\n");
  put("/sys/fs/cgroup/a/b/memory.max", "max\n");
  put("/sys/fs/cgroup/a/b/memory.current", "999999999\n");
  put("/sys/fs/cgroup/a/memory.max", "409600\n");
  put("/sys/fs/cgroup/a/memory.current", "204800\n");
  EXPECT_EQ(host_memory(root_).total, 400 * kKib);
  EXPECT_EQ(host_memory(root_).free, 200 * kKib);
  put("/sys/fs/cgroup/a/memory.stat", "anon 5\nactive_file 7\ninactive_file 102400\n");
  EXPECT_EQ(host_memory(root_).free, 300 * kKib) << "page cache can be dropped";
  put("/sys/fs/cgroup/a/memory.stat", "");
  put("/sys/fs/cgroup/a/memory.current", "500000\n");
  EXPECT_EQ(host_memory(root_).free, 0u) << "over its limit";
}

TEST_F(Host, MemoryOfCgroup1_IsBoundToo) {
  put("/proc/self/cgroup", "7:cpu,cpuacct:/\n4:memory:/not/mounted/here\n0::/\n");
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "512000\n");
  put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "409600\n");
  EXPECT_EQ(host_memory(root_).total, 500 * kKib);
  EXPECT_EQ(host_memory(root_).free, 100 * kKib);
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  EXPECT_EQ(host_memory(root_).free, 800 * kKib);
}

TEST_F(Host, MalformedCgroups_AreNoLimit) {
  put("/proc/self/cgroup", "x\n1:\n0::/../../proc\n0::\n");
  put("/sys/fs/cgroup/memory.max", "12 monkeys? -1\n");
  put("/sys/fs/cgroup/memory.max", "-1\n");
  put("/sys/fs/cgroup/cpu.max", "no number\n");
  EXPECT_EQ(host_memory(root_).free, 800 * kKib);
  EXPECT_EQ(host_cores({0, 1}, root_).threads, 2u);
}

TEST_F(Host, CoresWithSiblings_ComeOneOfEachFirst) {
  for (const int cpu : {0, 1}) siblings(cpu, "0-1\n");
  for (const int cpu : {2, 6}) siblings(cpu, "2,6\n");
  siblings(3, "3\n");
  const HostCores host = host_cores({0, 1, 2, 3, 6}, root_);
  EXPECT_EQ(host.cores, (std::vector<int>{0, 2, 3, 1, 6}));
  EXPECT_EQ(host.threads, 3u);
  // A core whose first CPU is not allowed still counts.
  EXPECT_EQ(host_cores({1, 6}, root_).threads, 2u);
}

TEST_F(Host, CoresWithoutTopology_AreAllPhysical) {
  siblings(1, "0-\n");
  siblings(2, "0-99999999\n");
  const HostCores host = host_cores({0, 1, 2}, root_);
  EXPECT_EQ(host.cores, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(host.threads, 3u);
}

TEST_F(Host, CpuQuota_BoundsTheThreadsRoundedUp) {
  put("/proc/self/cgroup", "0::/job\n");
  put("/sys/fs/cgroup/job/cpu.max", "max 100000\n");
  EXPECT_EQ(host_cores({0, 1, 2, 3}, root_).threads, 4u);
  put("/sys/fs/cgroup/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(host_cores({0, 1, 2, 3}, root_).threads, 2u);
  EXPECT_EQ(host_cores({0, 1, 2, 3}, root_).cores.size(), 4u);
  EXPECT_EQ(host_cores({0}, root_).threads, 1u);
  put("/proc/self/cgroup", "3:cpuacct,cpu:/\n");
  put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n");
  put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(host_cores({0, 1, 2, 3}, root_).threads, 3u);
  put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(host_cores({0, 1, 2, 3}, root_).threads, 4u);
}

TEST(Threads, DefaultAndGiven_FollowTheOptions) {
  struct Plain : Kernels {
    const KernelTable& table() const override { return reference_kernels(); }
    std::unique_ptr<Weight> pack(const WeightSource& source) const override { return pack_reference(source); }
  } kernels;
  OpenOptions options;
  options.cores = {0, 1, 2, 3};
  EXPECT_EQ(kernels.threads(options), 4u);
  options.threads_default = 2;
  EXPECT_EQ(kernels.threads(options), 2u);
  options.threads = 3;
  EXPECT_EQ(kernels.threads(options), 3u);
}

TEST_F(Host, Caches_AreThoseOfCpu0) {
  EXPECT_EQ(host_caches(root_).second, 0);
  const auto cache = [&](int index, const char* level, const char* size) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    put(folder + "/level", level), put(folder + "/size", size);
  };
  cache(0, "1\n", "48K\n"), cache(1, "2\n", "1024K\n"), cache(2, "3\n", "32M\n");
  EXPECT_EQ(host_caches(root_).second, 1 << 20);
  EXPECT_EQ(host_caches(root_).third, 32 << 20);
  cache(2, "3\n", "-1K\n");
  EXPECT_EQ(host_caches(root_).third, 0);
}

}  // namespace
}  // namespace motley::kit
