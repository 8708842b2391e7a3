// Every route over a real socket, a real engine and a scripted executor.
#include <gtest/gtest.h>

#include <thread>

#include "server/testing/stack.hpp"

namespace motley {
namespace {

using Json = nlohmann::json;
using testing::ByteTokenizer;
using testing::HttpReply;
using testing::ScriptedExecutor;
using testing::ScriptedOptions;
using testing::spell;
using testing::Stack;
using testing::StackOptions;

std::vector<Json> events_of(const std::string& body) {
  std::vector<Json> events;
  size_t at = 0;
  while (at < body.size()) {
    const size_t end = body.find("\n\n", at);
    const std::string line = body.substr(at, end - at);
    EXPECT_TRUE(line.starts_with("data: ")) << line;
    events.push_back(line == "data: [DONE]" ? Json("[DONE]") : Json::parse(line.substr(6), nullptr, false));
    if (end == std::string::npos) break;
    at = end + 2;
  }
  return events;
}

TEST(Completions, WholeAnswer_HasTextAndUsage) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/completions", R"({"model":"m","prompt":"x","max_tokens":4})");
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["model"], "m");
  EXPECT_EQ(answer["choices"][0]["text"], "yzab");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 1);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 4);
  EXPECT_EQ(answer["usage"]["total_tokens"], 5);
  EXPECT_EQ(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

TEST(Completions, Default_Is16Tokens) {
  const Stack stack;
  EXPECT_EQ(stack.post_json("/v1/completions", R"({"prompt":"z"})")["choices"][0]["text"], "abcdefghijklmnop");
}

TEST(Completions, EndToken_CountsButIsNotText) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/completions", R"({"prompt":"X"})");
  EXPECT_EQ(answer["choices"][0]["text"], "YZ");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(answer["choices"][0]["stop_reason"].is_null());
  EXPECT_EQ(answer["usage"]["completion_tokens"], 3);
}

TEST(Completions, StopToken_EndsAndIsNamed) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/completions", R"({"prompt":"z","stop_token_ids":[99]})");
  EXPECT_EQ(answer["choices"][0]["text"], "ab");
  EXPECT_EQ(answer["choices"][0]["stop_reason"], 99);
  EXPECT_EQ(stack.post_json(
                "/v1/completions",
                R"({"prompt":"z","stop_token_ids":[99],"include_stop_str_in_output":true})")["choices"][0]["text"],
            "abc");
}

TEST(Completions, StopString_CutsTheText) {
  Stack stack;
  const Json answer = stack.post_json("/v1/completions", R"({"prompt":"z","max_tokens":400,"stop":["zz","cd"]})");
  EXPECT_EQ(answer["choices"][0]["text"], "ab");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(answer["choices"][0]["stop_reason"], "cd");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 4);
  EXPECT_EQ(stack.post_json("/v1/completions",
                            R"({"prompt":"z","stop":"cd","include_stop_str_in_output":true})")["choices"][0]["text"],
            "abcd");
}

TEST(Completions, StopStringBeforeMinTokens_DoesNotCount) {
  const Stack stack;
  const Json answer =
      stack.post_json("/v1/completions", R"({"prompt":"z","max_tokens":60,"min_tokens":10,"stop":"cd"})");
  EXPECT_EQ(answer["choices"][0]["text"], "abcdefghijklmnopqrstuvwxyzab");
}

TEST(Completions, MinTokensAndIgnoreEos_HoldBackTheEnd) {
  const Stack stack;
  EXPECT_EQ(stack.post_json("/v1/completions",
                            R"({"prompt":"Y","max_tokens":5,"ignore_eos":true})")["choices"][0]["finish_reason"],
            "length");
  EXPECT_EQ(stack.post_json("/v1/completions",
                            R"({"prompt":"Y","max_tokens":5,"min_tokens":3})")["usage"]["completion_tokens"],
            5);
}

TEST(Completions, MinTokensBeyondTheDefaultOfMaxTokens_Get400) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/completions", R"({"prompt":"z","min_tokens":17})", 400);
  EXPECT_EQ(answer["error"]["param"], "min_tokens");
  EXPECT_EQ(stack.post_json("/v1/completions", R"({"prompt":"z","min_tokens":16})")["usage"]["completion_tokens"], 16);
}

