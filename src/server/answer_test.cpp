#include "server/answer.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "server/http.hpp"
#include "server/metrics.hpp"
#include "server/testing/byte_tokenizer.hpp"

namespace motley {
namespace {

const AnswerHead kCompletionHead{CallKind::kCompletion, "cmpl-1", "m", 1700000000};
const AnswerHead kChatHead{CallKind::kChat, "chatcmpl-1", "m", 1700000000};

ChoicePart ended(std::string text) {
  ChoicePart part;
  part.text = std::move(text);
  part.finish_reason = "stop";
  return part;
}

TEST(Answer, Completion_HasOpenAisShape) {
  EXPECT_EQ(
      full_answer(kCompletionHead, {ended("hé")}, {3, 2, 1}),
      R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m",)"
      R"("choices":[{"index":0,"text":"hé","logprobs":null,"finish_reason":"stop","stop_reason":null}],)"
      R"("usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}},)"
      R"("system_fingerprint":null})");
}

TEST(Answer, Chat_HasOpenAisShape) {
  EXPECT_EQ(
      full_answer(kChatHead, {ended("a")}, {3, 2, 0}),
      R"({"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m",)"
      R"("choices":[{"index":0,"message":{"role":"assistant","content":"a","refusal":null},"logprobs":null,)"
      R"("finish_reason":"stop","stop_reason":null}],)"
      R"("usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0}},)"
      R"("system_fingerprint":null})");
}

TEST(Answer, StreamEvents_HaveOpenAisShape) {
  ChoicePart part;
  part.text = "a";
  part.first = true;
  EXPECT_EQ(
      stream_event(kChatHead, &part, {}),
      "data: "
      R"({"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",)"
      R"("choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"logprobs":null,"finish_reason":null}]})"
      "\n\n");
  part.first = false;
  EXPECT_EQ(stream_event(kCompletionHead, &part, {true}),
            "data: "
            R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m",)"
            R"("choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}],"usage":null})"
            "\n\n");
  EXPECT_EQ(
      stream_event(kCompletionHead, nullptr, {true, Usage{1, 2, 0}}),
      "data: "
      R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m","choices":[],)"
      R"("usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}})"
      "\n\n");
}

TEST(Logprobs, Chat_CarriesBytesAndTop) {
  const testing::ByteTokenizer tokenizer;
  LogprobsBuilder builder(CallKind::kChat, 2);
  builder.add({'a', -0.5f, {{'a', -0.5f}, {0xC3, -INFINITY}}}, tokenizer);
  EXPECT_EQ(dump(builder.take()),
            R"({"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[)"
            R"({"token":"a","logprob":-0.5,"bytes":[97]},{"token":"bytes:\\xc3","logprob":-9999.0,"bytes":[195]}]}]})");
  EXPECT_TRUE(builder.take().is_null());
}

TEST(Logprobs, Completion_CountsOffsetsInCharacters) {
  const testing::ByteTokenizer tokenizer;
  LogprobsBuilder builder(CallKind::kCompletion, 1);
  builder.add({0xC3, -1.0f, {{'x', -0.25f}}}, tokenizer);
  builder.add({0xA9, -1.0f, {{0xA9, -1.0f}}}, tokenizer);
  builder.add({'z', -1.0f, {{'z', -1.0f}}}, tokenizer);
  EXPECT_EQ(dump(builder.take()),
            R"({"text_offset":[0,1,1],"token_logprobs":[-1.0,-1.0,-1.0],"tokens":["bytes:\\xc3","bytes:\\xa9","z"],)"
            R"("top_logprobs":[{"bytes:\\xc3":-1.0,"x":-0.25},{"bytes:\\xa9":-1.0},{"z":-1.0}]})");
}

TEST(Logprobs, NotAskedFor_AreNull) {
  const testing::ByteTokenizer tokenizer;
  LogprobsBuilder builder(CallKind::kChat, -1);
  builder.add({'a', -0.5f, {}}, tokenizer);
  EXPECT_TRUE(builder.take().is_null());
}

