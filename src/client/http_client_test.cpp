#include "client/http_client.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/testing/puppet_server.hpp"

namespace motley::client {
namespace {

using motley::testing::puppet_chunk;
using motley::testing::puppet_reply;
using motley::testing::puppet_stream_head;
using motley::testing::PuppetAnswer;
using motley::testing::PuppetServer;
using ::testing::HasSubstr;

std::unique_ptr<HttpClient> client_of(uint16_t port, HttpHeaders headers = {}, std::string prefix = "") {
  auto client = HttpClient::create({"127.0.0.1", port, std::move(prefix)}, std::move(headers));
  EXPECT_TRUE(client.ok()) << client.error().message();
  return *std::move(client);
}

TEST(HttpClient, Call_IsWholeAndConnectionsAreUsedAgain) {
  PuppetServer server({{puppet_reply("200 OK", "one")}, {puppet_reply("404 Not Found", "two")}});
  const auto client = client_of(server.port(), {{"Authorization", "Bearer k"}}, "/prefix");
  const auto first = client->fetch("POST", "/v1/x", "{}");
  ASSERT_TRUE(first.ok()) << first.error().message();
  EXPECT_EQ(first->status, 200);
  EXPECT_EQ(first->body, "one");
  const auto second = client->fetch("GET", "/y");
  ASSERT_TRUE(second.ok()) << second.error().message();
  EXPECT_EQ(second->status, 404);
  EXPECT_EQ(second->reason, "Not Found");
  EXPECT_EQ(server.connections(), 1);
  EXPECT_THAT(server.requests()[0], HasSubstr("POST /prefix/v1/x HTTP/1.1\r\n"));
  EXPECT_THAT(server.requests()[0], HasSubstr("Authorization: Bearer k\r\n"));
  EXPECT_THAT(server.requests()[0], HasSubstr("Content-Length: 2\r\n"));
  EXPECT_THAT(server.requests()[1], HasSubstr("GET /prefix/y HTTP/1.1\r\n"));
}

TEST(HttpClient, ConnectionClosedWhileIdle_IsMadeAnew) {
  PuppetServer server({{puppet_reply("200 OK", "one"), PuppetAnswer::kClose}, {puppet_reply("200 OK", "two")}});
  const auto client = client_of(server.port());
  ASSERT_TRUE(client->fetch("GET", "/").ok());
  const auto second = client->fetch("GET", "/");
  ASSERT_TRUE(second.ok()) << second.error().message();
  EXPECT_EQ(second->body, "two");
  EXPECT_EQ(server.connections(), 2);
}

TEST(HttpClient, StreamInChunks_ArrivesInOrderOverOneConnection) {
  const std::string stream =
      puppet_stream_head() + puppet_chunk("data: a\n") + puppet_chunk("\ndata: b\n\n") + "0\r\n\r\n";
  PuppetServer server({{stream}, {stream}});
  const auto client = client_of(server.port());
  for (int i = 0; i < 2; ++i) {
    const auto reply = client->fetch("POST", "/", "{}");
    ASSERT_TRUE(reply.ok()) << reply.error().message();
    EXPECT_EQ(reply->body, "data: a\n\ndata: b\n\n");
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST(HttpClient, BodyThatEndsWithTheConnection_IsWhole) {
  PuppetServer server({{"HTTP/1.0 200 OK\r\n\r\nall of it", PuppetAnswer::kClose}});
  const auto reply = client_of(server.port())->fetch("GET", "/");
  ASSERT_TRUE(reply.ok()) << reply.error().message();
  EXPECT_EQ(reply->body, "all of it");
}

TEST(HttpClient, AnswersThatBreakOff_AreUnavailable) {
  const std::string begun = puppet_stream_head() + puppet_chunk("data: a\n\n");
  for (const auto& [bytes, end] : std::initializer_list<std::pair<std::string, PuppetAnswer::End>>{
           {"", PuppetAnswer::kClose},
           {"", PuppetAnswer::kReset},
           {"HTTP/1.1 200", PuppetAnswer::kClose},
           {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", PuppetAnswer::kClose},
           {begun, PuppetAnswer::kClose},
           {begun, PuppetAnswer::kReset},
           {"what is this\r\n\r\n", PuppetAnswer::kClose},
           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", PuppetAnswer::kClose},
           {"HTTP/1.1 200 OK\r\nX: " + std::string(100'000, 'x'), PuppetAnswer::kClose}}) {
    PuppetServer server({{bytes, end}});
    const auto reply = client_of(server.port())->fetch("GET", "/");
    ASSERT_FALSE(reply.ok()) << bytes.substr(0, 60);
    EXPECT_EQ(reply.error().code(), MOTLEY_UNAVAILABLE);
    EXPECT_THAT(reply.error().message(), HasSubstr("http://127.0.0.1:"));
  }
}

TEST(HttpClient, TakerThatHasEnough_EndsTheCall) {
  PuppetServer server({{puppet_stream_head() + puppet_chunk("a"), PuppetAnswer::kClose}});
  const auto client = client_of(server.port());
  Status ended;
  int pieces = 0;
  client->send({"GET", "/", "", [](int, std::string_view) {},
                [&](std::string_view) {
                  ++pieces;
                  return false;
                },
                [&](const Status& end) { ended = end; }});
  client->run();
  EXPECT_EQ(pieces, 1);
  EXPECT_EQ(ended.code(), MOTLEY_CANCELLED);
}

TEST(HttpClient, NobodyListens_IsUnavailable) {
  uint16_t port = 0;
  {
    const PuppetServer gone({});
    port = gone.port();
  }
  const auto reply = client_of(port)->fetch("GET", "/");
  ASSERT_FALSE(reply.ok());
  EXPECT_EQ(reply.error().code(), MOTLEY_UNAVAILABLE);
  EXPECT_THAT(reply.error().message(), HasSubstr("Connection refused"));
}

TEST(HttpClient, JobsRunInTheOrderOfTheirTimes) {
  PuppetServer server({});
  const auto client = client_of(server.port());
  std::string order;
  client->after(0.02, [&] { order += 'b'; });
  client->after(-1, [&] {
    order += 'a';
    client->after(0.04, [&] { order += 'c'; });
  });
  client->run();
  EXPECT_EQ(order, "abc");
}

TEST(HttpClient, HeadersThatCannotBe_AreRefused) {
  for (const auto& header : HttpHeaders{{"", "v"}, {"a b", "v"}, {"a:", "v"}, {"a", "v\r\nb: w"}, {"a\n", "v"}}) {
    EXPECT_EQ(HttpClient::create({"127.0.0.1", 1, ""}, {header}).error().code(), MOTLEY_INVALID_ARGUMENT);
  }
  EXPECT_EQ(HttpClient::create({"no such host.invalid", 1, ""}, {}).error().code(), MOTLEY_UNAVAILABLE);
}

TEST(BaseUrl, PartsAreFound) {
  const struct {
    const char *url, *host;
    uint16_t port;
    const char *prefix, *text;
  } cases[] = {{"http://h:8000", "h", 8000, "", "http://h:8000"},
               {"http://h/", "h", 80, "", "http://h:80"},
               {"http://h:1/a/b/", "h", 1, "/a/b", "http://h:1/a/b"},
               {"http://[::1]:8000/x", "::1", 8000, "/x", "http://[::1]:8000/x"},
               {"http://[::1]", "::1", 80, "", "http://[::1]:80"}};
  for (const auto& wanted : cases) {
    const auto address = parse_base_url(wanted.url);
    ASSERT_TRUE(address.ok()) << address.error().message();
    EXPECT_EQ(address->host, wanted.host);
    EXPECT_EQ(address->port, wanted.port);
    EXPECT_EQ(address->prefix, wanted.prefix);
    EXPECT_EQ(address->text(), wanted.text);
  }
  for (const char* bad :
       {"", "h:8000", "https://h", "http://", "http://:80", "http://h:0", "http://h:65536", "http://h:x",
        "http://h:", "http://u@h", "http://h/?q", "http://h /", "http://[::1", "http://[::1]x:80", "http://[]"}) {
    EXPECT_EQ(parse_base_url(bad).error().code(), MOTLEY_INVALID_ARGUMENT) << bad;
  }
}

}  // namespace
}  // namespace motley::client
