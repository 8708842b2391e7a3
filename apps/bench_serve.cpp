#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/log.hpp"
#include "client/http_client.hpp"
#include "client/load_run.hpp"
#include "client/metrics.hpp"
#include "client/report.hpp"
#include "client/vocabulary.hpp"
#include "commands.hpp"
#include "llm/text_model.hpp"

namespace motley::apps {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr size_t kErrorLinesMax = 10;
constexpr size_t kModelNamesShownMax = 8;
constexpr double kReadyCheckPeriod_s = 1;
constexpr int64_t kProgressPeriod_ns = 100'000'000;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool read_number(const std::string& text, double low, double high, double* number) {
  const char* end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data(), end, *number);
  return failure == std::errc() && stop == end && *number >= low && *number <= high;
}

// "KEY=VALUE" of an option.
Result<std::pair<std::string, std::string>> key_and_value(const char* option, const std::string& text) {
  const size_t at = text.find('=');
  if (at == std::string::npos || at == 0) return invalid_argument("{}: {} is not KEY=VALUE", option, text);
  return std::pair(text.substr(0, at), text.substr(at + 1));
}

Result<client::Goodput> read_goodput(const std::vector<std::string>& values) {
  client::Goodput goodput;
  const std::pair<const char*, std::optional<double>*> fields[] = {
      {"ttft", &goodput.ttft_ms}, {"tpot", &goodput.tpot_ms}, {"e2el", &goodput.e2el_ms}};
  for (const std::string& value : values) {
    for (const std::string& item : split(value, ',')) {
      const size_t at = std::min(item.find(':'), item.size());
      const auto* field = std::find_if(std::begin(fields), std::end(fields),
                                       [&](const auto& known) { return item.substr(0, at) == known.first; });
      double ms = 0;
      if (field == std::end(fields) || at == item.size() || !read_number(item.substr(at + 1), 0, 1e12, &ms)) {
        return invalid_argument("--goodput: {} is not ttft:MS, tpot:MS or e2el:MS", item);
      }
      *field->second = ms;
    }
  }
  return goodput;
}

// How a run is measured and told.
struct Measure {
  client::MetricsOptions metrics;
  client::ReportOptions report;
};

Result<Measure> read_measure(const BenchServeCommand& command) {
  Measure measure;
  measure.metrics.percentiles.clear();
  for (const std::string& item : split(command.metric_percentiles, ',')) {
    double percent = 0;
    if (!read_number(item, 0, 100, &percent)) {
      return invalid_argument("--metric-percentiles: {} is not a number from 0 to 100", item);
    }
    measure.metrics.percentiles.push_back(percent);
  }
  for (const std::string& item : split(command.percentile_metrics, ',')) {
    auto metric = client::find_metric(item);
    if (!metric.ok()) return metric.error().annotate("--percentile-metrics");
    measure.report.metrics.push_back(*metric);
  }
  ASSIGN_OR_RETURN(measure.metrics.goodput, read_goodput(command.goodput));
  measure.report.arrivals = command.arrivals;
  measure.report.max_concurrency = command.max_concurrency;
  measure.report.percentiles = measure.metrics.percentiles;
  measure.report.goodput = measure.metrics.goodput.any();
  return measure;
}

bool is_chat(const std::string& endpoint) { return endpoint.ends_with("chat/completions"); }

