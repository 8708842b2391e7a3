#include "cli.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <map>

#include "commands.hpp"
#include "config_file.hpp"

namespace motley::apps {
namespace {

// Everything the options write into.
struct Parsed {
  ServeCommand serve;
  CompleteCommand complete;
  ChatCommand chat;
  TokenizeCommand tokenize;
  InspectCommand inspect;
  DevicesCommand devices;
  BenchCommand bench_latency, bench_throughput;
  ConformanceCommand conformance;
  std::string policy = "fcfs", config_file;
  std::vector<std::string> help_words;
};

void add_model_options(CLI::App* app, InstanceOptions& options, Parsed& parsed) {
  app->add_option("model", options.model, "a GGUF file")->required();
  app->add_option("--devices", options.devices, "devices that may be used, e.g. CPU:0")->capture_default_str();
  app->add_option("--max-model-len", options.engine.max_model_len,
                  "longest sequence in tokens; default: the model's context, or what the KV pool holds");
  app->add_option("--max-num-seqs", options.engine.max_num_seqs, "sequences that run at once")->capture_default_str();
  app->add_option("--max-num-batched-tokens", options.engine.max_num_batched_tokens,
                  "tokens of one step; default: as many as keep a step within 200 ms");
  app->add_option("--block-size", options.block_size, "positions of a KV block")->capture_default_str();
  app->add_option("--kv-cache-dtype", options.kv_cache_dtype, "auto, float32, float16, bfloat16 or int8")
      ->capture_default_str();
  app->add_option("--kv-cache-memory-bytes", options.kv_cache_memory_bytes,
                  "size of the KV pool; default: 2 GB or a quarter of the free memory");
  app->add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", options.engine.enable_prefix_caching,
                "share the KV of equal prompt beginnings (on by default)");
  app->add_flag("--enable-chunked-prefill,!--no-enable-chunked-prefill", options.engine.enable_chunked_prefill,
                "compute long prompts in parts (on by default)");
  app->add_option("--scheduling-policy", parsed.policy, "fcfs or priority")
      ->check(CLI::IsMember({"fcfs", "priority"}))
      ->capture_default_str();
  app->add_option("--chat-template", options.chat_template_file, "a Jinja file instead of the model's own template");
  app->add_option("--threads", options.threads, "compute threads; default: one for each core of the device");
  app->add_flag("--deterministic", options.deterministic,
                "bit-identical text under any batching, chunking, cache hit and preemption");
  app->add_option("--config", parsed.config_file, "a TOML file of these options; the command line wins");
}

CLI::App* add_serve(CLI::App& app, Parsed& parsed) {
  ServeCommand& serve = parsed.serve;
  CLI::App* command = app.add_subcommand("serve", "serve a model over the OpenAI API");
  add_model_options(command, serve.instance, parsed);
  command->add_option("--host", serve.host, "address to listen on")->capture_default_str();
  command->add_option("--port", serve.port, "port to listen on; 0 = any free one")->capture_default_str();
  command->add_option("--api-key", serve.api_keys, "key that clients must send; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--served-model-name", serve.served_model_names, "name of the model in the API; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--seed", serve.seed, "seed of requests that give none; default: drawn for each");
  command->add_option("--shutdown-timeout", serve.shutdown_timeout_s, "seconds that running requests get at the end")
      ->capture_default_str();
  return command;
}

CLI::App* add_complete(CLI::App& app, Parsed& parsed) {
  CompleteCommand& complete = parsed.complete;
  CLI::App* command = app.add_subcommand("complete", "continue a text");
  add_model_options(command, complete.instance, parsed);
  command->add_option("--prompt", complete.prompt, "the text");
  command->add_option("--prompt-file", complete.prompt_file, "a file that holds it; - for standard input");
  command->add_option("--max-tokens", complete.max_tokens, "most tokens to generate")->capture_default_str();
  command->add_option("--temperature", complete.temperature, "0 = greedy")->capture_default_str();
  command->add_option("--seed", complete.seed, "seed of the sampling noise; default: drawn");
  command->add_option("--top-p", complete.top_p, "nucleus; 1 = off")->capture_default_str();
  command->add_option("--top-k", complete.top_k, "0 = off")->capture_default_str();
  command->add_option("--min-p", complete.min_p, "0 = off")->capture_default_str();
  command->add_option("--stop", complete.stop, "text that ends the answer; may be repeated")->allow_extra_args(false);
  command->add_option("--logprobs", complete.logprobs, "alternatives to report for each token")
      ->check(CLI::Range(0, MOTLEY_TOP_MAX));
  command->add_flag("--ignore-eos", complete.ignore_eos, "go on after end tokens");
  command->add_flag("--json", complete.json, "one JSON object on one line");
  return command;
}

CLI::App* add_chat(CLI::App& app, Parsed& parsed) {
  ChatCommand& chat = parsed.chat;
  CLI::App* command = app.add_subcommand("chat", "talk with a model in the terminal");
  add_model_options(command, chat.instance, parsed);
  command->add_option("--system-prompt", chat.system_prompt, "first message, of the role system");
  command->add_option("--max-tokens", chat.max_tokens, "most tokens of an answer; default: what the context leaves");
  command->add_option("--temperature", chat.temperature, "0 = greedy")->capture_default_str();
  command->add_option("--top-p", chat.top_p, "nucleus; 1 = off")->capture_default_str();
  command->add_option("--seed", chat.seed, "seed of the sampling noise; default: drawn");
  return command;
}

CLI::App* add_tokenize(CLI::App& app, Parsed& parsed) {
  TokenizeCommand& tokenize = parsed.tokenize;
  CLI::App* command = app.add_subcommand("tokenize", "print the token ids of a text");
  command->add_option("model", tokenize.model, "a GGUF file")->required();
  command->add_option("--prompt", tokenize.prompt, "the text");
  command->add_option("--prompt-file", tokenize.prompt_file, "a file that holds it; - for standard input");
  command->add_flag("--lines", tokenize.lines, "each line by itself: a line of ids per input line");
  return command;
}

CLI::App* add_inspect(CLI::App& app, Parsed& parsed) {
  CLI::App* command = app.add_subcommand("inspect", "say what a model file holds and whether it would run");
  command->add_option("model", parsed.inspect.model, "a GGUF file")->required();
  command->add_flag("--json", parsed.inspect.json, "as JSON");
  return command;
}

CLI::App* add_bench(CLI::App& app, Parsed& parsed, std::map<CLI::App*, std::function<Status()>>& actions) {
  CLI::App* command = app.add_subcommand("bench", "measure a model without a server");
  command->require_subcommand(1);
  for (const bool throughput : {false, true}) {
    BenchCommand& bench = throughput ? parsed.bench_throughput : parsed.bench_latency;
    bench.throughput = throughput;
    CLI::App* kind = throughput ? command->add_subcommand("throughput", "requests and tokens per second of a load")
                                : command->add_subcommand("latency", "time of one fixed batch");
    add_model_options(kind, bench.instance, parsed);
    if (throughput) bench.input_len = 1024;
    kind->add_option("--input-len", bench.input_len, "prompt tokens of a request")->capture_default_str();
    kind->add_option("--output-len", bench.output_len, "tokens generated per request")->capture_default_str();
    kind->add_option("--seed", bench.seed, "seed of the random prompts")->capture_default_str();
    kind->add_option("--output-json", bench.output_json, "file for the results as JSON");
    if (throughput) {
      kind->add_option("--num-prompts", bench.num_prompts, "requests")->capture_default_str();
    } else {
      kind->add_option("--batch-size", bench.batch_size, "requests of the batch")->capture_default_str();
      kind->add_option("--num-iters", bench.num_iters, "counted runs")->capture_default_str();
      kind->add_option("--num-iters-warmup", bench.num_iters_warmup, "runs not counted")->capture_default_str();
    }
    actions[kind] = [&bench] { return apps::bench(bench); };
  }
  return command;
}

// Values of the file for options that the command line did not give.
Status apply_config(CLI::App& command, const std::string& path) {
  ASSIGN_OR_RETURN(const auto entries, read_config_file(path));
  for (const auto& [key, values] : entries) {
    if (key == "config") return invalid_argument("{}: config cannot name another file", path);
    CLI::Option* option = command.get_option_no_throw("--" + key);
    if (option == nullptr) return invalid_argument("{}: unknown option {}", path, key);
    if (option->count() > 0) continue;
    option->add_result(values);
    option->run_callback();
  }
  return ok_status();
}

std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

// The command that the words lead to ("bench", "latency"), the program itself for none, or null.
CLI::App* find_command(CLI::App& app, const std::vector<std::string>& words) {
  CLI::App* at = &app;
  for (const std::string& word : words) {
    const auto commands = at->get_subcommands([&](CLI::App* command) { return command->get_name() == word; });
    if (commands.empty()) return nullptr;
    at = commands.front();
  }
  return at;
}

CLI::App* deepest(CLI::App& app) {
  CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  return at;
}

}  // namespace

