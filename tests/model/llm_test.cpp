// motley/llm.hpp over a tiny random model: whole answers, pieces, cancelling, errors. That the tokens are the model's
// is shown elsewhere; here, that every way to ask gives the same ones.
#include "motley/llm.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "llm/sampling.hpp"
#include "model/random_model.hpp"

namespace motley {
namespace {

using testing::RandomModel;

class LlmTest : public ::testing::Test {
 protected:
  LlmOptions options() const {
    LlmOptions made;
    made.model = model_.path();
    made.kv_cache_memory_bytes = 8u << 20;
    made.max_num_seqs = 4;
    made.seed = 1;
    return made;
  }
  // The code of the Error that `work` must throw.
  template <typename Work>
  static motley_code code_of(Work work) {
    try {
      work();
    } catch (const Error& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
      return error.code();
    }
    return MOTLEY_OK;
  }
  RandomModel model_{make_model::ModelSpec{}};
  LLM llm_{options()};
};

SamplingParams greedy(uint32_t tokens) { return {.temperature = 0, .max_tokens = tokens, .ignore_eos = true}; }

TEST_F(LlmTest, Batch_GivesWhatEachPromptGivesAlone) {
  const std::vector<Prompt> prompts = {"one", "two three", std::vector<TokenId>{40, 41, 42}, "four", "five", "six"};
  const auto together = llm_.generate(prompts, greedy(6));
  ASSERT_EQ(together.size(), prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(together[i].index, i);
    EXPECT_EQ(together[i].prompt, prompts[i].text);
    EXPECT_TRUE(together[i].finished);
    ASSERT_EQ(together[i].outputs.size(), 1u);
    EXPECT_EQ(together[i].outputs[0].token_ids.size(), 6u);
    EXPECT_EQ(together[i].outputs[0].finish_reason, "length");
    EXPECT_EQ(together[i].outputs[0].token_ids, llm_.generate({prompts[i]}, greedy(6))[0].outputs[0].token_ids);
  }
}

TEST_F(LlmTest, Pieces_MakeTheWhole) {
  SamplingParams params = greedy(20);
  params.n = 2;
  params.temperature = 1;
  params.seed = 3;
  params.logprobs = 2;
  const std::vector<Prompt> prompts = {"a", "b", "c"};
  motley::Run run = llm_.start(prompts, params);
  std::vector<std::vector<CompletionOutput>> joined(3, std::vector<CompletionOutput>(2));
  while (const auto news = run.next()) {
    EXPECT_FALSE(news->outputs.empty());
    for (const CompletionOutput& part : news->outputs) {
      CompletionOutput& whole = joined.at(news->index).at(part.index);
      EXPECT_EQ(whole.finish_reason, "") << "a piece after the last";
      EXPECT_EQ(part.logprobs->size(), part.token_ids.size());
      whole.text += part.text;
      whole.token_ids.insert(whole.token_ids.end(), part.token_ids.begin(), part.token_ids.end());
      whole.finish_reason = part.finish_reason;
    }
  }
  EXPECT_TRUE(run.done());
  EXPECT_EQ(run.next(), std::nullopt);
  const auto outputs = run.outputs();
  const auto again = llm_.generate(prompts, params);
  for (size_t i = 0; i < 3; ++i) {
    for (size_t choice = 0; choice < 2; ++choice) {
      EXPECT_EQ(joined[i][choice].text, outputs[i].outputs[choice].text);
      EXPECT_EQ(joined[i][choice].token_ids, outputs[i].outputs[choice].token_ids);
      EXPECT_EQ(joined[i][choice].finish_reason, "length");
      EXPECT_EQ(joined[i][choice].token_ids, again[i].outputs[choice].token_ids);
    }
    EXPECT_NE(joined[i][0].token_ids, joined[i][1].token_ids);
  }
}

TEST_F(LlmTest, MoreAnswersThanAreUnderWayAtOnce_AllCome) {
  SamplingParams params = greedy(1);
  params.n = 128;
  const auto outputs = llm_.generate(std::vector<Prompt>(12, "x"), params);  // 1536, beyond one run's 1024
  ASSERT_EQ(outputs.size(), 12u);
  for (const RequestOutput& output : outputs) {
    EXPECT_TRUE(output.finished);
    for (const CompletionOutput& answer : output.outputs) EXPECT_EQ(answer.token_ids.size(), 1u);
  }
}

TEST_F(LlmTest, CancelFromAnotherThread_EndsEveryAnswer) {
  SamplingParams params = greedy(400);
  params.n = 128;
  motley::Run run = llm_.start(std::vector<Prompt>(10, "long"), params);  // of 1280 some are not yet submitted
  ASSERT_TRUE(run.next());
  std::thread other([&] { run.cancel(); });
  while (run.next()) {
  }
  other.join();
  size_t aborted = 0;
  for (const RequestOutput& output : run.outputs()) {
    EXPECT_TRUE(output.finished);
    aborted += static_cast<size_t>(std::count_if(output.outputs.begin(), output.outputs.end(),
                                                 [](const auto& answer) { return answer.finish_reason == "abort"; }));
  }
  EXPECT_GT(aborted, 1000u);
  EXPECT_EQ(llm_.generate({"after"}, greedy(2))[0].outputs[0].token_ids.size(), 2u);
}

TEST_F(LlmTest, RunThatIsDropped_MakesRoomForOthers) {
  for (int i = 0; i < 8; ++i) llm_.start({"dropped"}, greedy(400));
  EXPECT_EQ(llm_.generate({"kept"}, greedy(3))[0].outputs[0].token_ids.size(), 3u);
}

TEST_F(LlmTest, RunOutlivesItsLlm) {
  std::optional<motley::Run> run;
  {
    LLM other(options());
    run.emplace(other.start({"x"}, greedy(5)));
  }
  while (!run->wait_for(std::chrono::seconds(1))) {
  }
  EXPECT_EQ(run->outputs()[0].outputs[0].token_ids.size(), 5u);
}

TEST_F(LlmTest, ThreadsOfOneLlm_GetTheirOwnAnswers) {
  const std::vector<Prompt> prompts = {"one", "two", "three", "four"};
  const auto expected = llm_.generate(prompts, greedy(8));
  std::vector<std::vector<TokenId>> found(prompts.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < prompts.size(); ++i) {
    threads.emplace_back([&, i] { found[i] = llm_.generate({prompts[i]}, greedy(8))[0].outputs[0].token_ids; });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(found[i], expected[i].outputs[0].token_ids);
}

TEST_F(LlmTest, StopToken_EndsTheAnswerAndIsNamed) {
  const auto whole = llm_.generate({"x"}, greedy(8))[0].outputs[0];
  SamplingParams params = greedy(8);
  params.stop_token_ids = {whole.token_ids[3]};
  const auto cut = llm_.generate({"x"}, params)[0].outputs[0];
  const auto at = std::find(whole.token_ids.begin(), whole.token_ids.end(), whole.token_ids[3]);
  EXPECT_EQ(cut.token_ids, std::vector<TokenId>(whole.token_ids.begin(), at + 1));
  EXPECT_EQ(cut.finish_reason, "stop");
  EXPECT_EQ(cut.stop_token, whole.token_ids[3]);
}

TEST_F(LlmTest, SeedOfTheLlm_RepeatsItsAnswersInOrder) {
  SamplingParams params = greedy(8);
  params.temperature = 1;
  std::vector<std::vector<TokenId>> drawn[2];
  for (auto& list : drawn) {
    LLM other(options());
    for (const RequestOutput& output : other.generate({"x", "x"}, params)) list.push_back(output.outputs[0].token_ids);
  }
  EXPECT_EQ(drawn[0], drawn[1]);
  EXPECT_NE(drawn[0][0], drawn[0][1]);
}

TEST_F(LlmTest, TokensAndText_GoBothWays) {
  const auto ids = llm_.tokenize("h\u00E9 <|im_end|>");
  EXPECT_EQ(llm_.detokenize(ids), "h\u00E9 ");
  EXPECT_EQ(llm_.detokenize(ids, false), "h\u00E9 <|im_end|>");
  EXPECT_EQ(llm_.info().architecture, "llama");
  EXPECT_LE(llm_.info().max_model_len, llm_.info().context_length);
}

TEST_F(LlmTest, ChatOptions_ReachTheTemplate) {
  const std::vector<Message> messages = {{"user", "hi <|im_end|>"}, {"assistant", "The"}};
  ChatOptions chat;
  chat.chat_template =
      "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
      "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{% for d in documents or [] %}{{ d.text }};"
      "{% endfor %}{{ mood }}{% if add_generation_prompt %}>{% endif %}";
  chat.tools = R"([{"type":"function","function":{"name":"look"}}])";
  chat.documents = R"([{"text":"page"}])";
  chat.template_variables = R"({"mood":"calm"})";
  const Prompt prompt = llm_.chat_prompt(messages, chat);
  EXPECT_EQ(prompt.text, "user:hi <|im_end|><|im_end|>assistant:The<|im_end|>look;page;calm>");
  const TokenId end = llm_.tokenize("<|im_end|>", false).at(0);
  EXPECT_EQ(std::count(prompt.token_ids.begin(), prompt.token_ids.end(), end), 2) << "the user's must be words";
  chat.add_generation_prompt = false;
  chat.continue_final_message = true;
  EXPECT_EQ(llm_.chat_prompt(messages, chat).text, "user:hi <|im_end|><|im_end|>assistant:The");
  EXPECT_EQ(llm_.chat(messages, greedy(2), chat).outputs[0].token_ids.size(), 2u);
}

TEST_F(LlmTest, ChatOptionsThatCannotBe_AreRefused) {
  const auto refused = [&](const ChatOptions& chat) {
    return code_of([&] { llm_.chat_prompt({{"user", "hi"}}, chat); }) == MOTLEY_INVALID_ARGUMENT;
  };
  const std::string source = "{{ messages[0].content }}";
  EXPECT_FALSE(refused({.chat_template = source}));
  EXPECT_TRUE(refused({.chat_template = "{% for %}"}));
  EXPECT_TRUE(refused({.continue_final_message = true, .chat_template = source}));
  EXPECT_TRUE(refused({.tools = "[", .chat_template = source}));
  EXPECT_TRUE(refused({.tools = "[5]", .chat_template = source}));
  EXPECT_TRUE(refused({.documents = "{}", .chat_template = source}));
  EXPECT_TRUE(refused({.template_variables = "[]", .chat_template = source}));
  EXPECT_TRUE(refused({.template_variables = R"({"bos_token":"x"})", .chat_template = source}));
}

TEST_F(LlmTest, DefaultSampling_IsWhatTheModelAdvises) {
  EXPECT_EQ(llm_.default_sampling_params().temperature, 1.0f);  // a GGUF file has no advice
  const auto params = read_sampling_defaults(
      R"({"temperature":0.5,"top_p":0.9,"top_k":20,"min_p":null,"repetition_penalty":1.1,"max_new_tokens":7})");
  ASSERT_TRUE(params.ok()) << params.error().message();
  EXPECT_EQ(params->temperature, 0.5f);
  EXPECT_EQ(params->top_p, 0.9f);
  EXPECT_EQ(params->top_k, 20);
  EXPECT_EQ(params->min_p, 0.0f);
  EXPECT_EQ(params->repetition_penalty, 1.1f);
  EXPECT_EQ(params->max_tokens, 7u);
  EXPECT_EQ(read_sampling_defaults("")->max_tokens, 16u);
  EXPECT_EQ(describe_advice(*params, {}), "temperature 0.5, top_p 0.9, repetition_penalty 1.1, top_k 20, max_tokens 7");
  EXPECT_EQ(describe_advice({}, {}), "");
  for (const char* bad :
       {"{", R"({"temperature":"hot"})", R"({"top_k":1.5})", R"({"top_k":3000000000})", R"({"max_new_tokens":0})"}) {
    EXPECT_EQ(read_sampling_defaults(bad).error().code(), MOTLEY_INVALID_ARGUMENT) << bad;
  }
}

TEST_F(LlmTest, WhatCannotBe_IsRefusedBeforeAnythingRuns) {
  EXPECT_EQ(code_of([&] { llm_.generate({""}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({std::vector<TokenId>{-1}}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({std::vector<TokenId>(5000, 5)}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({"good", ""}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({"x"}, {.n = 0}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({"x"}, {.top_p = 2}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({"x"}, {.max_tokens = 2, .min_tokens = 3}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.generate({"x"}, {.stop = {""}}); }), MOTLEY_INVALID_ARGUMENT);
  for (const size_t params : {0u, 1u, 3u}) {
    EXPECT_EQ(code_of([&] { llm_.start({"x", "y"}, std::vector<SamplingParams>(params)); }), MOTLEY_INVALID_ARGUMENT);
  }
  EXPECT_EQ(code_of([&] { llm_.detokenize({100000}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.chat_prompt_of_json("[{"); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.chat_prompt({}); }), MOTLEY_INVALID_ARGUMENT);
  EXPECT_EQ(code_of([&] { llm_.chat_prompt_of_json(std::string(100, '[')); }), MOTLEY_INVALID_ARGUMENT);
  LlmOptions two = options();
  two.tensor_parallel_size = 2;
  EXPECT_EQ(code_of([&] { LLM other(two); }), MOTLEY_INVALID_ARGUMENT);
  LlmOptions nowhere = options();
  nowhere.model = "/nonexistent";
  EXPECT_EQ(code_of([&] { LLM other(nowhere); }), MOTLEY_NOT_FOUND);
}

}  // namespace
}  // namespace motley
