// The Python module motley._motley: motley/llm.hpp with Python's values. What users see is the Python around it.
//
// The GIL is released wherever the library may block. Waits go in slices, between which Python gets to see its signals:
// a KeyboardInterrupt cancels the run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <exception>
#include <motley/llm.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr std::chrono::milliseconds kSignalSlice{50};

// A prompt's text and token ids; either may be missing.
using PromptPair = std::pair<std::optional<std::string>, std::vector<motley::TokenId>>;

std::vector<motley::Prompt> prompts_of(const std::vector<PromptPair>& pairs) {
  std::vector<motley::Prompt> prompts(pairs.size());
  for (size_t i = 0; i < pairs.size(); ++i) {
    prompts[i].text = pairs[i].first;
    prompts[i].token_ids = pairs[i].second;
  }
  return prompts;
}

// Bytes of one token need not be UTF-8.
nb::object text_of_bytes(const std::string& bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (text == nullptr) throw nb::python_error();
  return nb::steal(text);
}

nb::object logprobs_of(const motley::CompletionOutput& output) {
  if (!output.logprobs) return nb::none();
  nb::list list;
  for (const auto& token : *output.logprobs) {
    nb::list entries;
    for (const motley::Logprob& entry : token) {
      entries.append(nb::make_tuple(entry.id, entry.logprob, entry.rank, text_of_bytes(entry.decoded_token)));
    }
    list.append(entries);
  }
  return list;
}

nb::object stop_reason_of(const motley::CompletionOutput& output) {
  if (output.stop_string) return nb::cast(*output.stop_string);
  return nb::cast(output.stop_token);
}

// (index, text, token_ids, cumulative_logprob, logprobs, finish_reason, stop_reason)
nb::tuple completion_of(const motley::CompletionOutput& output) {
  const std::optional<std::string> finish_reason =
      output.finish_reason.empty() ? std::nullopt : std::optional(output.finish_reason);
  return nb::make_tuple(output.index, output.text, output.token_ids, output.cumulative_logprob, logprobs_of(output),
                        finish_reason, stop_reason_of(output));
}

// (index, prompt, prompt_token_ids, completions, num_cached_tokens, finished)
nb::tuple request_of(const motley::RequestOutput& output) {
  nb::list completions;
  for (const auto& completion : output.outputs) completions.append(completion_of(completion));
  return nb::make_tuple(output.index, output.prompt, output.prompt_token_ids, completions, output.num_cached_tokens,
                        output.finished);
}

// Calls step(), which waits for a slice at most and says whether that was enough, until it is.
template <typename Step>
void wait_in_slices(motley::Run& run, Step step) {
  for (;;) {
    bool enough = false;
    {
      const nb::gil_scoped_release release;
      enough = step();
    }
    if (enough) return;
    if (PyErr_CheckSignals() == 0) continue;
    run.cancel();
    throw nb::python_error();
  }
}

nb::list whole_answers(motley::Run& run) {
  wait_in_slices(run, [&] { return run.wait_for(kSignalSlice); });
  nb::list list;
  for (const motley::RequestOutput& output : run.outputs()) list.append(request_of(output));
  return list;
}

nb::object next_piece(motley::Run& run) {
  std::optional<motley::RequestOutput> news;
  wait_in_slices(run, [&] {
    news = run.next_for(kSignalSlice);
    return news || run.done();
  });
  return news ? nb::object(request_of(*news)) : nb::none();
}

// motley.Error or the subclass for its code.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const motley::Error& error) {
    const nb::object made = nb::module_::import_("motley.errors")
                                .attr("error_of_code")(static_cast<int>(error.code()), text_of_bytes(error.what()));
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
  }
}

void bind_options(nb::module_& module) {
  using motley::LlmOptions;
  nb::class_<LlmOptions>(module, "LlmOptions")
      .def(nb::init<>())
      .def_rw("model", &LlmOptions::model)
      .def_rw("devices", &LlmOptions::devices)
      .def_rw("device_map", &LlmOptions::device_map)
      .def_rw("tensor_parallel_size", &LlmOptions::tensor_parallel_size)
      .def_rw("max_model_len", &LlmOptions::max_model_len)
      .def_rw("max_num_seqs", &LlmOptions::max_num_seqs)
      .def_rw("max_num_batched_tokens", &LlmOptions::max_num_batched_tokens)
      .def_rw("block_size", &LlmOptions::block_size)
      .def_rw("quality", &LlmOptions::quality)
      .def_rw("kv_cache_dtype", &LlmOptions::kv_cache_dtype)
      .def_rw("kv_cache_memory_bytes", &LlmOptions::kv_cache_memory_bytes)
      .def_rw("enable_prefix_caching", &LlmOptions::enable_prefix_caching)
      .def_rw("enable_chunked_prefill", &LlmOptions::enable_chunked_prefill)
      .def_rw("threads", &LlmOptions::threads)
      .def_rw("deterministic", &LlmOptions::deterministic)
      .def_rw("chat_template", &LlmOptions::chat_template)
      .def_rw("seed", &LlmOptions::seed);
}

