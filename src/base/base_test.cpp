#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <new>
#include <span>
#include <thread>

#include "base/bounded_queue.hpp"
#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/file_place.hpp"
#include "base/future.hpp"
#include "base/log.hpp"
#include "base/memory_patience.hpp"
#include "base/quote.hpp"
#include "base/status.hpp"

namespace motley {
namespace {

Result<int> half(int x) {
  if (x % 2 != 0) return invalid_argument("{} is odd", x);
  return x / 2;
}
Status quarter(int x, int* out) {
  ASSIGN_OR_RETURN(const int h, half(x));
  ASSIGN_OR_RETURN(*out, half(h));
  return ok_status();
}

TEST(Result, CarriesValueOrStatus) {
  int out = 0;
  EXPECT_TRUE(quarter(12, &out).ok());
  EXPECT_EQ(out, 3);
  const Status failed = quarter(6, &out);
  EXPECT_EQ(failed.code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(failed.to_string(), "INVALID_ARGUMENT: 3 is odd");
  EXPECT_EQ(failed.annotate("model.gguf").message(), "model.gguf: 3 is odd");
}

TEST(ResultDeathTest, ValueOfAnErrorAborts) { EXPECT_DEATH((void)half(3).value(), "check failed"); }

TEST(Future, CallbackRunsWhetherSetBeforeOrAfter) {
  for (const bool before : {true, false}) {
    Promise<int> promise;
    Future<int> future = promise.future();
    int calls = 0;
    if (before) promise.set(7);
    future.on_ready([&] { ++calls; });
    if (!before) promise.set(7);
    EXPECT_EQ(calls, 1);
    EXPECT_EQ(future.take(), 7);
  }
}

TEST(BoundedQueue, RefusesWhenFullAndDrainsAfterClose) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.try_push(1));
  EXPECT_TRUE(queue.try_push(2));
  EXPECT_FALSE(queue.try_push(3));
  queue.close();
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), 2);
  EXPECT_EQ(queue.pop(), std::nullopt);
}

TEST(BoundedQueue, PopWaitsForAnotherThread) {
  BoundedQueue<int> queue(1);
  std::jthread pusher([&] { queue.try_push(5); });
  EXPECT_EQ(queue.pop(), 5);
}

TEST(MemoryPatience, RepeatsWorkUntilItFindsMemory) {
  int tries = 0;
  retry_for_memory([&] {
    if (++tries < 4) throw std::bad_alloc();
  });
  EXPECT_EQ(tries, 4);
}

// The handler is the process's; who has no patience meets bad_alloc at once all the same.
TEST(MemoryPatience, OthersAreToldAtOnce) {
  const MemoryPatience patience;
  std::thread([] { EXPECT_THROW(std::get_new_handler()(), std::bad_alloc); }).join();
}

TEST(ReadFile, FolderEndlessAndMissing_AreStatuses) {
  EXPECT_EQ(read_file("/tmp", 100).error().code(), MOTLEY_NOT_FOUND);
  EXPECT_EQ(read_file("/nonexistent", 100).error().code(), MOTLEY_NOT_FOUND);
  EXPECT_EQ(read_file("/dev/zero", 1 << 20).error().code(), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(*read_file("/dev/null", 0), "");
}

TEST(FilePlace, AddressesOfAMapping_AreFoundUntilItIsForgotten) {
  const std::filesystem::path path = testing::TempDir() + "file_place", other = path.string() + ".other";
  std::ofstream(path) << "x", std::ofstream(other) << "y";
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const std::byte memory[96] = {};  // of a mapping only the addresses count
  const std::span<const std::byte> mapping(memory + 16, 64);
  EXPECT_FALSE(find_file_place(mapping.data(), 1));
  note_mapping(mapping, path, file);
  struct stat was {};
  EXPECT_TRUE(fstat(file, &was) == 0 && close(file) == 0);
  struct Case {
    int64_t from;
    uint64_t bytes;
    bool found;
  };
  for (const auto& [from, bytes, found] : {Case{0, 64, true},
                                           {63, 1, true},
                                           {5, 10, true},
                                           {0, 0, false},
                                           {-1, 1, false},
                                           {64, 1, false},
                                           {0, 65, false},
                                           {63, 2, false},
                                           {5, UINT64_MAX, false}}) {
    const auto place = find_file_place(mapping.data() + from, bytes);
    ASSERT_EQ(place.has_value(), found) << from << " " << bytes;
    if (!place) continue;
    EXPECT_EQ(place->offset, static_cast<uint64_t>(from));
    struct stat is {};
    EXPECT_TRUE(fstat(place->fd, &is) == 0 && is.st_ino == was.st_ino);
    EXPECT_NE(fcntl(place->fd, F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(close(place->fd), 0);
  }
  std::filesystem::rename(other, path);
  EXPECT_FALSE(find_file_place(mapping.data(), 1)) << "another file";
  forget_mapping(mapping);
  std::filesystem::remove(path);
}

TEST(InQuotes, AnyText_IsOneShortPrintableLine) {
  EXPECT_EQ(in_quotes("plain.key"), "'plain.key'");
  EXPECT_EQ(in_quotes("\t\xc3\xa9\xc3\x7f"), "'\\x09\xc3\xa9\\xc3\\x7f'");
  EXPECT_EQ(in_quotes(std::string_view("\0", 1)), "'\\x00'");
  EXPECT_EQ(in_quotes(std::string(64, 'x')), "'" + std::string(64, 'x') + "'");
  EXPECT_EQ(in_quotes(std::string(65, 'x')), "'" + std::string(64, 'x') + "...'");
  EXPECT_EQ(in_quotes(std::string(63, 'x') + "\xc3\xa9"), "'" + std::string(63, 'x') + "...'");  // no half character
}

TEST(Clock, ManualClockMovesOnlyWhenTold) {
  ManualClock clock;
  EXPECT_EQ(clock.now_ns(), 0);
  clock.advance_ns(5);
  EXPECT_EQ(clock.now_ns(), 5);
  EXPECT_GT(system_clock().now_ns(), 0);
}

}  // namespace
}  // namespace motley