Status run_command_line(int argc, char** argv, int64_t started_ns) {
  CLI::App app("Motley serves large language models on whatever compute is there", "motley");
  app.set_version_flag("--version", std::string("motley ") + kVersion);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  Parsed parsed;
  std::map<CLI::App*, std::function<Status()>> actions;
  actions[add_serve(app, parsed)] = [&] { return serve(parsed.serve); };
  actions[add_complete(app, parsed)] = [&] { return complete(parsed.complete, started_ns); };
  actions[add_chat(app, parsed)] = [&] { return chat(parsed.chat); };
  actions[add_tokenize(app, parsed)] = [&] { return tokenize(parsed.tokenize); };
  actions[add_inspect(app, parsed)] = [&] { return inspect(parsed.inspect); };
  add_bench(app, parsed, actions);
  CLI::App* devices_command = app.add_subcommand("devices", "list the devices of this machine");
  devices_command->add_flag("--json", parsed.devices.json, "as JSON");
  actions[devices_command] = [&] { return devices(parsed.devices); };
  CLI::App* conformance_command = app.add_subcommand("conformance", "judge a device plugin");
  conformance_command->add_option("plugin", parsed.conformance.plugin, "a shared library")->required();
  actions[conformance_command] = [&] { return conformance(parsed.conformance); };
  CLI::App* help = app.add_subcommand("help", "explain a command");
  help->add_option("command", parsed.help_words, "the command");
  actions[help] = [&]() -> Status {
    CLI::App* topic = find_command(app, parsed.help_words);
    if (topic == nullptr) return invalid_argument("there is no such command; see motley help");
    std::fputs(topic->help().c_str(), stdout);
    return ok_status();
  };
  try {
    app.parse(argc, argv);
    CLI::App* command = deepest(app);
    if (!parsed.config_file.empty()) RETURN_IF_ERROR(apply_config(*command, parsed.config_file));
    for (InstanceOptions* options : {&parsed.serve.instance, &parsed.complete.instance, &parsed.chat.instance,
                                     &parsed.bench_latency.instance, &parsed.bench_throughput.instance}) {
      options->engine.policy = parsed.policy == "priority" ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
    }
    return actions.at(command)();
  } catch (const CLI::Success& success) {  // --help, --version
    app.exit(success);
    return ok_status();
  } catch (const CLI::ParseError& failure) {
    return invalid_argument("{}; see motley {} --help", one_line(failure.what()), argc > 1 ? argv[1] : "");
  }
}

}  // namespace motley::apps