Result<client::LoadOptions> read_load(const BenchServeCommand& command) {
  client::LoadOptions load;
  const bool chat = command.backend == "openai-chat";
  load.target = !command.endpoint.empty() ? command.endpoint : chat ? "/v1/chat/completions" : "/v1/completions";
  if (!load.target.starts_with('/') || !load.target.ends_with("completions") ||
      load.target.find_first_of(" \t\r\n") != std::string::npos) {
    return invalid_argument("--endpoint: {} is no path that ends with completions", load.target);
  }
  if (chat && !is_chat(load.target)) {
    return invalid_argument("--endpoint: {} is none of --backend openai-chat; leave either out", load.target);
  }
  load.kind = is_chat(load.target) ? client::ApiKind::kChat : client::ApiKind::kCompletion;
  load.ignore_eos = command.ignore_eos || command.dataset_name == "random";
  load.max_concurrency = command.max_concurrency;
  const auto take = [&](const char* name, const auto& value) {
    if (value) load.extra[name] = *value;
  };
  take("temperature", command.temperature);
  take("top_p", command.top_p);
  take("top_k", command.top_k);
  take("min_p", command.min_p);
  take("frequency_penalty", command.frequency_penalty);
  take("presence_penalty", command.presence_penalty);
  take("repetition_penalty", command.repetition_penalty);
  if (load.kind == client::ApiKind::kCompletion) take("logprobs", command.logprobs);
  if (load.kind == client::ApiKind::kChat && command.logprobs) {
    load.extra["logprobs"] = true;
    load.extra["top_logprobs"] = *command.logprobs;
  }
  if (!command.extra_body.empty()) {
    const Json extra = Json::parse(command.extra_body, nullptr, false);
    if (!extra.is_object()) return invalid_argument("--extra-body: not a JSON object");
    load.extra.update(extra);
  }
  return load;
}

Result<std::unique_ptr<client::HttpClient>> make_client(const BenchServeCommand& command) {
  client::ServerAddress address{command.host, command.port, ""};
  if (!command.base_url.empty()) {
    auto parsed = client::parse_base_url(command.base_url);
    if (!parsed.ok()) return parsed.error().annotate("--base-url");
    address = *parsed;
  }
  client::HttpHeaders headers;
  if (const auto key = environment("OPENAI_API_KEY")) headers.emplace_back("Authorization", "Bearer " + *key);
  for (const std::string& header : command.headers) {
    ASSIGN_OR_RETURN(auto pair, key_and_value("--header", header));
    headers.push_back(std::move(pair));
  }
  return client::HttpClient::create(std::move(address), std::move(headers));
}

// Asks until the server is there, as long as the command allows.
Result<client::HttpReply> fetch_models(client::HttpClient& client, uint32_t patience_s) {
  const int64_t end_ns = system_clock().now_ns() + int64_t{patience_s} * 1'000'000'000;
  while (true) {
    auto reply = client.fetch("GET", "/v1/models");
    if (reply.ok() && reply->status < 500) return reply;
    if (system_clock().now_ns() >= end_ns) {
      if (reply.ok()) return reply;
      return error(MOTLEY_UNAVAILABLE, "{}; start the server, or say where it is with --host and --port or --base-url",
                   reply.error().message());
    }
    client.after(kReadyCheckPeriod_s, [] {});
    client.run();
  }
}

std::vector<std::string> model_names(const std::string& body) {
  std::vector<std::string> names;
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object() || !json.contains("data") || !json["data"].is_array()) return names;
  for (const Json& model : json["data"]) {
    if (model.is_object() && model.contains("id") && model["id"].is_string()) names.push_back(model["id"]);
  }
  return names;
}

// The model's name in the API.
Result<std::string> choose_model(client::HttpClient& client, const BenchServeCommand& command) {
  ASSIGN_OR_RETURN(const client::HttpReply reply, fetch_models(client, command.ready_check_timeout_s));
  const std::string where = client.address().text() + "/v1/models";
  if (reply.status == 401 || reply.status == 403) {
    return error(MOTLEY_PERMISSION_DENIED, "{}: HTTP {}: {}; set OPENAI_API_KEY to the server's key", where,
                 reply.status, client::error_text(reply.body));
  }
  std::string wanted = command.served_model_name;
  std::error_code ignored;
  if (wanted.empty() && !fs::exists(command.model, ignored)) wanted = command.model;
  const std::vector<std::string> names = reply.status == 200 ? model_names(reply.body) : std::vector<std::string>();
  if (names.empty()) {
    if (!wanted.empty()) return wanted;
    return error(MOTLEY_FAILED_PRECONDITION, "{} names no model (HTTP {}); give --served-model-name", where,
                 reply.status);
  }
  if (wanted.empty()) return names.front();
  if (std::find(names.begin(), names.end(), wanted) != names.end()) return wanted;
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kModelNamesShownMax); ++i) list += (i == 0 ? "" : ", ") + names[i];
  return error(MOTLEY_NOT_FOUND, "{}: the server has no model {}; it has {}", where, wanted, list);
}

