// How fast one core turns text into token ids:
//   tokenizer_speed FAMILIES.json TEXT
// for every tokenizer of a file that tools/golden/tokenizer_families.py wrote (with --gguf: of real models), TEXT being
// any UTF-8 file: MB/s of the best of five passes, and the tokens. Build, with BUILD a build folder:
//   g++ -O2 -std=c++20 -Iinclude -Isrc benchmarks/tokenizer_speed.cpp -o tokenizer_speed
//     BUILD/src/text/libmotley_text.a BUILD/src/base/libmotley_base.a -lpcre2-8 -lutf8proc -lspdlog -lfmt
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "text/tokenizer_families_testing.hpp"

namespace {

constexpr int kPasses = 5;

double seconds_of_pass(const motley::Tokenizer& tokenizer, const std::string& text, size_t& tokens) {
  const auto start = std::chrono::steady_clock::now();
  tokens = tokenizer.encode(text, false, true).size();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_speed FAMILIES.json TEXT\n");
    return 2;
  }
  std::ifstream families_file(argv[1]), text_file(argv[2], std::ios::binary);
  const nlohmann::json families = nlohmann::json::parse(families_file, nullptr, false);
  const std::string text{std::istreambuf_iterator<char>(text_file), std::istreambuf_iterator<char>()};
  if (!families.is_object() || text.empty()) {
    std::fprintf(stderr, "tokenizer_speed: cannot read %s or %s\n", argv[1], argv[2]);
    return 1;
  }
  std::printf("%zu bytes\n", text.size());
  for (const auto& family : families["families"]) {
    const auto name = family["name"].get<std::string>();
    const auto made = motley::tokenizer_of_family(family);
    if (!made.ok()) {
      std::fprintf(stderr, "tokenizer_speed: %s: %s\n", name.c_str(), made.error().message().c_str());
      return 1;
    }
    size_t tokens = 0;
    double best = seconds_of_pass(**made, text, tokens);
    for (int pass = 1; pass < kPasses; ++pass) best = std::min(best, seconds_of_pass(**made, text, tokens));
    std::printf("%-28s %7.1f MB/s %9zu tokens\n", name.c_str(), static_cast<double>(text.size()) / best / 1e6, tokens);
  }
  return 0;
}
