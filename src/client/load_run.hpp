// One run: prompts sent to a server when they arrive, each answer streamed and timed.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "client/answer_reader.hpp"
#include "client/http_client.hpp"
#include "client/prompts.hpp"
#include "client/request_record.hpp"

namespace motley::client {

struct LoadOptions {
  ApiKind kind = ApiKind::kCompletion;
  std::string target = "/v1/completions";
  std::string model;
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();  // further fields of every request; they win
  bool ignore_eos = false;
  uint32_t max_concurrency = 0;  // 0: no bound. Above it requests wait in the client, in the order of their arrival
  // Called in run_load() after each request's end.
  std::function<void(uint32_t completed, uint32_t failed)> on_progress;
};

// The body of one request.
std::string request_body(const LoadOptions& options, const Prompt& prompt);

struct LoadResult {
  std::vector<RequestRecord> records;  // in the order of the prompts
  double duration_s = 0;               // to the end of the last answer
};

// Runs the client until every request has ended; what fails is in its record. `arrivals_s`: as arrival_times() gives
// them, one for each prompt.
LoadResult run_load(HttpClient& client, const LoadOptions& options, std::span<const Prompt> prompts,
                    std::span<const double> arrivals_s);

}  // namespace motley::client
