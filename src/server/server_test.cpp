// The server against clients that misbehave, leave, hurry, crowd in, or come while it stops.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

#include "base/limits.hpp"
#include "server/testing/stack.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;
using testing::http_request;
using testing::HttpClient;
using testing::HttpReply;
using testing::Stack;
using testing::StackOptions;

constexpr std::string_view kSmallCall = R"({"prompt":"x","max_tokens":2})";

std::string code_of(const HttpReply& reply) {
  const Json body = Json::parse(reply.body, nullptr, false);
  if (!body.contains("error")) return "no error object: " + reply.body;
  for (const char* member : {"message", "type", "param", "code"}) {
    if (!body["error"].contains(member)) return std::string("no ") + member;
  }
  return body["error"]["code"].is_string() ? body["error"]["code"].get<std::string>() : "";
}

TEST(Refusals, RoutesAndMethods_GetTheirStatus) {
  const Stack stack;
  EXPECT_EQ(code_of(stack.get("/nowhere")), "route_not_found");
  EXPECT_EQ(stack.get("/nowhere").status, 404);
  const HttpReply reply = stack.get("/v1/completions");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at("allow"), "POST, OPTIONS");
  EXPECT_EQ(stack.client().call("BREW", "/health").status, 405);
  EXPECT_EQ(stack.get("/%zz").status, 400);
  EXPECT_EQ(stack.client().call("OPTIONS", "/v1/models").status, 204);
  const HttpReply head = stack.client().call("HEAD", "/version");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), "19");
}

