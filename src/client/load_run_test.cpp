// Runs against Motley's own server over a scripted engine, and against one that misbehaves.
#include "client/load_run.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "client/metrics.hpp"
#include "client/testing/puppet_server.hpp"
#include "client/vocabulary.hpp"
#include "server/testing/stack.hpp"

namespace motley::client {
namespace {

using motley::testing::puppet_chunk;
using motley::testing::puppet_reply;
using motley::testing::puppet_stream_head;
using motley::testing::PuppetAnswer;
using motley::testing::PuppetServer;
using motley::testing::Stack;
using ::testing::HasSubstr;

std::unique_ptr<HttpClient> client_of(uint16_t port) {
  auto client = HttpClient::create({"127.0.0.1", port, ""}, {});
  EXPECT_TRUE(client.ok()) << client.error().message();
  return *std::move(client);
}

LoadOptions options_for(ApiKind kind) {
  LoadOptions options;
  options.kind = kind;
  options.target = kind == ApiKind::kChat ? "/v1/chat/completions" : "/v1/completions";
  options.model = "m";
  options.ignore_eos = true;
  options.extra["temperature"] = 0;
  return options;
}

std::vector<Prompt> prompts_of(size_t count, std::string text, uint32_t output_tokens) {
  return std::vector<Prompt>(count, Prompt{{}, std::move(text), 0, output_tokens});
}

TEST(LoadRun, EveryRequest_IsAnsweredInFull) {
  Stack stack;
  const auto client = client_of(stack.server().port());
  for (const ApiKind kind : {ApiKind::kCompletion, ApiKind::kChat}) {
    const auto prompts = prompts_of(40, "abc", 5);
    const auto result = run_load(*client, options_for(kind), prompts, std::vector<double>(40, 0.0));
    ASSERT_EQ(result.records.size(), 40u);
    for (const RequestRecord& record : result.records) {
      ASSERT_TRUE(record.success) << record.error;
      EXPECT_TRUE(record.server_counted);
      EXPECT_EQ(record.output_tokens, 5u);
      EXPECT_GE(record.prompt_tokens, 3u);
      EXPECT_EQ(record.text.size(), 5u);
      EXPECT_GE(record.ttft_s, 0);
      EXPECT_GE(record.latency_s, record.ttft_s);
      EXPECT_LE(record.start_s + record.latency_s, result.duration_s);
    }
  }
}

TEST(LoadRun, TokenIds_AreSentAsTheyAre) {
  Stack stack;
  const auto client = client_of(stack.server().port());
  const std::vector<Prompt> prompts = {{{'x', 'y'}, "", 2, 3}};
  const auto result = run_load(*client, options_for(ApiKind::kCompletion), prompts, std::vector<double>{0});
  ASSERT_TRUE(result.records[0].success) << result.records[0].error;
  EXPECT_EQ(result.records[0].text, "zab");
  EXPECT_EQ(result.records[0].prompt_tokens, 2u);
}

TEST(LoadRun, MaxConcurrency_IsKeptAndOthersWait) {
  Stack stack;
  const auto client = client_of(stack.server().port());
  LoadOptions options = options_for(ApiKind::kCompletion);
  options.max_concurrency = 3;
  std::vector<uint32_t> seen;
  options.on_progress = [&](uint32_t completed, uint32_t failed) { seen.push_back(completed + failed); };
  const auto prompts = prompts_of(20, "abc", 5);
  const auto result = run_load(*client, options, prompts, std::vector<double>(20, 0.0));
  const Metrics metrics = measure(result.records, result.duration_s, {});
  EXPECT_EQ(metrics.completed, 20u);
  EXPECT_LE(metrics.max_concurrent_requests, 3u);
  EXPECT_GT(result.records.back().client_queue_s, result.records.front().client_queue_s);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), 20u);
}

TEST(LoadRun, Arrivals_AreNotBeforeTheirTime) {
  Stack stack;
  const auto client = client_of(stack.server().port());
  const std::vector<double> arrivals_s = {0.0, 0.02, 0.02, 0.05};
  const auto result = run_load(*client, options_for(ApiKind::kCompletion), prompts_of(4, "abc", 2), arrivals_s);
  for (size_t i = 0; i < arrivals_s.size(); ++i) {
    EXPECT_TRUE(result.records[i].success) << result.records[i].error;
    EXPECT_GE(result.records[i].start_s, arrivals_s[i]);
  }
}

TEST(LoadRun, RefusedRequests_AreFailures) {
  Stack stack;
  const auto client = client_of(stack.server().port());
  LoadOptions options = options_for(ApiKind::kCompletion);
  options.model = "other";
  auto result = run_load(*client, options, prompts_of(3, "abc", 2), std::vector<double>(3, 0.0));
  for (const RequestRecord& record : result.records) {
    EXPECT_FALSE(record.success);
    EXPECT_THAT(record.error, HasSubstr("HTTP 404 Not Found: "));
  }
  stack.stop_server();
  result = run_load(*client, options, prompts_of(3, "abc", 2), std::vector<double>(3, 0.0));
  for (const RequestRecord& record : result.records) EXPECT_THAT(record.error, HasSubstr("Connection refused"));
}

