#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "device/device_list.hpp"
#include "device/registry.hpp"
#include "device/wait.hpp"

namespace motley {
namespace {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-device-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(DeviceRegistry, EmptyFolder_NamesEveryKindAsAbsentWithAReason) {
  TemporaryFolder folder;
  const auto registry = DeviceRegistry::scan(folder.path());
  EXPECT_TRUE(registry.devices().empty());
  ASSERT_EQ(registry.absent().size(), 3u);
  for (const auto& absent : registry.absent()) EXPECT_NE(absent.reason.find(folder.path().string()), std::string::npos);
  EXPECT_EQ(registry.find("cpu:0").error().code(), MOTLEY_NOT_FOUND);
}

TEST(DeviceRegistry, MissingFolder_IsNotAnError) {
  EXPECT_EQ(DeviceRegistry::scan("/nonexistent/plugins").absent().size(), 3u);
}

TEST(DeviceRegistry, FileThatIsNoLibrary_IsAbsentAndNamed) {
  TemporaryFolder folder;
  std::ofstream(folder.path() / "cpu.so") << "not a library";
  const auto registry = DeviceRegistry::scan(folder.path());
  EXPECT_TRUE(registry.devices().empty());
  EXPECT_EQ(registry.absent()[0].kind, "cpu");
  EXPECT_NE(registry.absent()[0].reason.find("cpu.so"), std::string::npos);
  const Status missing = parse_device_list(registry, "CPU:0").error();
  EXPECT_NE(missing.message().find("cpu.so"), std::string::npos) << missing.message();
}

TEST(DeviceRegistry, KindOfAPlugin_IsReadFromItsNameWithOrWithoutPrefix) {
  for (const char* name : {"cuda.so", "libmotley_cuda.so"}) {
    TemporaryFolder folder;
    std::ofstream(folder.path() / name) << "not a library";
    EXPECT_EQ(DeviceRegistry::scan(folder.path()).absent()[0].kind, "gpu") << name;
  }
}

TEST(DeviceRegistry, LibraryCutShort_IsAbsentAndNamed) {
  TemporaryFolder folder;
  // This program itself is as good a library as any: it is an ELF file that says how long it is.
  std::filesystem::copy_file("/proc/self/exe", folder.path() / "cpu.so");
  const auto size = std::filesystem::file_size(folder.path() / "cpu.so");
  for (const uintmax_t kept : {size / 2, uintmax_t{5000}, uintmax_t{70}, uintmax_t{30}}) {
    std::filesystem::resize_file(folder.path() / "cpu.so", kept);
    const auto registry = DeviceRegistry::scan(folder.path());
    EXPECT_TRUE(registry.devices().empty());
    EXPECT_NE(registry.absent()[0].reason.find("cpu.so"), std::string::npos) << registry.absent()[0].reason;
  }
}

TEST(DeviceRegistry, EmptyList_IsRefused) {
  EXPECT_FALSE(parse_device_list(DeviceRegistry::scan("/nonexistent"), "").ok());
  EXPECT_FALSE(parse_device_list(DeviceRegistry::scan("/nonexistent"), "CPU:0,,").ok());
}

TEST(Waiter, WakesWhenRungAndGivesUpAtTheDeadline) {
  const auto waiter = Waiter::create();
  ASSERT_TRUE(waiter.ok());
  std::jthread ringer([&] { waiter->ring(); });
  EXPECT_TRUE(waiter->wait(kNoDeadline, system_clock()));
  ringer.join();
  EXPECT_FALSE(waiter->wait(system_clock().now_ns() - 1, system_clock()));
  EXPECT_EQ(wait_any({}, system_clock().now_ns() - 1, *waiter, system_clock()), std::nullopt);
}

}  // namespace
}  // namespace motley