TEST(Refusals, Calls_GetTheirStatus) {
  const Stack stack;
  EXPECT_EQ(code_of(stack.post("/v1/completions", R"({"model":"gpt-4","prompt":"x"})")), "model_not_found");
  EXPECT_EQ(stack.post("/v1/completions", R"({"model":"gpt-4","prompt":"x"})").status, 404);
  const std::string bad[] = {"",
                             "{",
                             "[]",
                             "{\"prompt\":\"\xff\"}",
                             R"({"prompt":""})",
                             R"({"prompt":"x","n":1.5})",
                             "{\"a\":" + std::string(100'000, '[')};
  for (const std::string& body : bad) {
    const HttpReply reply = stack.post("/v1/completions", body);
    EXPECT_EQ(reply.status, 400) << body.substr(0, 40);
    EXPECT_EQ(code_of(reply), "");
  }
}

TEST(Refusals, PromptBeyondTheContext_Gets400) {
  const Stack stack;
  for (const size_t length : {size_t{512}, size_t{5000}, size_t{2} << 20}) {
    const HttpReply reply = stack.post("/v1/completions", R"({"prompt":")" + std::string(length, 'x') + R"("})");
    EXPECT_EQ(reply.status, 400);
    EXPECT_EQ(code_of(reply), "context_length_exceeded");
  }
  const HttpReply sum =
      stack.post("/v1/completions", R"({"prompt":")" + std::string(500, 'x') + R"(","max_tokens":100})");
  EXPECT_EQ(code_of(sum), "context_length_exceeded");
  EXPECT_EQ(stack.post("/v1/completions", R"({"prompt":")" + std::string(511, 'x') + R"("})").status, 200);
}

TEST(Refusals, ApiKeys_GuardWorkAlone) {
  StackOptions options;
  options.server.api_keys = {"secret", "other"};
  const Stack stack(options);
  EXPECT_EQ(stack.get("/v1/models").status, 401);
  EXPECT_EQ(code_of(stack.post("/v1/completions", kSmallCall)), "invalid_api_key");
  EXPECT_EQ(stack.post("/v1/completions", kSmallCall, "Authorization: Bearer secre\r\n").status, 401);
  EXPECT_EQ(stack.post("/v1/completions", kSmallCall, "Authorization: secret\r\n").status, 401);
  EXPECT_EQ(stack.post("/tokenize", R"({"prompt":"x"})").status, 401);
  EXPECT_EQ(stack.post("/v1/completions", kSmallCall, "Authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(stack.post("/v1/completions", kSmallCall, "authorization: bearer other\r\n").status, 200);
  for (const char* open : {"/health", "/ping", "/version", "/metrics", "/load"}) EXPECT_EQ(stack.get(open).status, 200);
}

TEST(Limits, LargeBodies_Get413) {
  StackOptions options;
  options.server.body_bytes_max = 100'000;
  const Stack stack(options);
  HttpClient announced = stack.client();
  announced.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 100001\r\n\r\n");
  EXPECT_EQ(announced.read_reply().status, 413);
  HttpClient chunked = stack.client();
  chunked.send("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "8000\r\n" + std::string(0x8000, ' ') + "\r\n";
  for (int i = 0; i < 4; ++i) chunked.send(chunk);
  EXPECT_EQ(code_of(chunked.read_reply()), "body_too_large");
}

TEST(Limits, ABodyOf32MiB_IsTakenAndNotMore) {
  const Stack stack;
  std::string body = R"({"prompt":"x","max_tokens":1})";
  body.resize(limits::kRequestBodyBytesMax, ' ');
  EXPECT_EQ(stack.post("/v1/completions", body).status, 200);
  EXPECT_EQ(stack.post("/v1/completions", body + " ").status, 413);
}

TEST(Limits, BodiesTogether_AreBounded) {
  StackOptions options;
  options.server.body_bytes_in_flight_max = 50'000;
  const Stack stack(options);
  EXPECT_EQ(stack.post("/v1/completions", std::string(60'000, ' ')).status, 503);
  EXPECT_EQ(stack.post("/v1/completions", std::string(40'000, ' ') + std::string(kSmallCall)).status, 200);
  EXPECT_EQ(stack.post("/v1/completions", std::string(40'000, ' ') + std::string(kSmallCall)).status, 200);
}

TEST(Limits, LargestUnfinishedBody_GivesWayToSmallOnes) {
  StackOptions options;
  options.server.body_bytes_in_flight_max = 50'000;
  Stack stack(options);
  HttpClient smaller = stack.client(), larger = stack.client();
  const std::string header = "POST /v1/completions HTTP/1.1\r\nContent-Length: 40000\r\n\r\n";
  smaller.send(header + std::string(20'000, ' '));
  larger.send(header + std::string(28'000, ' '));
  ASSERT_TRUE(stack.reach([&] { return stack.server().body_bytes_in_flight() == 48'000; }));
  EXPECT_EQ(stack.post("/v1/completions", std::string(10'000, ' ') + std::string(kSmallCall)).status, 200);
  EXPECT_EQ(larger.read_reply().status, 503);
  smaller.send(std::string(20'000 - kSmallCall.size(), ' ') + std::string(kSmallCall));
  EXPECT_EQ(smaller.read_reply().status, 200);
}

TEST(Limits, BodiesOfRoutesThatReadNone_AreSmall) {
  const Stack stack;
  EXPECT_EQ(stack.post("/ping", std::string(4096, ' ')).status, 200);
  EXPECT_EQ(stack.post("/ping", std::string(4097, ' ')).status, 413);
  EXPECT_EQ(stack.post("/tokenize", std::string((8u << 20) + 1, ' ')).status, 413);
}

size_t address_space_bytes() {
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  file >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

TEST(Limits, AnnouncedBodies_AreNotAllocated) {
  const Stack stack;
  std::vector<HttpClient> crowd;
  const size_t before = address_space_bytes();
  for (int i = 0; i < 64; ++i) {
    crowd.emplace_back(stack.client());
    crowd.back().send("POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 33554432\r\n\r\n");
    ASSERT_EQ(crowd.back().read_reply().status, 100);
    crowd.back().send("{");
  }
  EXPECT_EQ(stack.get("/health").status, 200);
  EXPECT_LT(address_space_bytes(), before + (1u << 30));
}

TEST(Limits, TextCalls_AreBounded) {
  const Stack stack;
  const std::string text(1u << 20, 'x');
  EXPECT_EQ(stack.post("/tokenize", R"({"prompt":")" + text + R"("})").status, 200);
  EXPECT_EQ(stack.post("/tokenize", R"({"prompt":"x)" + text + R"("})").status, 400);
  EXPECT_EQ(stack.post("/tokenize", R"({"messages":[{"role":"user","content":")" + text + R"("}]})").status, 400);
}

TEST(Limits, LargeHeaders_Get431) {
  const Stack stack;
  HttpClient many = stack.client();
  std::string lines;
  for (int i = 0; i < 5000; ++i) lines += "a: b\r\n";
  many.send("GET /health HTTP/1.1\r\n" + lines + "\r\n");
  EXPECT_EQ(many.read_reply().status, 431);
  HttpClient client = stack.client();
  client.send("GET /health HTTP/1.1\r\nX: " + std::string(20'000, 'a') + "\r\n\r\n");
  EXPECT_EQ(client.read_reply().status, 431);
  EXPECT_EQ(stack.client().call("GET", "/" + std::string(20'000, 'a')).status, 431);
}

TEST(Limits, Garbage_Gets400) {
  const Stack stack;
  for (const std::string_view bytes :
       {"\x16\x03\x01\x02\x01\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /ping HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nGET /version HTTP/1.1\r\n\r\n",
        "POST /ping HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /ping HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}) {
    HttpClient client = stack.client();
    client.send(bytes);
    const int status = client.read_reply().status;
    EXPECT_TRUE(status == 400 || status == 413) << bytes << status;
    EXPECT_TRUE(client.at_end());
  }
}

TEST(SlowLoris, HalfAHeader_Gets408) {
  StackOptions options;
  options.server.header_timeout = milliseconds(50);
  const Stack stack(options);
  HttpClient client = stack.client();
  client.send("POST /v1/completions HTTP/1.1\r\nX: ");
  const HttpReply reply = client.read_reply();
  EXPECT_EQ(reply.status, 408);
  EXPECT_EQ(code_of(reply), "request_timeout");
  EXPECT_TRUE(client.at_end());
}

TEST(SlowLoris, HalfABody_Gets408) {
  StackOptions options;
  options.server.body_timeout = milliseconds(50);
  const Stack stack(options);
  HttpClient client = stack.client();
  client.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_EQ(client.read_reply().status, 408);
}

TEST(SlowLoris, ALargeBodyThatStalls_Gets408) {
  StackOptions options;
  options.server.body_timeout = milliseconds(50);
  options.server.body_bytes_per_s_min = 1;  // by its rate alone it would have hours
  const Stack stack(options);
  HttpClient client = stack.client();
  client.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + std::string(30'000, ' '));
  EXPECT_EQ(client.read_reply().status, 408);
}

TEST(SlowLoris, SilentAndIdleConnections_AreClosed) {
  StackOptions options;
  options.server.header_timeout = milliseconds(50);
  options.server.idle_timeout = milliseconds(50);
  const Stack stack(options);
  HttpClient silent = stack.client();
  EXPECT_TRUE(silent.at_end());
  HttpClient idle = stack.client();
  EXPECT_EQ(idle.call("GET", "/health").status, 200);
  EXPECT_TRUE(idle.at_end());
}

TEST(Protocol, KeepAlive_ServesManyRequests) {
  const Stack stack;
  HttpClient client = stack.client();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(client.call("POST", "/v1/completions", kSmallCall).status, 200);
    EXPECT_EQ(client.call("GET", "/nowhere").status, 404);
    EXPECT_EQ(client.call("POST", "/v1/completions", R"({"prompt":"x","max_tokens":2,"stream":true})").status, 200);
  }
  EXPECT_EQ(client.call("GET", "/health", "", "Connection: close\r\n").headers.at("connection"), "close");
  EXPECT_TRUE(client.at_end());
}

TEST(Protocol, PipelinedRequests_AreAnsweredInOrder) {
  const Stack stack;
  HttpClient client = stack.client();
  std::string all;
  for (int i = 1; i <= 20; ++i) {
    all += http_request("POST", "/v1/completions", R"({"prompt":"a","max_tokens":)" + std::to_string(i) + "}");
    all += http_request("GET", "/version");
  }
  client.send(all);
  for (int i = 1; i <= 20; ++i) {
    const Json answer = Json::parse(client.read_reply().body);
    EXPECT_EQ(answer["usage"]["completion_tokens"], i);
    EXPECT_EQ(client.read_reply().body, R"({"version":"1.2.3"})");
  }
}

TEST(Protocol, ChunkedUploadsAndExpect_AreUnderstood) {
  const Stack stack;
  HttpClient chunked = stack.client();
  chunked.send("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{\"prompt\":\r\n");
  chunked.send("13;x=y\r\n\"x\",\"max_tokens\":2}\r\n0\r\nTrailer: 1\r\n\r\n");
  EXPECT_EQ(Json::parse(chunked.read_reply().body)["choices"][0]["text"], "yz");
  HttpClient expecting = stack.client();
  expecting.send(fmt::format("POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
                             kSmallCall.size()));
  EXPECT_EQ(expecting.read_reply().status, 100);
  expecting.send(kSmallCall);
  EXPECT_EQ(expecting.read_reply().status, 200);
  EXPECT_EQ(stack.client().call("POST", "/tokenize", "{}", "Expect: tea\r\n").status, 417);
}

TEST(Protocol, EmptyLinesBeforeARequest_DoNotCount) {
  const Stack stack;
  HttpClient client = stack.client();
  for (const std::string_view lines : {"\r\n", "\r\n\r\n\r\n", ""}) {
    client.send(lines);
    EXPECT_EQ(client.call("GET", "/version").status, 200);
  }
  client.send("\r\n\r");
  client.send("\n" + http_request("GET", "/version"));
  EXPECT_EQ(client.read_reply().status, 200);
}

TEST(Protocol, Http10_EndsWithTheConnection) {
  const Stack stack;
  HttpClient whole = stack.client();
  whole.send("GET /version HTTP/1.0\r\n\r\n");
  EXPECT_EQ(whole.read_reply().body, R"({"version":"1.2.3"})");
  EXPECT_TRUE(whole.at_end());
  HttpClient stream = stack.client();
  const std::string body = R"({"prompt":"x","max_tokens":2,"stream":true})";
  stream.send(fmt::format("POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}", body.size(), body));
  const HttpReply reply = stream.read_reply();
  EXPECT_FALSE(reply.headers.contains("transfer-encoding"));
  EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n"));
}

StackOptions endless() {
  StackOptions options;
  options.manual = true;
  options.positions = 100'000;
  options.blocks = 8192;
  return options;
}

constexpr std::string_view kEndless = R"({"prompt":"x","max_tokens":90000})";
constexpr std::string_view kEndlessStream = R"({"prompt":"x","max_tokens":90000,"stream":true})";

// The steps that were under way when a client left may still run, and no other.
void expect_cancelled_within_a_step(Stack& stack, uint64_t requests) {
  EXPECT_TRUE(stack.reach([&] { return stack.load() == 0; }));
  const uint64_t steps = stack.executor().steps_run();
  stack.run_steps(true);
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().finished_abort == requests; }));
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().kv_blocks_used == 0; }));
  EXPECT_LE(stack.executor().steps_run(), steps + 2);
}

TEST(Disconnect, WhileStreaming_Cancels) {
  Stack stack(endless());
  HttpClient client = stack.client();
  client.send(http_request("POST", "/v1/completions", kEndlessStream));
  stack.executor().wait_pending(1);
  stack.executor().run_next();
  client.read_until("data: ");
  client.close();
  expect_cancelled_within_a_step(stack, 1);
}

TEST(Disconnect, WhileWaitingForAWholeAnswer_CancelsEveryChoice) {
  Stack stack(endless());
  HttpClient client = stack.client();
  client.send(http_request("POST", "/v1/completions", R"({"prompt":["x","y"],"n":2,"max_tokens":20000})"));
  stack.executor().wait_pending(1);
  client.close();
  expect_cancelled_within_a_step(stack, 4);
}

TEST(Disconnect, BehindManyBytesSentAhead_Cancels) {
  Stack stack(endless());
  HttpClient client = stack.client();
  client.send(http_request("POST", "/v1/completions", kEndless));
  stack.executor().wait_pending(1);
  client.send(std::string(256u << 10, ' '));
  client.close();
  expect_cancelled_within_a_step(stack, 1);
}

TEST(Disconnect, HalfClosedClient_StillGetsAReadyAnswer) {
  const Stack stack;
  HttpClient client = stack.client();
  client.send("GET /version HTTP/1.1\r\n\r\n");
  client.finish_sending();
  EXPECT_EQ(client.read_reply().status, 200);
}

TEST(Backpressure, ClientThatDoesNotRead_IsCancelled) {
  StackOptions options = endless();
  options.server.stream_buffer_bytes_max = 4096;
  options.server.stream_check_period = milliseconds(10);
  options.server.send_buffer_bytes = 4096;
  Stack stack(options);
  HttpClient client(stack.server().port(), 4096);
  client.send(http_request("POST", "/v1/completions", kEndlessStream));
  stack.run_steps(true);
  EXPECT_TRUE(stack.reach([&] { return stack.load() == 0; }));
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().finished_abort == 1; }));
}

TEST(Backpressure, ABurstToAClientThatReads_IsNoFault) {
  StackOptions options;
  options.server.stream_buffer_bytes_max = 1;
  options.server.stream_check_period = milliseconds(60'000);
  const Stack stack(options);
  const HttpReply reply = stack.post("/v1/completions", R"({"prompt":"x","n":16,"max_tokens":20,"stream":true})");
  EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n")) << reply.body;
}

TEST(Crowd, AThousandConnections_LeaveOthersServed) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  ASSERT_GE(limit.rlim_max, 2200u) << "the test itself needs descriptors for both ends";
  limit.rlim_cur = std::max<rlim_t>(limit.rlim_cur, 2200);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  const Stack stack;
  std::vector<HttpClient> crowd;
  for (int i = 0; i < 1000; ++i) {
    crowd.emplace_back(stack.client());
    ASSERT_TRUE(crowd.back().connected());
    ASSERT_TRUE(crowd.back().send("POST /v1/completions HTTP/1.1\r\n"));
  }
  EXPECT_EQ(stack.post("/v1/completions", kSmallCall).status, 200);
  for (HttpClient& client : crowd)
    client.send(fmt::format("Content-Length: {}\r\n\r\n{}", kSmallCall.size(), kSmallCall));
  for (HttpClient& client : crowd) ASSERT_EQ(client.read_reply().status, 200);
}

TEST(Crowd, MoreConnectionsThanAllowed_Get503) {
  StackOptions options;
  options.server.connections_max = 2;
  Stack stack(options);
  HttpClient one = stack.client(), two = stack.client();
  EXPECT_EQ(one.call("GET", "/health").status, 200);
  EXPECT_EQ(two.call("GET", "/health").status, 200);
  HttpClient three = stack.client();
  EXPECT_EQ(three.read_reply().status, 503);
  one.close();
  EXPECT_TRUE(stack.reach([&] { return stack.get("/health").status == 200; }));
}

TEST(Drain, NewWorkIsRefused_AndStreamsGoOn) {
  StackOptions options = endless();
  Stack stack(options);
  HttpClient client = stack.client();
  client.send(http_request("POST", "/v1/completions", R"({"prompt":"x","max_tokens":20,"stream":true})"));
  stack.executor().wait_pending(1);
  stack.server().begin_drain();
  EXPECT_EQ(stack.server().wait_drained(milliseconds(0)).code(), MOTLEY_DEADLINE_EXCEEDED);
  const HttpReply refused = stack.post("/v1/completions", kSmallCall);
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  EXPECT_EQ(stack.get("/health").status, 503);
  EXPECT_EQ(stack.get("/metrics").status, 200);
  stack.run_steps(true);
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().finished_length == 1; }));
  const HttpReply reply = client.read_reply();
  EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n")) << reply.body;
  EXPECT_TRUE(stack.server().wait_drained(milliseconds(20'000)).ok());
}

TEST(Stop, RunningRequests_AreCancelledAndTold) {
  Stack stack(endless());
  HttpClient stream = stack.client(), whole = stack.client();
  stream.send(http_request("POST", "/v1/completions", kEndlessStream));
  whole.send(http_request("POST", "/v1/completions", kEndless));
  EXPECT_TRUE(stack.reach([&] {
    const EngineStats stats = stack.engine().stats();
    return stats.running + stats.waiting == 2;
  }));
  stack.stop_server();
  EXPECT_EQ(whole.read_reply().status, 503);
  const std::string events = stream.read_reply().body;
  EXPECT_NE(events.find(R"("finish_reason":"abort")"), std::string::npos) << events;
  EXPECT_TRUE(events.ends_with("data: [DONE]\n\n")) << events;
  EXPECT_TRUE(stream.at_end());
  stack.run_steps(true);
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().finished_abort == 2; }));
}

TEST(Start, ImpossibleAddresses_AreNamed) {
  Stack stack;
  const testing::ByteTokenizer tokenizer;
  ServerOptions options;
  options.port = stack.server().port();
  const auto busy = Server::start(stack.engine(), tokenizer, nullptr, options);
  ASSERT_FALSE(busy);
  EXPECT_EQ(busy.error().code(), MOTLEY_ALREADY_EXISTS);
  EXPECT_NE(busy.error().message().find("--port"), std::string::npos);
  options.host = "no.such.host.invalid";
  EXPECT_EQ(Server::start(stack.engine(), tokenizer, nullptr, options).error().code(), MOTLEY_INVALID_ARGUMENT);
}

TEST(Failure, AStepThatFails_IsAServerError) {
  Stack stack;
  stack.executor().fail_next(Status(MOTLEY_INTERNAL, "the device is gone"));
  const HttpReply reply = stack.post("/v1/completions", kSmallCall);
  EXPECT_GE(reply.status, 500);
  EXPECT_EQ(code_of(reply), "");
}

}  // namespace
}  // namespace motley
