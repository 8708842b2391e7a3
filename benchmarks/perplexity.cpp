// Perplexity of a model on a text, on one device; benchmarks/perplexity compares devices with it:
//   perplexity MODEL TEXT [DEVICE [VARIANT [KV [WINDOWS [WINDOW]]]]]
// e.g. `perplexity model.gguf kjv.txt CPU:0 avx2 f16 100 512`; VARIANT "" is the best kernels of the machine, KV one of
// f32, f16, bf16, int8. The text's tokens are cut into WINDOW tokens at WINDOWS places, evenly spread from its first
// token to its last; a window begins with what the model wants before a text (BOS), and each of its other tokens counts
// but the first, predicted from those before it. Prints one JSON object: what ran, tokens counted, nll (mean, nats),
// perplexity, and nll_sums, one for each window.
//   tools/build release perplexity plugins
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/check.hpp"
#include "llm/instance.hpp"
#include "llm/text_model.hpp"
#include "model/forward.hpp"

namespace motley::testing {
namespace {

struct Arguments {
  std::string model, text, device = "CPU:0", variant, kv = "f16";
  uint32_t windows = 100, window = 512;
};

// A whole number from 2 up, or the end with a message.
uint32_t read_count(const char* text) {
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 10);
  if (*end != 0 || value < 2 || value > 1'000'000) {
    std::fprintf(stderr, "perplexity: %s is not a whole number from 2 to 1000000\n", text);
    std::exit(2);
  }
  return static_cast<uint32_t>(value);
}

Arguments read_arguments(int argc, char** argv) {
  if (argc < 3 || argc > 8) {
    std::fprintf(stderr, "usage: perplexity MODEL TEXT [DEVICE [VARIANT [KV [WINDOWS [WINDOW]]]]]\n");
    std::exit(2);
  }
  Arguments arguments;
  arguments.model = argv[1];
  arguments.text = argv[2];
  if (argc > 3) arguments.device = argv[3];
  if (argc > 4) arguments.variant = argv[4];
  if (argc > 5) arguments.kv = argv[5];
  if (argc > 6) arguments.windows = read_count(argv[6]);
  if (argc > 7) arguments.window = read_count(argv[7]);
  return arguments;
}

Result<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || !text) return invalid_argument("{}: cannot be read", path);
  return text.str();
}

// The windows' tokens, `window` each: a beginning, then a stretch of the text.
Result<std::vector<std::vector<TokenId>>> windows_of(const Tokenizer& tokenizer, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::string text, read_text(arguments.text));
  const std::vector<TokenId> tokens = tokenizer.encode(text, false, false), begin = tokenizer.encode("", true, false);
  if (begin.size() + 1 >= arguments.window) return invalid_argument("windows of {} are too short", arguments.window);
  const size_t length = arguments.window - begin.size();
  if (tokens.size() < length * arguments.windows) {
    return invalid_argument("{}: {} tokens; {} windows want {}", arguments.text, tokens.size(), arguments.windows,
                            length * arguments.windows);
  }
  std::vector<std::vector<TokenId>> windows;
  for (size_t w = 0; w < arguments.windows; ++w) {
    const size_t at = w * (tokens.size() - length) / (arguments.windows - 1);
    windows.push_back(begin);
    windows.back().insert(windows.back().end(), tokens.begin() + static_cast<std::ptrdiff_t>(at),
                          tokens.begin() + static_cast<std::ptrdiff_t>(at + length));
  }
  return windows;
}

// -log p(id) by one row of logits.
double nll_of(const float* row, size_t vocab, TokenId id) {
  const float top = *std::max_element(row, row + vocab);
  double sum = 0;
  for (size_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - top);
  return std::log(sum) + top - row[id];
}

// Over the predictions of ids[first] to the last; rows shared among the machine's threads.
double nll_sum_of(const std::vector<float>& logits, size_t vocab, const std::vector<TokenId>& ids, size_t first) {
  std::vector<double> nll(ids.size());
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  {
    std::vector<std::jthread> team;
    for (size_t t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        for (size_t p = first + t; p < ids.size(); p += threads)
          nll[p] = nll_of(logits.data() + (p - 1) * vocab, vocab, ids[p]);
      });
    }
  }
  double sum = 0;
  for (const double value : nll) sum += value;
  return sum;
}

using Windows = std::vector<std::vector<TokenId>>;

// Adds what the device makes of them to what is printed.
Status measure(const Model& model, const Arguments& arguments, const Windows& windows, size_t first,
               nlohmann::ordered_json* seen) {
  ForwardOptions options;
  options.device = arguments.device;
  options.variant = arguments.variant;
  options.threads = std::thread::hardware_concurrency();
  options.positions_max = arguments.window;
  ASSIGN_OR_RETURN(options.kv_dtype, parse_kv_dtype(arguments.kv));
  ASSIGN_OR_RETURN(const auto forward, Forward::create(model, options));
  std::vector<double> sums;
  double total = 0;
  for (const auto& ids : windows) {
    ASSIGN_OR_RETURN(const std::vector<float> logits, forward->logits(ids));
    sums.push_back(nll_sum_of(logits, model.config().vocab_size, ids, first));
    total += sums.back();
    std::fprintf(stderr, "\rperplexity: window %zu of %zu", sums.size(), windows.size());
  }
  std::fprintf(stderr, "\n");
  const size_t counted = windows.size() * (arguments.window - first);
  (*seen)["kernels"] = forward->kernels();
  (*seen)["kv"] = arguments.kv;
  (*seen)["perplexity"] = std::exp(total / static_cast<double>(counted));
  (*seen)["nll_sums"] = sums;
  return ok_status();
}

Status run(const Arguments& arguments) {
  ASSIGN_OR_RETURN(const TextModel text, TextModel::load(arguments.model));
  ASSIGN_OR_RETURN(const Windows windows, windows_of(*text.tokenizer, arguments));
  const size_t first = text.tokenizer->encode("", true, false).size() + 1;
  nlohmann::ordered_json seen = {{"device", arguments.device},
                                 {"counted", windows.size() * (arguments.window - first)},
                                 {"first", first},
                                 {"ids", windows}};
  if (arguments.device != "-") RETURN_IF_ERROR(measure(*text.model, arguments, windows, first, &seen));
  std::printf("%s\n", seen.dump().c_str());
  return ok_status();
}

}  // namespace
}  // namespace motley::testing

int main(int argc, char** argv) {
  const motley::Status status = motley::testing::run(motley::testing::read_arguments(argc, argv));
  if (!status.ok()) std::fprintf(stderr, "perplexity: %s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
