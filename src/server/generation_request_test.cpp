#include "server/generation_request.hpp"

#include <gtest/gtest.h>

namespace motley {
namespace {

constexpr CallLimits kLimits{1000, 512, false};

struct BadCase {
  CallKind kind;
  std::string_view members;  // beside a good prompt or messages
  std::string_view param;
};

std::string body_of(CallKind kind, std::string_view members) {
  const std::string base =
      kind == CallKind::kChat ? R"("messages":[{"role":"user","content":"hi"}])" : R"("prompt":"hi")";
  return "{" + base + (members.empty() ? "" : ",") + std::string(members) + "}";
}

constexpr auto kCompletion = CallKind::kCompletion;
constexpr auto kChat = CallKind::kChat;

const BadCase kBadCases[] = {
    {kCompletion, R"("temperature":-0.1)", "temperature"},
    {kCompletion, R"("temperature":2.5)", "temperature"},
    {kCompletion, R"("temperature":"1")", "temperature"},
    {kCompletion, R"("temperature":true)", "temperature"},
    {kCompletion, R"("top_p":0)", "top_p"},
    {kCompletion, R"("top_p":1.01)", "top_p"},
    {kCompletion, R"("top_p":1e-60)", "top_p"},
    {kCompletion, R"("min_p":-1)", "min_p"},
    {kCompletion, R"("top_k":-2)", "top_k"},
    {kCompletion, R"("top_k":1.5)", "top_k"},
    {kCompletion, R"("presence_penalty":2.1)", "presence_penalty"},
    {kCompletion, R"("frequency_penalty":-2.1)", "frequency_penalty"},
    {kCompletion, R"("repetition_penalty":0)", "repetition_penalty"},
    {kCompletion, R"("seed":"x")", "seed"},
    {kCompletion, R"("seed":18446744073709551615)", "seed"},
    {kCompletion, R"("n":0)", "n"},
    {kCompletion, R"("n":129)", "n"},
    {kCompletion, R"("max_tokens":0)", "max_tokens"},
    {kCompletion, R"("max_tokens":-5)", "max_tokens"},
    {kCompletion, R"("max_tokens":512)", "max_tokens"},
    {kCompletion, R"("max_tokens":99999999999)", "max_tokens"},
    {kCompletion, R"("max_tokens":4,"min_tokens":5)", "min_tokens"},
    {kCompletion, R"("min_tokens":-1)", "min_tokens"},
    {kCompletion, R"("ignore_eos":1)", "ignore_eos"},
    {kCompletion, R"("stop":"")", "stop"},
    {kCompletion, R"("stop":[1])", "stop"},
    {kCompletion, R"("stop":{"a":1})", "stop"},
    {kCompletion, R"("stop_token_ids":[1000])", "stop_token_ids"},
    {kCompletion, R"("stop_token_ids":[-1])", "stop_token_ids"},
    {kCompletion, R"("stop_token_ids":5)", "stop_token_ids"},
    {kCompletion, R"("logit_bias":{"1000":1})", "logit_bias"},
    {kCompletion, R"("logit_bias":{"x":1})", "logit_bias"},
    {kCompletion, R"("logit_bias":{"-1":1})", "logit_bias"},
    {kCompletion, R"("logit_bias":{"5":101})", "logit_bias"},
    {kCompletion, R"("logit_bias":{"5":"1"})", "logit_bias"},
    {kCompletion, R"("logit_bias":{"5":1,"05":2})", "logit_bias"},
    {kCompletion, R"("logit_bias":[1])", "logit_bias"},
    {kCompletion, R"("logprobs":21)", "logprobs"},
    {kCompletion, R"("logprobs":-1)", "logprobs"},
    {kCompletion, R"("logprobs":true)", "logprobs"},
    {kCompletion, R"("echo":true,"logprobs":1)", "echo"},
    {kCompletion, R"("echo":"yes")", "echo"},
    {kCompletion, R"("stream":"yes")", "stream"},
    {kCompletion, R"("stream_options":{"include_usage":true})", "stream_options"},
    {kCompletion, R"("stream":true,"stream_options":1)", "stream_options"},
    {kCompletion, R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
    {kCompletion, R"("priority":1)", "priority"},
    {kCompletion, R"("model":1)", "model"},
    {kCompletion, R"("best_of":2)", "best_of"},
    {kCompletion, R"("suffix":"x")", "suffix"},
    {kCompletion, R"("prompt_logprobs":0)", "prompt_logprobs"},
    {kCompletion, R"("use_beam_search":true)", "use_beam_search"},
    {kCompletion, R"("guided_json":{})", "guided_json"},
    {kCompletion, R"("response_format":{"type":"json_object"})", "response_format"},
    {kCompletion, R"("prompt":[])", "prompt"},
    {kCompletion, R"("prompt":5)", "prompt"},
    {kCompletion, R"("prompt":[1,"a"])", "prompt"},
    {kCompletion, R"("prompt":["a",1])", "prompt"},
    {kCompletion, R"("prompt":[[1],["a"]])", "prompt"},
    {kCompletion, R"("prompt":[1,1000])", "prompt"},
    {kCompletion, R"("prompt":[1.5])", "prompt"},
    {kCompletion, R"("prompt":[{}])", "prompt"},
    {kCompletion, R"("prompt":null)", "prompt"},
    {kChat, R"("logprobs":1)", "logprobs"},
    {kChat, R"("top_logprobs":3)", "top_logprobs"},
    {kChat, R"("logprobs":true,"top_logprobs":21)", "top_logprobs"},
    {kChat, R"("max_completion_tokens":0)", "max_completion_tokens"},
    {kChat, R"("functions":[{}])", "functions"},
    {kChat, R"("modalities":["text","audio"])", "modalities"},
    {kChat, R"("audio":{})", "audio"},
};

TEST(GenerationRequest, EveryBadField_Gets400NamingIt) {
  for (const BadCase& bad : kBadCases) {
    GenerationCall call;
    const MaybeError error = parse_generation_call(bad.kind, body_of(bad.kind, bad.members), kLimits, call);
    ASSERT_TRUE(error) << bad.members;
    EXPECT_EQ(error->status, 400) << bad.members;
    EXPECT_EQ(error->param, bad.param) << bad.members << ": " << error->message;
    EXPECT_NE(error->message.find(bad.param.substr(0, 4)), std::string::npos) << error->message;
  }
}

TEST(GenerationRequest, StopStringsTogether_AreBounded) {
  const auto refused = [](size_t last) {
    std::string list = "\"stop\":[";
    for (int i = 0; i < 16; ++i) list += '"' + std::string(i < 15 ? 1024 : last, 'a') + "\",";
    GenerationCall call;
    return parse_generation_call(kCompletion, body_of(kCompletion, list + "\"b\"]"), kLimits, call);
  };
  EXPECT_FALSE(refused(1023));
  ASSERT_TRUE(refused(1024));
  EXPECT_EQ(refused(1024)->param, "stop");
}

GenerationCall good(CallKind kind, std::string_view members, CallLimits limits = kLimits) {
  GenerationCall call;
  const MaybeError error = parse_generation_call(kind, body_of(kind, members), limits, call);
  EXPECT_FALSE(error) << members << ": " << error->message;
  return call;
}

TEST(GenerationRequest, NoFields_GiveVllmsDefaults) {
  const GenerationCall call = good(kCompletion, "");
  EXPECT_EQ(call.params.temperature, 1.0f);
  EXPECT_EQ(call.params.top_p, 1.0f);
  EXPECT_EQ(call.params.top_k, 0);
  EXPECT_EQ(call.params.repetition_penalty, 1.0f);
  EXPECT_EQ(call.params.logprobs, -1);
  EXPECT_FALSE(call.has_max_tokens);
  EXPECT_FALSE(call.has_seed);
  EXPECT_EQ(call.n, 1u);
  EXPECT_FALSE(call.stream);
  EXPECT_TRUE(call.text.skip_special_tokens);
  EXPECT_EQ(std::get<std::string>(call.prompts.at(0)), "hi");
}

TEST(GenerationRequest, FieldsLeftOut_AreTheServersDefaults) {
  TokenSampling defaults;
  defaults.temperature = 0.25f, defaults.top_k = 7, defaults.repetition_penalty = 1.5f;
  CallLimits limits = kLimits;
  limits.defaults = &defaults;
  const GenerationCall call = good(kCompletion, R"("top_k":0,"repetition_penalty":null)", limits);
  EXPECT_EQ(call.params.temperature, 0.25f);
  EXPECT_EQ(call.params.top_k, 0);
  EXPECT_EQ(call.params.repetition_penalty, 1.5f);
}

TEST(GenerationRequest, NullAndUnknownFields_AskForNothing) {
  good(kCompletion, R"("temperature":null,"stop":null,"seed":null,"n":null,"tools":[{}],"made_up":{"a":[1]},"user":7)");
  good(kChat, R"("tools":null,"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],"best_of":1,
                "parallel_tool_calls":true,"store":false,"metadata":{},"tools":[])");
  good(kChat, R"("tool_choice":"auto","function_call":"auto")");
}

TEST(GenerationRequest, EveryField_ReachesTheParameters) {
  const GenerationCall call = good(kCompletion, R"("temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.25,"seed":-1,"n":3,
      "presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.5,"max_tokens":7,"min_tokens":2,"ignore_eos":true,
      "stop":["a","b"],"stop_token_ids":[5],"logit_bias":{"9":-100,"3":1.5},"logprobs":2,"stream":true,
      "stream_options":{"include_usage":true},"skip_special_tokens":false,"include_stop_str_in_output":true,"model":"m",
      "prompt":[[1,2],[3]])");
  EXPECT_EQ(call.params.temperature, 0.0f);
  EXPECT_EQ(call.params.top_k, 0);
  EXPECT_EQ(call.params.seed, UINT64_MAX);
  EXPECT_TRUE(call.has_seed);
  EXPECT_EQ(call.n, 3u);
  EXPECT_EQ(call.params.max_tokens, 7u);
  EXPECT_EQ(call.params.min_tokens, 2u);
  EXPECT_TRUE(call.params.ignore_eos);
  EXPECT_EQ(call.text.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(call.params.stop_token_ids, std::vector<TokenId>{5});
  ASSERT_EQ(call.params.logit_bias.size(), 2u);
  EXPECT_EQ(call.params.logit_bias[0].id, 3);
  EXPECT_EQ(call.params.logit_bias[1].bias, -100.0f);
  EXPECT_EQ(call.params.logprobs, 2);
  EXPECT_TRUE(call.stream && call.include_usage);
  EXPECT_FALSE(call.text.skip_special_tokens);
  EXPECT_TRUE(call.text.include_stop_in_output);
  EXPECT_EQ(call.model, "m");
  ASSERT_EQ(call.prompts.size(), 2u);
  EXPECT_EQ(std::get<std::vector<TokenId>>(call.prompts[0]), (std::vector<TokenId>{1, 2}));
}

TEST(GenerationRequest, Prompt_TakesItsFourShapes) {
  EXPECT_EQ(good(kCompletion, R"("prompt":["a","b","c"])").prompts.size(), 3u);
  EXPECT_EQ(good(kCompletion, R"("prompt":[1,2,3])").prompts.size(), 1u);
  EXPECT_EQ(good(kCompletion, R"("prompt":[[1],[2]])").prompts.size(), 2u);
}

TEST(GenerationRequest, ChatFields_ReachTheCall) {
  const GenerationCall call = good(kChat, R"("max_tokens":3,"max_completion_tokens":5,"logprobs":true,"top_logprobs":4,
      "add_generation_prompt":false,"chat_template_kwargs":{"enable_thinking":false},
      "messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":null}])");
  EXPECT_EQ(call.params.max_tokens, 5u);
  EXPECT_EQ(call.params.logprobs, 4);
  EXPECT_FALSE(call.chat.add_generation_prompt);
  EXPECT_EQ(call.chat.variables.dump(), R"({"enable_thinking":false})");
  EXPECT_EQ(call.chat.messages[1]["content"], "");
}

TEST(GenerationRequest, Priority_NeedsThePolicy) {
  EXPECT_EQ(good(kCompletion, R"("priority":-3)", {1000, 512, true}).priority, -3);
  EXPECT_EQ(good(kCompletion, R"("priority":0)").priority, 0);
}

TEST(GenerationRequest, PromptsTimesN_IsBounded) {
  std::string prompts = "\"n\":128,\"prompt\":[\"a\"";
  for (size_t i = 0; i < kSequencesPerCallMax / 128; ++i) prompts += ",\"a\"";
  GenerationCall call;
  const MaybeError error = parse_generation_call(kCompletion, body_of(kCompletion, prompts + "]"), kLimits, call);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "n");
}

TEST(TokenizeRequest, Shapes_AreChecked) {
  TokenizeCall call;
  EXPECT_FALSE(parse_tokenize_call(R"({"prompt":"a","return_token_strs":true})", call));
  EXPECT_TRUE(call.return_token_strs && call.add_special_tokens);
  TokenizeCall chat;
  EXPECT_FALSE(parse_tokenize_call(R"({"messages":[{"role":"user","content":"a"}]})", chat));
  EXPECT_FALSE(chat.prompt);
  for (const char* bad :
       {"{}", R"({"prompt":1})", R"({"prompt":"a","messages":[]})", R"({"prompt":"a","add_special_tokens":1})"}) {
    TokenizeCall out;
    EXPECT_TRUE(parse_tokenize_call(bad, out)) << bad;
  }
  DetokenizeCall ids;
  EXPECT_FALSE(parse_detokenize_call(R"({"tokens":[1,2]})", 10, ids));
  EXPECT_TRUE(parse_detokenize_call(R"({"tokens":[10]})", 10, ids));
  EXPECT_TRUE(parse_detokenize_call("{}", 10, ids));
}

}  // namespace
}  // namespace motley