TEST(LoadRun, MisbehavingServer_FailsItsRequestsAndNoOthers) {
  const std::string token = puppet_chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
  const std::string end = puppet_chunk("data: [DONE]\n\n") + "0\r\n\r\n";
  PuppetServer server({{puppet_stream_head() + token + token + end},
                       {puppet_stream_head() + token, PuppetAnswer::kClose},
                       {puppet_stream_head() + token + puppet_chunk("data: {oops\n\n") + end, PuppetAnswer::kClose},
                       {puppet_reply("200 OK", "{}")},
                       {puppet_stream_head() + token + end}});
  const auto client = client_of(server.port());
  LoadOptions options = options_for(ApiKind::kCompletion);
  options.max_concurrency = 1;  // the puppet serves one at a time
  const auto result = run_load(*client, options, prompts_of(5, "abc", 2), std::vector<double>(5, 0.0));
  EXPECT_TRUE(result.records[0].success) << result.records[0].error;
  EXPECT_EQ(result.records[0].output_tokens, 2u);
  EXPECT_EQ(result.records[1].error,
            "in mid-stream, after chunk 1: the server closed the connection before its answer was whole");
  EXPECT_EQ(result.records[2].error, "an event of the stream is no JSON object: '{oops'");
  EXPECT_EQ(result.records[3].error, "the answer holds no event with a choice");
  EXPECT_TRUE(result.records[4].success) << result.records[4].error;
}

TEST(RequestBody, Fields_AreTheApisAndTheUsersWin) {
  LoadOptions options = options_for(ApiKind::kCompletion);
  options.extra = {{"top_k", 3}, {"max_tokens", 9}};
  EXPECT_EQ(request_body(options, {{5, 6}, "", 2, 4}),
            R"({"model":"m","prompt":[5,6],"max_tokens":9,"stream":true,"stream_options":{"include_usage":true},)"
            R"("ignore_eos":true,"top_k":3})");
  options = options_for(ApiKind::kChat);
  options.ignore_eos = false;
  EXPECT_EQ(request_body(options, {{}, "hi", 1, 4}),
            R"({"model":"m","messages":[{"role":"user","content":"hi"}],"max_completion_tokens":4,"max_tokens":4,)"
            R"("stream":true,"stream_options":{"include_usage":true},"temperature":0})");
}

TEST(ServerVocabulary, MotleysRoutes_GiveTokensAndText) {
  Stack stack;
  const auto client = client_of(stack.server().port());
  const auto vocabulary = server_vocabulary(*client, "m");
  EXPECT_EQ(*vocabulary->encode("ab"), (std::vector<TokenId>{'a', 'b'}));
  EXPECT_EQ(*vocabulary->decode(std::vector<TokenId>{'a', 'b'}), "ab");
  const auto tokens = vocabulary->plain_tokens();
  ASSERT_TRUE(tokens.ok()) << tokens.error().message();
  EXPECT_TRUE(std::is_sorted(tokens->begin(), tokens->end()));
  EXPECT_GE(tokens->size(), 26u + 26 + 10);
}

TEST(ServerVocabulary, LlamaServersAnswers_AreUnderstood) {
  PuppetServer server(
      {{puppet_reply("200 OK", R"({"tokens":[5,6]})")}, {puppet_reply("200 OK", R"({"content":"ab"})")}});
  const auto client = client_of(server.port());
  const auto vocabulary = server_vocabulary(*client, "m");
  EXPECT_EQ(*vocabulary->encode("ab"), (std::vector<TokenId>{5, 6}));
  EXPECT_EQ(*vocabulary->decode(std::vector<TokenId>{5, 6}), "ab");
  EXPECT_THAT(server.requests()[0], HasSubstr(R"("content":"ab")"));
}

TEST(ServerVocabulary, OtherAnswers_AreRefusedWithTheRemedy) {
  for (const char* body : {"", "[]", "{}", R"({"tokens":7})", R"({"tokens":["a"]})", R"({"tokens":[-1]})",
                           R"({"tokens":[2147483648]})", R"({"tokens":[1.5]})"}) {
    PuppetServer server({{puppet_reply("200 OK", body)}});
    const auto client = client_of(server.port());
    EXPECT_THAT(server_vocabulary(*client, "m")->encode("a").error().message(),
                HasSubstr("give the model's tokenizer"));
  }
  PuppetServer server({{puppet_reply("404 Not Found", "")},
                       {puppet_reply("200 OK", "{}")},
                       {puppet_reply("200 OK", R"({"tokens":[]})")}});
  const auto client = client_of(server.port());
  const auto vocabulary = server_vocabulary(*client, "m");
  EXPECT_THAT(vocabulary->encode("a").error().message(), HasSubstr("/tokenize: HTTP 404 Not Found; give"));
  EXPECT_THAT(vocabulary->decode({}).error().message(), HasSubstr("/detokenize: the answer has neither"));
  EXPECT_THAT(vocabulary->plain_tokens().error().message(), HasSubstr("no tokens"));
}

}  // namespace
}  // namespace motley::client