Result<std::vector<client::Prompt>> make_prompts(const BenchServeCommand& command, const client::LoadOptions& load,
                                                 client::Vocabulary& vocabulary) {
  if (command.dataset_name == "random") {
    if (!command.dataset_path.empty())
      return invalid_argument("--dataset-path needs --dataset-name sharegpt or custom");
    client::RandomOptions options = command.random;
    options.input_len = command.input_len.value_or(options.input_len);
    options.output_len = command.output_len.value_or(options.output_len);
    return client::random_prompts(options, command.num_prompts, load.kind == client::ApiKind::kChat, command.seed,
                                  vocabulary);
  }
  if (command.dataset_path.empty()) {
    return invalid_argument("--dataset-name {} needs --dataset-path", command.dataset_name);
  }
  const bool sharegpt = command.dataset_name == "sharegpt";
  client::FileOptions options;
  options.kind = sharegpt ? client::DatasetKind::kShareGpt : client::DatasetKind::kCustom;
  options.path = command.dataset_path;
  options.output_len = sharegpt ? command.sharegpt_output_len : command.custom_output_len;
  if (command.output_len) options.output_len = command.output_len;
  options.shuffle = !command.disable_shuffle;
  options.oversample = !command.no_oversample;
  return client::file_prompts(options, command.num_prompts, command.seed, &vocabulary);
}

Status check_connections(const BenchServeCommand& command, size_t prompts) {
  const uint64_t wanted = command.max_concurrency == 0 ? prompts : std::min<uint64_t>(prompts, command.max_concurrency);
  const uint64_t possible = client::connections_possible();
  if (wanted <= possible) return ok_status();
  return error(
      MOTLEY_RESOURCE_EXHAUSTED,
      "{} requests at once need as many connections, and this process may open {}: lower --max-concurrency, or "
      "raise the limit (ulimit -n)",
      wanted, possible);
}

// One line that is written over, on a terminal.
class Progress {
 public:
  Progress(bool wanted, size_t total) : shown_(wanted && isatty(STDERR_FILENO) == 1), total_(total) {}
  ~Progress() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  void operator()(uint32_t completed, uint32_t failed) {
    const int64_t now_ns = system_clock().now_ns();
    if (!shown_ || (now_ns - last_ns_ < kProgressPeriod_ns && completed + failed < total_)) return;
    last_ns_ = now_ns;
    std::fprintf(stderr, "\r\x1b[K%u of %zu requests, %u failed, %.1f s", completed + failed, total_, failed,
                 static_cast<double>(now_ns - begin_ns_) * 1e-9);
    std::fflush(stderr);
  }

 private:
  const bool shown_;
  const size_t total_;
  const int64_t begin_ns_ = system_clock().now_ns();
  int64_t last_ns_ = 0;
};

// Counts what the server does not say.
void count_tokens(std::vector<client::RequestRecord>* records, const std::vector<client::Prompt>& prompts,
                  const Tokenizer* tokenizer) {
  bool by_chunks = false;
  for (size_t i = 0; i < records->size(); ++i) {
    client::RequestRecord& record = (*records)[i];
    if (!record.success || record.server_counted) continue;
    by_chunks |= tokenizer == nullptr;
    if (tokenizer == nullptr) continue;
    record.output_tokens = tokenizer->encode(record.text, false, true).size();
    if (record.prompt_tokens == 0) record.prompt_tokens = tokenizer->encode(prompts[i].text, true, true).size();
  }
  if (by_chunks) log_warning("the server counts no tokens: output tokens are counted by chunks; see --tokenizer");
}