TEST(Completions, PromptsTimesN_KeepTheirOrder) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/completions", R"({"prompt":["x",  "a"],"n":2,"max_tokens":2,"echo":true})");
  ASSERT_EQ(answer["choices"].size(), 4u);
  const char* texts[] = {"xyz", "xyz", "abc", "abc"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(answer["choices"][i]["index"], i);
    EXPECT_EQ(answer["choices"][i]["text"], texts[i]);
  }
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 2);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 8);
}

TEST(Completions, TokenIdPrompts_AreTakenAsTheyAre) {
  const Stack stack;
  EXPECT_EQ(stack.post_json("/v1/completions", R"({"prompt":[120],"max_tokens":1})")["choices"][0]["text"], "y");
  EXPECT_EQ(stack.post_json("/v1/completions", R"({"prompt":[[120],[97]],"max_tokens":1})")["choices"][1]["text"], "b");
}

TEST(Completions, Logprobs_StandForEveryToken) {
  const Stack stack;
  const Json logprobs = stack.post_json("/v1/completions", R"({"prompt":"X","logprobs":2})")["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"Y", "Z", "<|end|>"}));
  EXPECT_EQ(logprobs["text_offset"], Json({0, 1, 2}));
  EXPECT_EQ(logprobs["token_logprobs"].size(), 3u);
  EXPECT_TRUE(logprobs["top_logprobs"][0].contains("Y"));
}

TEST(Completions, Stream_JoinsToTheWholeText) {
  const Stack stack;
  const HttpReply reply = stack.post(
      "/v1/completions", R"({"prompt":"#","max_tokens":5,"stream":true,"stream_options":{"include_usage":true}})");
  ASSERT_EQ(reply.status, 200);
  EXPECT_TRUE(reply.headers.at("content-type").starts_with("text/event-stream"));
  const std::vector<Json> events = events_of(reply.body);
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events.back(), "[DONE]");
  const Json& last = events[events.size() - 2];
  EXPECT_TRUE(last["choices"].empty());
  EXPECT_EQ(last["usage"]["completion_tokens"], 5);
  std::string text;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    EXPECT_TRUE(events[i]["usage"].is_null());
    text += events[i]["choices"][0]["text"];
  }
  EXPECT_EQ(text, "éabc");
  EXPECT_EQ(events[events.size() - 3]["choices"][0]["finish_reason"], "length");
}

TEST(Completions, StreamedChoices_AreToldApart) {
  const Stack stack;
  const HttpReply reply = stack.post("/v1/completions", R"({"prompt":["x","a"],"n":2,"max_tokens":3,"stream":true})");
  std::string texts[4];
  for (const Json& event : events_of(reply.body)) {
    if (event.is_string()) continue;
    EXPECT_FALSE(event.contains("usage"));
    texts[event["choices"][0]["index"].get<size_t>()] += event["choices"][0]["text"];
  }
  EXPECT_EQ(texts[1], "yza");
  EXPECT_EQ(texts[3], "bcd");
}

TEST(Chat, WholeAnswer_GoesThroughTheTemplate) {
  const Stack stack;
  const Json answer = stack.post_json(
      "/v1/chat/completions",
      R"({"model":"org/alias","messages":[{"role":"user","content":"<|end|>"}],"max_completion_tokens":3})");
  EXPECT_TRUE(answer["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "org/alias");
  EXPECT_EQ(answer["choices"][0]["message"], Json({{"role", "assistant"}, {"content", "abc"}, {"refusal", nullptr}}));
  // Im_start "user\n", the seven characters that the user typed, im_end "\n", im_start "assistant\n".
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 1 + 5 + 7 + 1 + 1 + 1 + 10);
}

TEST(Chat, NoMaxTokens_MeansTheRestOfTheContext) {
  StackOptions options;
  options.positions = 64;
  const Stack stack(options);
  const Json answer = stack.post_json("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}]})");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["total_tokens"], 64);
}