void bind_params(nb::module_& module) {
  using motley::SamplingParams;
  nb::class_<SamplingParams>(module, "SamplingParams")
      .def(nb::init<>())
      .def_rw("n", &SamplingParams::n)
      .def_rw("temperature", &SamplingParams::temperature)
      .def_rw("top_p", &SamplingParams::top_p)
      .def_rw("top_k", &SamplingParams::top_k)
      .def_rw("min_p", &SamplingParams::min_p)
      .def_rw("presence_penalty", &SamplingParams::presence_penalty)
      .def_rw("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_rw("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_rw("seed", &SamplingParams::seed)
      .def_rw("max_tokens", &SamplingParams::max_tokens)
      .def_rw("min_tokens", &SamplingParams::min_tokens)
      .def_rw("ignore_eos", &SamplingParams::ignore_eos)
      .def_rw("stop", &SamplingParams::stop)
      .def_rw("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_rw("include_stop_str_in_output", &SamplingParams::include_stop_str_in_output)
      .def_rw("skip_special_tokens", &SamplingParams::skip_special_tokens)
      .def_rw("logit_bias", &SamplingParams::logit_bias)
      .def_rw("logprobs", &SamplingParams::logprobs);
}

void bind_chat_options(nb::module_& module) {
  using motley::ChatOptions;
  nb::class_<ChatOptions>(module, "ChatOptions")
      .def(nb::init<>())
      .def_rw("add_generation_prompt", &ChatOptions::add_generation_prompt)
      .def_rw("continue_final_message", &ChatOptions::continue_final_message)
      .def_rw("tools", &ChatOptions::tools)
      .def_rw("documents", &ChatOptions::documents)
      .def_rw("template_variables", &ChatOptions::template_variables)
      .def_rw("chat_template", &ChatOptions::chat_template);
}

void bind_info(nb::module_& module) {
  using motley::ModelInfo;
  nb::class_<ModelInfo> info(module, "ModelInfo");
  std::vector<const char*> names;
  const auto field = [&](const char* name, auto member) {
    info.def_ro(name, member);
    names.push_back(name);
  };
  field("name", &ModelInfo::name);
  field("architecture", &ModelInfo::architecture);
  field("device", &ModelInfo::device);
  field("layers", &ModelInfo::layers);
  field("hidden", &ModelInfo::hidden);
  field("heads", &ModelInfo::heads);
  field("kv_heads", &ModelInfo::kv_heads);
  field("head_dim", &ModelInfo::head_dim);
  field("ffn", &ModelInfo::ffn);
  field("vocab_size", &ModelInfo::vocab_size);
  field("context_length", &ModelInfo::context_length);
  field("max_model_len", &ModelInfo::max_model_len);
  field("has_chat_template", &ModelInfo::has_chat_template);
  field("bos_token_id", &ModelInfo::bos_token_id);
  field("eos_token_id", &ModelInfo::eos_token_id);
  info.def("__repr__", [names](nb::handle self) {
    std::string text = "ModelInfo(";
    for (const char* name : names) {
      if (name != names.front()) text += ", ";
      text += name;
      text += '=';
      text += nb::repr(self.attr(name)).c_str();
    }
    return text + ")";
  });
}

motley::Run start(motley::LLM& llm, const std::vector<PromptPair>& prompts, const motley::SamplingParams& params) {
  const nb::gil_scoped_release release;
  return llm.start(prompts_of(prompts), params);
}

motley::Run start_each(motley::LLM& llm, const std::vector<PromptPair>& prompts,
                       const std::vector<motley::SamplingParams>& params) {
  const nb::gil_scoped_release release;
  return llm.start(prompts_of(prompts), params);
}

PromptPair chat_prompt(const motley::LLM& llm, std::string_view messages_json, const motley::ChatOptions& options) {
  const nb::gil_scoped_release release;
  motley::Prompt prompt = llm.chat_prompt_of_json(messages_json, options);
  return {std::move(prompt.text), std::move(prompt.token_ids)};
}

}  // namespace

NB_MODULE(_motley, module) {
  nb::register_exception_translator(translate);
  bind_options(module);
  bind_params(module);
  bind_chat_options(module);
  bind_info(module);
  nb::class_<motley::Run>(module, "Run")
      .def("wait", &whole_answers)
      .def("next", &next_piece)
      .def("cancel", &motley::Run::cancel, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<motley::LLM>(module, "LLM")
      .def(nb::init<const motley::LlmOptions&>(), "options"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("start", &start, "prompts"_a, "params"_a)
      .def("start_each", &start_each, "prompts"_a, "params"_a)
      .def("chat_prompt", &chat_prompt, "messages_json"_a, "options"_a)
      .def("default_sampling_params", &motley::LLM::default_sampling_params)
      .def("tokenize", &motley::LLM::tokenize, "text"_a, "add_special_tokens"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("detokenize", &motley::LLM::detokenize, "token_ids"_a, "skip_special_tokens"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("info", &motley::LLM::info);
}