std::string local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof(text), "%Y%m%d-%H%M%S", &parts)};
}

std::string rate_text(double rate) { return std::isinf(rate) ? "inf" : fmt::format("{}", rate); }

std::string ramp_name(client::RampUp ramp) { return ramp == client::RampUp::kLinear ? "linear" : "exponential"; }

// Where the results go; "" = nowhere. The folder is made now: an hour's run is not to end without a place.
Result<std::string> result_path(const BenchServeCommand& command, const std::string& model, const std::string& date) {
  if (!command.save_result && !command.append_result) return std::string();
  std::string name = command.result_filename;
  if (name.empty()) {
    const client::ArrivalOptions& arrivals = command.arrivals;
    const std::string rate = arrivals.ramp_up == client::RampUp::kNone
                                 ? rate_text(arrivals.request_rate) + "qps"
                                 : fmt::format("ramp-up-{}-{}qps-{}qps", ramp_name(arrivals.ramp_up),
                                               arrivals.ramp_up_start_rps, arrivals.ramp_up_end_rps);
    const std::string bound =
        command.max_concurrency == 0 ? "" : fmt::format("-concurrency{}", command.max_concurrency);
    const std::string base = model.substr(model.find_last_of('/') + 1);
    name = fmt::format("{}-{}{}-{}-{}.json", command.label.empty() ? command.backend : command.label, rate, bound, base,
                       date);
  }
  const fs::path path = fs::path(command.result_dir) / name;
  const fs::path folder = path.parent_path().empty() ? fs::path(".") : path.parent_path();
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (access(folder.c_str(), W_OK) != 0 || fs::is_directory(path, failure)) {
    return error(MOTLEY_FAILED_PRECONDITION, "{}: no file can be written there; see --result-dir", path.string());
  }
  return path.string();
}

Status write_results(const BenchServeCommand& command, const std::string& path, const Json& json) {
  std::error_code ignored;
  const bool more = command.append_result && fs::exists(path, ignored) && fs::file_size(path, ignored) > 0;
  std::ofstream file(path, command.append_result ? std::ios::app : std::ios::trunc);
  file << (more ? "\n" : "") << json.dump(-1, ' ', false, Json::error_handler_t::replace);
  file.close();
  if (file.fail()) return error(MOTLEY_DATA_LOSS, "{}: the results cannot be written whole", path);
  return ok_status();
}

// What was asked for, by vLLM's keys.
Result<Json> settings_json(const BenchServeCommand& command, const std::string& model, const std::string& tokenizer,
                           const std::string& date) {
  const client::ArrivalOptions& arrivals = command.arrivals;
  Json json = {{"date", date},
               {"endpoint_type", command.backend},
               {"backend", command.backend},
               {"label", command.label.empty() ? Json(nullptr) : Json(command.label)},
               {"model_id", command.model.empty() ? model : command.model},
               {"tokenizer_id", tokenizer.empty() ? Json(nullptr) : Json(tokenizer)},
               {"num_prompts", command.num_prompts},
               {"dataset_name", command.dataset_name},
               {"seed", command.seed}};
  for (const std::string& item : command.metadata) {
    ASSIGN_OR_RETURN(auto pair, key_and_value("--metadata", item));
    json[pair.first] = pair.second;
  }
  json["request_rate"] = std::isinf(arrivals.request_rate) ? Json("inf") : Json(arrivals.request_rate);
  json["burstiness"] = std::isinf(arrivals.burstiness) ? Json("inf") : Json(arrivals.burstiness);
  json["max_concurrency"] = command.max_concurrency == 0 ? Json(nullptr) : Json(command.max_concurrency);
  if (arrivals.ramp_up != client::RampUp::kNone) {
    json["ramp_up_strategy"] = ramp_name(arrivals.ramp_up);
    json["ramp_up_start_rps"] = arrivals.ramp_up_start_rps;
    json["ramp_up_end_rps"] = arrivals.ramp_up_end_rps;
  }
  return json;
}