TEST(Chat, Stream_BeginsWithTheRole) {
  const Stack stack;
  const HttpReply reply = stack.post("/v1/chat/completions",
                                     R"({"messages":[{"role":"user","content":"hi"}],"max_tokens":2,"stream":true,
                                         "logprobs":true,"top_logprobs":1})");
  const std::vector<Json> events = events_of(reply.body);
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(events[0]["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", "a"}}));
  EXPECT_EQ(events[0]["choices"][0]["logprobs"]["content"][0]["bytes"], Json({97}));
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST(Chat, WithoutTemplate_SaysWhatToDo) {
  StackOptions options;
  options.chat = false;
  const Stack stack(options);
  const Json answer = stack.post_json("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}]})", 400);
  EXPECT_NE(answer["error"]["message"].get<std::string>().find("--chat-template"), std::string::npos);
}

TEST(Chat, ToolCallsWithBrokenArguments_Are400) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/chat/completions", R"({"messages":[{"role":"assistant","tool_calls":
      [{"type":"function","function":{"name":"f","arguments":"{\"a\":"}}]}]})",
                                      400);
  EXPECT_EQ(answer["error"]["param"], "messages");
  EXPECT_EQ(answer["error"]["message"], "messages[0].tool_calls[0].function.arguments must be a JSON object");
}

TEST(Chat, Tools_WithChoiceNone_AreAnsweredAsText) {
  const Stack stack;
  const Json answer = stack.post_json("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}],
      "max_tokens":2,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none"})");
  EXPECT_TRUE(answer["choices"][0]["message"]["content"].is_string());
}

TEST(Tokenize, Routes_AreInverse) {
  const Stack stack;
  const Json answer = stack.post_json("/tokenize", R"({"prompt":"hé","return_token_strs":true})");
  EXPECT_EQ(answer["count"], 3);
  EXPECT_EQ(answer["tokens"], Json({104, 195, 169}));
  EXPECT_EQ(answer["max_model_len"], 512);
  EXPECT_EQ(answer["token_strs"][0], "h");
  EXPECT_EQ(stack.post_json("/detokenize", R"({"tokens":[104,195,169,257]})")["prompt"], "hé<|im_start|>");
  EXPECT_EQ(stack.post_json("/detokenize", R"({"tokens":[195]})")["prompt"], "\xEF\xBF\xBD");
  EXPECT_EQ(stack.post_json("/tokenize",
                            R"({"messages":[{"role":"a","content":"b"}],"add_generation_prompt":false})")["count"],
            6);
  const Json continued = stack.post_json("/tokenize", R"({"messages":[{"role":"a","content":"b"},
      {"role":"assistant","content":"xy"}],"add_generation_prompt":false,"continue_final_message":true})");
  EXPECT_EQ(continued["count"], 6 + 1 + 10 + 2);
  EXPECT_EQ(continued["tokens"].back(), 'y');
}

TEST(Operations, Routes_Answer) {
  const Stack stack;
  EXPECT_EQ(stack.get("/health").status, 200);
  EXPECT_EQ(stack.get("/ping").status, 200);
  EXPECT_EQ(stack.post("/ping", "").status, 200);
  EXPECT_EQ(stack.get("/version").body, R"({"version":"1.2.3"})");
  EXPECT_EQ(Json::parse(stack.get("/load").body)["server_load"], 0);
  const Json models = Json::parse(stack.get("/v1/models").body);
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "m");
  EXPECT_EQ(models["data"][0]["object"], "model");
  EXPECT_EQ(models["data"][0]["max_model_len"], 512);
  EXPECT_EQ(Json::parse(stack.get("/v1/models/org/alias").body)["id"], "org/alias");
  EXPECT_EQ(Json::parse(stack.get("/v1/models/org%2Falias").body)["id"], "org/alias");
  EXPECT_EQ(stack.get("/v1/models/x").status, 404);
}

