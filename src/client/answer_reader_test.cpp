#include "client/answer_reader.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace motley::client {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Piece {
  double at_s;
  std::string bytes;
};

std::string event(std::string_view json) { return "data: " + std::string(json) + "\n\n"; }

// The record of a stream that was asked for after one second and comes in these pieces.
RequestRecord read(ApiKind kind, const std::vector<Piece>& pieces, const Status& transport = ok_status()) {
  RequestRecord record;
  record.start_s = 1;
  AnswerReader reader(kind, record);
  reader.on_head(200, "OK");
  for (const Piece& piece : pieces) {
    if (!reader.on_body(piece.bytes, piece.at_s)) break;
  }
  reader.on_end(transport);
  return record;
}

constexpr std::string_view kFinish = R"({"choices":[{"text":"","finish_reason":"length"}]})";
const std::string kDone = "data: [DONE]\n\n";

TEST(AnswerReader, Completion_IsTimedByItsChunks) {
  const RequestRecord record = read(
      ApiKind::kCompletion,
      {{1.5, event(R"({"choices":[{"text":"a"}],"usage":null})")},
       {1.75, event(R"({"choices":[{"text":""}]})")},
       {2.0, event(R"({"choices":[{"text":"b"}]})") + event(R"({"choices":[{"text":"c","finish_reason":"length"}]})")},
       {9.0, event(R"({"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}})") + kDone}});
  EXPECT_TRUE(record.success) << record.error;
  EXPECT_DOUBLE_EQ(record.ttft_s, 0.5);
  EXPECT_THAT(record.itl_s, ElementsAre(DoubleEq(0.25), DoubleEq(0.25), DoubleEq(0)));
  EXPECT_DOUBLE_EQ(record.latency_s, 1.0);  // the usage is no token
  EXPECT_EQ(record.text, "abc");
  EXPECT_TRUE(record.server_counted);
  EXPECT_EQ(record.prompt_tokens, 5u);
  EXPECT_EQ(record.output_tokens, 7u);
}

TEST(AnswerReader, Chat_BeginsWithItsFirstTokenNotWithItsRole) {
  const RequestRecord record =
      read(ApiKind::kChat, {{1.25, event(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})")},
                            {1.5, event(R"({"choices":[{"delta":{"reasoning_content":"hm"}}]})")},
                            {2.0, event(R"({"choices":[{"delta":{"content":"ja"},"finish_reason":null}]})")},
                            {2.25, event(R"({"choices":[{"delta":{},"finish_reason":"stop"}]})") + kDone}});
  EXPECT_TRUE(record.success) << record.error;
  EXPECT_DOUBLE_EQ(record.ttft_s, 0.5);
  EXPECT_THAT(record.itl_s, ElementsAre(DoubleEq(0.5), DoubleEq(0.25)));
  EXPECT_EQ(record.text, "hmja");
}

TEST(AnswerReader, Chat_RoleTogetherWithAToken_IsAToken) {
  const RequestRecord record =
      read(ApiKind::kChat, {{1.25, event(R"({"choices":[{"delta":{"role":"assistant","content":"a"}}]})")},
                            {1.5, event(R"({"choices":[{"delta":{"content":"b"},"finish_reason":"length"}]})")}});
  EXPECT_DOUBLE_EQ(record.ttft_s, 0.25);
  EXPECT_EQ(record.output_tokens, 2u);
}

TEST(AnswerReader, WithoutUsage_ChunksAreCounted) {
  const RequestRecord record = read(
      ApiKind::kCompletion,
      {{2, event(R"({"choices":[{"text":"a"}]})")}, {3, event(R"({"choices":[{"text":""}]})")}, {4, event(kFinish)}});
  EXPECT_TRUE(record.success) << record.error;  // a finish_reason will do where [DONE] is not said
  EXPECT_FALSE(record.server_counted);
  EXPECT_EQ(record.output_tokens, 2u);  // the last one ends the answer and says nothing
}

TEST(AnswerReader, StreamsThatAreNoAnswer_FailAndSayWhy) {
  const struct {
    std::string bytes, says;
  } cases[] = {
      {event("{\"choices\":[{\"te"), "no JSON object: '{"},
      {event("[]"), "no JSON object"},
      {event("null"), "no JSON object"},
      {event(R"({"choices":{}})"), "choices of an event is no array"},
      {event(R"({"error":{"message":"out of KV blocks","code":500}})"), "error in the stream: out of KV blocks"},
      {event(R"({"error":"too bad"})"), "error in the stream: too bad"},
      {event(R"({"choices":[{"text":"a"}]})"), "after chunk 1 without [DONE]"},
      {kDone, "no event with a choice"},
      {event(R"({"choices":[],"usage":{"completion_tokens":3}})") + kDone, "no event with a choice"},
      {"{\"choices\":[{\"text\":\"a stream was not asked for\"}]}", "no event with a choice"},
      {"", "no event with a choice"},
  };
  for (const auto& [bytes, says] : cases) {
    const RequestRecord record = read(ApiKind::kCompletion, {{2, bytes}});
    EXPECT_FALSE(record.success) << bytes;
    EXPECT_THAT(record.error, HasSubstr(says));
    EXPECT_EQ(record.error.find('\n'), std::string::npos);
  }
}

TEST(AnswerReader, ValuesOfOtherTypes_AreNotTaken) {
  const RequestRecord record =
      read(ApiKind::kCompletion,
           {{2, event(R"({"choices":[{"text":7}],"usage":{"completion_tokens":-1,"prompt_tokens":"x"}})") +
                    event(R"({"choices":[3],"usage":[]})") + event(R"({"choices":[null]})") + event("{}") + kDone}});
  EXPECT_TRUE(record.success) << record.error;
  EXPECT_FALSE(record.server_counted);
  EXPECT_EQ(record.prompt_tokens, 0u);
  EXPECT_EQ(record.text, "");
}

TEST(AnswerReader, ConnectionThatEndsInMidStream_IsAFailure) {
  const Status lost = error(MOTLEY_UNAVAILABLE, "Connection reset by peer");
  const RequestRecord record = read(ApiKind::kCompletion, {{2, event(R"({"choices":[{"text":"a"}]})")}}, lost);
  EXPECT_FALSE(record.success);
  EXPECT_EQ(record.error, "in mid-stream, after chunk 1: Connection reset by peer");
  EXPECT_EQ(read(ApiKind::kCompletion, {}, lost).error, "Connection reset by peer");
}

TEST(AnswerReader, HttpErrors_SayTheServersMessage) {
  const struct {
    std::string body, says;
  } cases[] = {
      {R"({"error":{"message":"the model x does not exist"}})", "HTTP 404 Not Found: the model x does not exist"},
      {R"({"object":"error","message":"no such model"})", "HTTP 404 Not Found: no such model"},
      {"<html>\r\nnot here</html>", "HTTP 404 Not Found: <html>  not here</html>"},
      {"", "HTTP 404 Not Found"}};
  for (const auto& [body, says] : cases) {
    RequestRecord record;
    AnswerReader reader(ApiKind::kCompletion, record);
    reader.on_head(404, "Not Found");
    for (const char c : body) EXPECT_TRUE(reader.on_body({&c, 1}, 0));
    reader.on_end(ok_status());
    EXPECT_FALSE(record.success);
    EXPECT_EQ(record.error, says);
  }
}

TEST(AnswerReader, EndlessErrorBody_IsNotReadToItsEnd) {
  RequestRecord record;
  AnswerReader reader(ApiKind::kCompletion, record);
  reader.on_head(500, "Internal Server Error");
  size_t pieces = 0;
  while (reader.on_body(std::string(4096, 'x'), 0) && pieces < 100) ++pieces;
  EXPECT_LT(pieces, kErrorBodyBytesMax / 4096);
  reader.on_end(error(MOTLEY_CANCELLED, "the rest was not wanted"));
  EXPECT_THAT(record.error, HasSubstr("HTTP 500 Internal Server Error: xxx"));
}

}  // namespace
}  // namespace motley::client
