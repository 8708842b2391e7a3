#include "base/host_memory.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace motley {
namespace {

class HostMemory : public ::testing::Test {
 protected:
  HostMemory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-memory-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    put("/proc/meminfo", "MemTotal:   1000 kB\nMemFree:  5 kB\nMemAvailable:  800 kB\nBuffers: 1 kB\n");
    put("/proc/self/cgroup", "0::/outer/inner\n");
  }
  ~HostMemory() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(HostMemory, NoGroupBoundsIt_IsTheKernelsFigure) {
  put("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  EXPECT_EQ(host_memory_available(root_), 800u * 1024);
}

TEST_F(HostMemory, AnyGroupAboveMayBoundIt_PagesOfFilesAreLetGo) {
  put("/sys/fs/cgroup/outer/inner/memory.max", "700000\n");
  put("/sys/fs/cgroup/outer/inner/memory.current", "100000\n");
  put("/sys/fs/cgroup/outer/memory.max", "500000\n");
  put("/sys/fs/cgroup/outer/memory.current", "400000\n");
  put("/sys/fs/cgroup/outer/memory.stat", "anon 7\ninactive_file 300000\n");
  EXPECT_EQ(host_memory_available(root_), 400'000u);
  put("/sys/fs/cgroup/outer/memory.max", "50000\n");
  EXPECT_EQ(host_memory_available(root_), 0u);
}

TEST_F(HostMemory, OfThisMachine_IsSome) { EXPECT_GT(host_memory_available(), 1u << 20); }

}  // namespace
}  // namespace motley