// Less KV after a loss, more once a device is back: what is told and checked is what is in force.
TEST(Operations, ContextAfterAReplacement_IsTheOneInForce) {
  ScriptedOptions smaller;
  smaller.epoch = 2;
  smaller.block_size = 16, smaller.blocks = 4;
  smaller.vocab_size = ByteTokenizer().size();
  smaller.positions_max = 512;
  smaller.choice = spell;
  ScriptedExecutor executor(smaller);
  Stack stack;
  ASSERT_TRUE(stack.engine().replace([&]() -> Result<Executor*> { return &executor; }).take().ok());
  EXPECT_EQ(Json::parse(stack.get("/v1/models").body)["data"][0]["max_model_len"], 64);
  EXPECT_EQ(stack.post_json("/tokenize", R"({"prompt":"abc"})")["max_model_len"], 64);
  const Json error =
      stack.post_json("/v1/completions", R"({"prompt":")" + std::string(64, 'a') + R"("})", 400)["error"];
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_NE(error["message"].get<std::string>().find("context is 64 tokens"), std::string::npos);
  const Json chat = stack.post_json("/v1/chat/completions", R"({"messages":[{"role":"user","content":"Z"}]})");
  EXPECT_LE(chat["usage"]["total_tokens"], 64);
}

StackOptions with_devices(std::function<Result<DevicesAdded>(const std::vector<std::string>&)> add) {
  StackOptions options;
  options.server.devices.list = [] {
    OwnCounters own;
    own.programs = 4, own.rows = 6, own.padded_rows = 16, own.flops = 4096, own.padded_flops = 8192;
    own.bytes_copied = 65, own.bytes_resident = 1024, own.blob_hits = 2, own.reloads = 1;
    own.busy_s = 0.75, own.compile_s = 2.5;
    return std::vector<DeviceCounters>{{"CPU:0", "serving", 3, 5, 64, 0.5, false, "F16,Q8_0", 0.25, own},
                                       {"GPU:0", "lost", 1, 1, 0, 0, true, "", 0, {}}};
  };
  options.server.devices.add = std::move(add);
  return options;
}

TEST(Devices, Get_ListsThemWithWhatTheyDid) {
  const Stack stack(with_devices(nullptr));
  const Json data = Json::parse(stack.get("/v1/devices").body)["data"];
  ASSERT_EQ(data.size(), 2u);
  EXPECT_EQ(data[0],
            Json::parse(R"({"name":"CPU:0","state":"serving","simulated":false,"programs":3,"rows":5,"bytes_moved":64,
                                     "busy_s":0.5,"own":{"programs":4,"rows":6,"padded_rows":16,"flops":4096.0,
                                     "padded_flops":8192.0,"bytes_copied":65,"bytes_resident":1024,"blob_hits":2,
                                     "reloads":1,"busy_s":0.75,"compile_s":2.5}})"));
  EXPECT_EQ(data[1]["state"], "lost");
  EXPECT_EQ(data[1]["simulated"], true);
  const std::string metrics = stack.get("/metrics").body;
  EXPECT_NE(metrics.find("device=\"CPU:0\"} 3"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("device=\"GPU:0\",simulated=\"true\"} 1"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("device=\"CPU:0\",format=\"F16,Q8_0\"} 0.25"), std::string::npos) << metrics;
  EXPECT_NE(metrics.find("device=\"GPU:0\",simulated=\"true\",format=\"as in the file\"} 0"), std::string::npos);
  for (const char* line :
       {"device_flops_total", "device_padded_flops_total", "device_compile_seconds_total", "device_resident_bytes"})
    EXPECT_NE(metrics.find(std::string("motley:") + line + "{"), std::string::npos) << line;
}

TEST(Devices, Post_AddsOneOrAListAndTellsTheNote) {
  std::vector<std::string> asked;
  const Stack stack(with_devices([&](const std::vector<std::string>& names) -> Result<DevicesAdded> {
    asked = names;
    return DevicesAdded{names, "it is idle"};
  }));
  const Json one = stack.post_json("/v1/devices", R"({"add":"CPU:1"})");
  EXPECT_EQ(asked, std::vector<std::string>{"CPU:1"});
  EXPECT_EQ(one["added"], Json::parse(R"(["CPU:1"])"));
  EXPECT_EQ(one["note"], "it is idle");
  EXPECT_EQ(one["data"].size(), 2u);
  stack.post_json("/v1/devices", R"({"add":["CPU:1","CPU:2"]})");
  EXPECT_EQ(asked.size(), 2u);
}

TEST(Devices, RefusalsAndBadBodies_AreTold) {
  const Stack stack(with_devices([](const std::vector<std::string>& names) -> Result<DevicesAdded> {
    return error(MOTLEY_ALREADY_EXISTS, "device {} is in use already", names.at(0));
  }));
  EXPECT_EQ(stack.post_json("/v1/devices", R"({"add":"CPU:0"})", 409)["error"]["message"],
            "device CPU:0 is in use already");
  for (const char* body : {"{}", R"({"add":[]})", R"({"add":3})", R"({"add":["a",3]})", R"({"add":{}})", "x"})
    stack.post_json("/v1/devices", body, 400);
  const Stack none;
  none.post_json("/v1/devices", R"({"add":"CPU:0"})", 501);
  EXPECT_EQ(Json::parse(none.get("/v1/devices").body)["data"].size(), 0u);
}

TEST(Metrics, StopStrings_CountAsStop) {
  StackOptions options;
  options.manual = true;
  Stack stack(options);
  testing::HttpClient client = stack.client();
  client.send(testing::http_request("POST", "/v1/completions", R"({"prompt":"z","max_tokens":400,"stop":"ab"})"));
  for (int token = 0; token < 2; ++token) {
    stack.executor().wait_pending(1);
    stack.executor().run_next();
  }
  EXPECT_EQ(client.read_reply().status, 200);
  stack.run_steps(true);
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().finished_stop == 1; }));
  const std::string page = stack.get("/metrics").body;
  EXPECT_NE(page.find("finished_reason=\"stop\"} 1\n"), std::string::npos) << page;
  EXPECT_NE(page.find("finished_reason=\"abort\"} 0\n"), std::string::npos) << page;
}