// The warm-up and the run itself. An error where no request succeeds.
Result<client::LoadResult> run(const BenchServeCommand& command, client::HttpClient& client, client::LoadOptions load,
                               const std::vector<client::Prompt>& prompts) {
  const std::vector<client::Prompt> warm(command.num_warmups, prompts.front());
  const std::vector<double> at_once(warm.size(), 0.0);
  if (!warm.empty()) {
    const client::LoadResult warmed = client::run_load(client, load, warm, at_once);
    for (const std::string& line : client::error_lines(warmed.records, 1)) log_warning("warm-up: {}", line);
  }
  const auto count = static_cast<uint32_t>(prompts.size());
  const std::vector<double> arrivals_s = client::arrival_times(command.arrivals, count, command.seed);
  client::LoadResult result;
  {
    Progress progress(!command.disable_tqdm, prompts.size());
    load.on_progress = [&](uint32_t completed, uint32_t failed) { progress(completed, failed); };
    result = client::run_load(client, load, prompts, arrivals_s);
  }
  const bool all_failed =
      std::none_of(result.records.begin(), result.records.end(), [](const auto& record) { return record.success; });
  const auto errors = client::error_lines(result.records, kErrorLinesMax);
  if (all_failed) {
    for (size_t i = 1; i < errors.size(); ++i) log_warning("failed: {}", errors[i]);
    return error(MOTLEY_UNAVAILABLE, "{}{}: no request succeeded: {}", client.address().text(), load.target, errors[0]);
  }
  for (const std::string& line : errors) log_warning("failed: {}", line);
  return result;
}

}  // namespace

Status bench_serve(const BenchServeCommand& command) {
  RETURN_IF_ERROR(check(command.arrivals));
  ASSIGN_OR_RETURN(const Measure measure, read_measure(command));
  ASSIGN_OR_RETURN(client::LoadOptions load, read_load(command));
  ASSIGN_OR_RETURN(const auto client, make_client(command));
  ASSIGN_OR_RETURN(load.model, choose_model(*client, command));
  const std::string date = local_time();
  ASSIGN_OR_RETURN(const std::string path, result_path(command, load.model, date));

  std::string tokenizer_path = command.tokenizer;
  std::error_code ignored;
  if (tokenizer_path.empty() && fs::exists(command.model, ignored)) tokenizer_path = command.model;
  TextModel text;
  if (!tokenizer_path.empty()) {
    ASSIGN_OR_RETURN(text, TextModel::load(tokenizer_path));
  }
  ASSIGN_OR_RETURN(Json json, settings_json(command, load.model, tokenizer_path, date));
  const auto vocabulary =
      text.tokenizer ? client::local_vocabulary(*text.tokenizer) : client::server_vocabulary(*client, load.model);
  ASSIGN_OR_RETURN(const auto prompts, make_prompts(command, load, *vocabulary));
  RETURN_IF_ERROR(check_connections(command, prompts.size()));
  log_info("{}{}, model {}: {} requests, dataset {}, seed {}, request rate {}, burstiness {}, max concurrency {}",
           client->address().text(), load.target, load.model, prompts.size(), command.dataset_name, command.seed,
           rate_text(command.arrivals.request_rate), command.arrivals.burstiness,
           command.max_concurrency == 0 ? "none" : std::to_string(command.max_concurrency));

  ASSIGN_OR_RETURN(client::LoadResult result, run(command, *client, load, prompts));
  count_tokens(&result.records, prompts, text.tokenizer.get());
  const client::Metrics metrics = client::measure(result.records, result.duration_s, measure.metrics);
  const std::string report = client::text_report(metrics, measure.report);
  std::fwrite(report.data(), 1, report.size(), stdout);
  json.update(client::json_report(metrics, measure.report, result.records, command.save_detailed));
  return path.empty() ? ok_status() : write_results(command, path, json);
}

}  // namespace motley::apps