TEST(Http, Answers_CarryLengthAndConnection) {
  EXPECT_EQ(
      serialize({200, "text/plain", "abc", {{"Allow", "GET"}}}, {1, false, false}),
      "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nAllow: GET\r\nConnection: close\r\n\r\nabc");
  EXPECT_EQ(serialize({200, "text/plain", "abc"}, {0, true, true}),
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(stream_frame("0123456789abcdef", {1}), "10\r\n0123456789abcdef\r\n");
  EXPECT_EQ(stream_frame("x", {0}), "x");
}

TEST(Http, Targets_GivePaths) {
  std::string path;
  ASSERT_TRUE(path_of_target("/v1/models/a%2Fb?x=1", path));
  EXPECT_EQ(path, "/v1/models/a/b");
  ASSERT_TRUE(path_of_target("http://host:1/health", path));
  EXPECT_EQ(path, "/health");
  ASSERT_TRUE(path_of_target("http://host", path));
  EXPECT_EQ(path, "/");
  EXPECT_FALSE(path_of_target("/%4", path));
  EXPECT_FALSE(path_of_target("/%zz", path));
}

TEST(Metrics, Page_HasVllmsNames) {
  EngineStats stats;
  stats.running = 2;
  stats.kv_blocks_total = 4;
  stats.pools = {{.blocks_total = 1, .blocks_used = 1}, {.blocks_total = 3, .blocks_used = 0}};
  stats.lanes = {{.steps = 7, .rows = 90}};
  stats.kv_blocks_used = 1;
  stats.finished_stop = 2;
  stats.finished_abort = 1;
  stats.ttft_s = Histogram({0.5, 1});
  stats.ttft_s.observe(0.25);
  stats.ttft_s.observe(7);
  stats.recoveries = 3;
  stats.pause_s = Histogram({0.5});
  stats.pause_s.observe(0.25);
  const ServerCounters counters(100);
  const std::string page = metrics_page({stats, counters, "a\"b", {{"block_size", "16"}}});
  for (const char* line :
       {"vllm:num_requests_running{engine=\"0\",model_name=\"a\\\"b\"} 2\n",
        "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a\\\"b\"} 0.25\n",
        "# TYPE vllm:prompt_tokens_total counter\n",
        "vllm:request_success_total{engine=\"0\",model_name=\"a\\\"b\",finished_reason=\"stop\"} 2\n",
        "vllm:request_success_total{engine=\"0\",model_name=\"a\\\"b\",finished_reason=\"abort\"} 1\n",
        "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"0.5\"} 1\n",
        "vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"+Inf\"} 2\n",
        "vllm:time_to_first_token_seconds_sum{engine=\"0\",model_name=\"a\\\"b\"} 7.25\n",
        "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"a\\\"b\"} 2\n",
        "vllm:cache_config_info{engine=\"0\",model_name=\"a\\\"b\",block_size=\"16\"} 1\n",
        "# TYPE motley:recoveries_total counter\n", "motley:recoveries_total{engine=\"0\",model_name=\"a\\\"b\"} 3\n",
        "motley:replacements_total{engine=\"0\",model_name=\"a\\\"b\"} 0\n",
        "motley:replacement_pause_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"0.5\"} 1\n",
        "motley:kv_blocks{engine=\"0\",model_name=\"a\\\"b\",pool=\"1\"} 3\n",
        "motley:kv_blocks_used{engine=\"0\",model_name=\"a\\\"b\",pool=\"0\"} 1\n",
        "# TYPE motley:lane_rows_total counter\n",
        "motley:lane_steps_total{engine=\"0\",model_name=\"a\\\"b\",lane=\"0\"} 7\n",
        "motley:lane_rows_total{engine=\"0\",model_name=\"a\\\"b\",lane=\"0\"} 90\n"}) {
    EXPECT_NE(page.find(line), std::string::npos) << line << page;
  }
}

}  // namespace
}  // namespace motley
