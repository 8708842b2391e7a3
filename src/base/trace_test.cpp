#include "base/trace.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>
#include <vector>

namespace motley {
namespace {

// A file of the test's own.
class TraceTest : public ::testing::Test {
 protected:
  TraceTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "motley-trace-XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
  }
  ~TraceTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  std::string path() const { return folder_ / "trace.json"; }
  std::unique_ptr<Trace> open(const TraceOptions& options = {}) const {
    auto trace = Trace::open(path(), options);
    CHECK(trace.ok(), "{}", trace.error().message());
    return *std::move(trace);
  }
  std::string text() const {
    std::ifstream file(path());
    return {std::istreambuf_iterator<char>(file), {}};
  }
  nlohmann::json json() const { return nlohmann::json::parse(text()); }
  // The events of a phase.
  std::vector<nlohmann::json> events(const std::string& phase) const {
    const nlohmann::json all = json();
    std::vector<nlohmann::json> chosen;
    for (const auto& event : all["traceEvents"])
      if (event["ph"] == phase) chosen.push_back(event);
    return chosen;
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(TraceTest, Spans_KeepNanosecondsAndArguments) {
  const auto trace = open();
  const TraceTrack track = trace->track("CPU:0", "programs");
  trace->span(track, "stage", 1'234'567'890'123, 1'234'567'891'130, {{"rows", 7}, {"layer_begin", -1}});
  trace->span(track, "late", 5, 4, {});
  ASSERT_TRUE(trace->close().ok());
  const auto spans = events("X");
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_NE(text().find(R"("ts":1234567890.123,"dur":1.007,)"), std::string::npos) << text();
  EXPECT_EQ(spans[0]["name"], "stage");
  EXPECT_EQ(spans[0]["pid"], track.process);
  EXPECT_EQ(spans[0]["tid"], track.thread);
  EXPECT_EQ(spans[0]["args"], (nlohmann::json{{"rows", 7}, {"layer_begin", -1}}));
  EXPECT_EQ(spans[1]["dur"], 0);
  EXPECT_EQ(json()["otherData"], (nlohmann::json{{"clock", "CLOCK_MONOTONIC"}, {"events", 6}, {"dropped_events", 0}}));
}

TEST_F(TraceTest, EveryEvent_StandsOnALineOfItsOwn) {
  const auto trace = open({.virtual_time = true});
  const TraceTrack track = trace->track("a", "b");
  for (int i = 0; i < 1000; ++i) trace->span(track, "x", i, i + 1, {});
  ASSERT_TRUE(trace->close().ok());
  std::ifstream file(path());
  std::string line;
  size_t events = 0;
  while (std::getline(file, line)) {
    if (!line.starts_with("{\"ph\"")) continue;
    if (line.ends_with(',')) line.pop_back();
    EXPECT_TRUE(nlohmann::json::accept(line)) << line;
    ++events;
  }
  EXPECT_EQ(events, 1004u);
  EXPECT_EQ(json()["otherData"]["clock"], "virtual");
}

TEST_F(TraceTest, Tracks_AreNamedOnceAndEscaped) {
  const auto trace = open();
  const std::string wild = "SIM:a\"b\\\n\x01\xFF.toml";
  const TraceTrack one = trace->track(wild, "programs"), again = trace->track(wild, "programs"),
                   two = trace->track(wild, "meetings"), other = trace->track("CPU:0", "programs");
  EXPECT_EQ(one.thread, again.thread);
  EXPECT_NE(one.thread, two.thread);
  EXPECT_EQ(one.process, two.process);
  EXPECT_NE(one.process, other.process);
  trace->span(one, wild, 0, 1, {});
  ASSERT_TRUE(trace->close().ok());
  std::map<std::string, std::multiset<std::string>> names;
  for (const auto& event : events("M"))
    if (event["args"].contains("name")) names[event["name"]].insert(event["args"]["name"].get<std::string>());
  const std::string shown = "SIM:a\"b\\\n\x01\xEF\xBF\xBD.toml";
  EXPECT_EQ(names["process_name"], (std::multiset<std::string>{shown, "CPU:0"}));
  EXPECT_EQ(names["thread_name"], (std::multiset<std::string>{"programs", "meetings", "programs"}));
  EXPECT_EQ(events("X").at(0)["name"], shown);
}

TEST_F(TraceTest, ManyThreads_LoseNothing) {
  const auto trace = open();
  constexpr int kThreads = 4, kSpans = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&trace, t] {
      const TraceTrack track = trace->track("all", std::to_string(t));
      for (int i = 0; i < kSpans; ++i) trace->span(track, "work", i, i + 1, {{"i", i}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(trace->close().ok());
  std::map<uint64_t, int> seen;
  for (const auto& event : events("X")) EXPECT_EQ(event["args"]["i"], seen[event["tid"]]++);
  EXPECT_EQ(seen.size(), static_cast<size_t>(kThreads));
  for (const auto& [track, count] : seen) EXPECT_EQ(count, kSpans) << track;
}

TEST_F(TraceTest, MoreThanTheBufferHolds_IsDroppedAndCounted) {
  const auto trace = open({.buffer_bytes = 1});  // less than a line: only names of tracks pass
  const TraceTrack track = trace->track("a", "b");
  for (int i = 0; i < 5; ++i) trace->span(track, "x", i, i, {});
  EXPECT_EQ(trace->dropped(), 5u);
  ASSERT_TRUE(trace->close().ok());
  EXPECT_TRUE(events("X").empty());
  EXPECT_EQ(events("M").size(), 4u);
  EXPECT_EQ(json()["otherData"]["dropped_events"], 5);
}

TEST_F(TraceTest, Closed_IsWholeAndTakesNoMore) {
  const auto trace = open();
  ASSERT_TRUE(trace->close().ok());
  const std::string before = text();
  EXPECT_TRUE(json()["traceEvents"].empty());
  trace->span(trace->track("a", "b"), "x", 0, 1, {});
  ASSERT_TRUE(trace->close().ok());
  EXPECT_EQ(text(), before);
}

TEST_F(TraceTest, FileThatCannotBeWritten_IsRefusedByName) {
  const auto trace = Trace::open(path() + "/below");
  EXPECT_EQ(trace.error().code(), MOTLEY_PERMISSION_DENIED);
  EXPECT_NE(trace.error().message().find("trace.json/below"), std::string::npos) << trace.error().message();
}

TEST_F(TraceTest, FullDisk_IsTheStatusOfClose) {
  auto trace = Trace::open("/dev/full");
  ASSERT_TRUE(trace.ok()) << trace.error().message();
  const Status closed = (*trace)->close();
  EXPECT_EQ(closed.code(), MOTLEY_RESOURCE_EXHAUSTED);
  EXPECT_NE(closed.message().find("/dev/full"), std::string::npos) << closed.message();
}

}  // namespace
}  // namespace motley
