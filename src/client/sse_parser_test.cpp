#include "client/sse_parser.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace motley::client {
namespace {

using Events = std::vector<std::string>;

// The events of a stream that comes in these pieces.
Events events_of(const std::vector<std::string_view>& pieces) {
  SseParser parser;
  Events events;
  for (const std::string_view piece : pieces) {
    const Status read = parser.feed(piece, [&](std::string_view data) {
      events.emplace_back(data);
      return true;
    });
    EXPECT_TRUE(read.ok()) << read.message();
  }
  return events;
}

constexpr std::string_view kStream =
    "\xEF\xBB\xBF"
    "data: {\"a\":1}\n\n"
    ": a comment\r\n\r\n"
    "event: message\r\ndata: two\r\ndata:lines\r\nid: 7\r\n\r\n"
    "data\r\r"
    "data:  spaced \n\n"
    "retry: 5\n\n"
    "data: h\xC3\xA9\n\n"
    "data: [DONE]\n\n"
    "data: cut off\n";
const Events kEvents = {"{\"a\":1}", "two\nlines", "", " spaced ", "h\xC3\xA9", "[DONE]"};

TEST(SseParser, WholeStream_GivesTheDataOfItsEvents) { EXPECT_EQ(events_of({kStream}), kEvents); }

TEST(SseParser, AnyTwoBorders_ChangeNothing) {
  for (size_t first = 0; first <= kStream.size(); ++first) {
    for (size_t second = first; second <= kStream.size(); ++second) {
      EXPECT_EQ(events_of({kStream.substr(0, first), kStream.substr(first, second - first), kStream.substr(second)}),
                kEvents)
          << first << " " << second;
    }
  }
}

TEST(SseParser, SingleBytes_ChangeNothing) {
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < kStream.size(); ++i) bytes.push_back(kStream.substr(i, 1));
  EXPECT_EQ(events_of(bytes), kEvents);
}

TEST(SseParser, TakerThatHasEnough_GetsNothingMore) {
  SseParser parser;
  Events events;
  const Status read = parser.feed("data: a\n\ndata: b\n\n", [&](std::string_view data) {
    events.emplace_back(data);
    return false;
  });
  EXPECT_TRUE(read.ok());
  EXPECT_EQ(events, Events{"a"});
}

TEST(SseParser, EndlessEvent_IsRefused) {
  for (const std::string piece : {"data: " + std::string(1 << 20, 'x'), "data: " + std::string(1 << 20, 'x') + "\n"}) {
    SseParser parser;
    Status read;
    size_t fed = 0;
    while (read.ok() && fed < 4 * kEventBytesMax) {
      read = parser.feed(piece, [](std::string_view) { return true; });
      fed += piece.size();
    }
    EXPECT_EQ(read.code(), MOTLEY_RESOURCE_EXHAUSTED);
    EXPECT_LE(fed, kEventBytesMax + 2 * piece.size());
  }
}

}  // namespace
}  // namespace motley::client