TEST(Seeds, SeedAndChoice_ReachTheSampler) {
  const Stack stack;
  EXPECT_EQ(stack.post_json("/v1/completions", R"({"prompt":"$","max_tokens":1,"seed":29})")["choices"][0]["text"],
            "d");
  const Json answer = stack.post_json("/v1/completions", R"({"prompt":"%","max_tokens":1,"n":3})");
  EXPECT_EQ(answer["choices"][2]["text"], "c");
}

TEST(Seeds, ServersOfOneSeed_DrawTheSame) {
  StackOptions options;
  options.server.seed = 5;
  const Stack one(options), two(options);
  const std::string body = R"({"prompt":["$","$"],"max_tokens":1})";
  EXPECT_EQ(one.post_json("/v1/completions", body)["choices"], two.post_json("/v1/completions", body)["choices"]);
}

TEST(Prefix, CachedTokens_AreReported) {
  Stack stack;
  const std::string body = R"({"prompt":")" + std::string(64, 'q') + R"(","max_tokens":1})";
  stack.post_json("/v1/completions", body);
  const Json cached = stack.post_json("/v1/completions", body)["usage"]["prompt_tokens_details"]["cached_tokens"];
  EXPECT_GE(cached, 16);
  EXPECT_TRUE(stack.reach([&] { return stack.engine().stats().finished_length == 2; }));
  const std::string page = stack.get("/metrics").body;
  EXPECT_NE(page.find(fmt::format("vllm:prompt_tokens_cached_total{{engine=\"0\",model_name=\"m\"}} {}\n",
                                  cached.get<int>())),
            std::string::npos)
      << page;
  EXPECT_NE(page.find(fmt::format("vllm:request_prefill_kv_computed_tokens_sum{{engine=\"0\",model_name=\"m\"}} {}\n",
                                  128 - cached.get<int>())),
            std::string::npos)
      << page;
}

TEST(Parallel, ManyClients_EachGetTheirOwnText) {
  const Stack stack;
  std::vector<std::thread> threads;
  std::vector<std::string> texts(16);
  for (size_t i = 0; i < texts.size(); ++i) {
    threads.emplace_back([&, i] {
      const std::string letter(1, static_cast<char>('a' + i));
      for (const Json& event : events_of(
               stack.post("/v1/completions", R"({"prompt":")" + letter + R"(","stream":true,"max_tokens":3})").body)) {
        if (!event.is_string()) texts[i] += event["choices"][0]["text"];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < texts.size(); ++i) {
    std::string expected;
    for (size_t k = 1; k <= 3; ++k) expected += static_cast<char>('a' + (i + k) % 26);
    EXPECT_EQ(texts[i], expected);
  }
}

}  // namespace
}  // namespace motley
