#include "engine/row_counts.hpp"

#include <algorithm>
#include <iterator>
#include <set>

#include "engine/bucket_rounding.hpp"

namespace motley {
namespace {

constexpr uint32_t kFirstCount = 4;
constexpr uint32_t kDecodeParts[] = {1, 1, 2, 2, 4};    // of the sequences in a step, each as often
constexpr uint32_t kPromptParts = 4, kPromptsMost = 8;  // prompts of a quarter of the length, two, ..., eight
// A step of a prompt costs as much as so many rows more: it reads all weights, which so many rows or more would share.
constexpr uint32_t kStepRows = 32;
constexpr uint32_t kLoadMost = 1u << 16;  // sequences, tokens of a prompt; beyond, nothing changes

uint32_t part_of(uint32_t sequences, uint32_t parts) {
  return std::max(1u, (std::min(sequences, kLoadMost) + parts - 1) / parts);
}

// Rows that run for so many that wait, nothing else being in the steps, which count, too.
double prompt_cost(std::span<const uint32_t> counts, uint32_t rows) {
  double run = 0;
  while (rows > 0) {
    const uint32_t wanted = std::min(rows, counts.back());
    const uint32_t step = rounded_rows(counts, {.limit = wanted, .wanted = wanted});
    run += padded_rows(counts, step) + kStepRows;
    rows -= step;
  }
  return run;
}

// Of a row that counts: of prompts about as long as expected, cut to steps as the scheduler does, and of steps that
// decode all sequences, half of them (two steps are under way where a device has a partner) or a quarter, in the
// proportion that the load has of both.
double cost_of(std::span<const uint32_t> counts, const ExpectedLoad& load) {
  const uint32_t prompt = std::min(load.prompt_len, kLoadMost);
  double decode = 0, prompts = 0;
  for (const uint32_t parts : kDecodeParts) {
    const uint32_t rows = part_of(load.concurrency, parts);
    decode += static_cast<double>(padded_rows(counts, rows)) / rows / std::size(kDecodeParts);
  }
  for (uint32_t i = 1; i <= kPromptsMost; ++i) {
    const uint32_t rows = prompt * i / kPromptParts + part_of(load.concurrency, 2);
    prompts += prompt_cost(counts, rows) / rows / kPromptsMost;
  }
  const double generated = load.output_len, read = load.prompt_len;
  return (generated * decode + read * prompts) / std::max(1.0, generated + read);
}

}  // namespace

std::vector<uint32_t> row_counts(uint32_t rows_max, const ExpectedLoad& load) {
  std::set<uint32_t> counts = {rows_max};
  for (uint64_t rows = kFirstCount; rows < rows_max; rows *= 2) counts.insert(static_cast<uint32_t>(rows));
  for (const uint32_t parts : kDecodeParts) {
    const uint32_t rows = part_of(load.concurrency, parts);
    if (rows < rows_max) counts.insert(rows);
  }
  return {counts.begin(), counts.end()};
}

std::vector<uint32_t> fewer_row_counts(std::vector<uint32_t> counts, size_t most, const ExpectedLoad& load) {
  while (counts.size() > std::max<size_t>(most, 1)) {
    size_t least = 0;
    double least_cost = 0;
    for (size_t i = counts.size() - 1; i-- > 0;) {
      std::vector<uint32_t> without = counts;
      without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
      const double cost = cost_of(without, load);
      if (i + 2 == counts.size() || cost < least_cost) least = i, least_cost = cost;
    }
    counts.erase(counts.begin() + static_cast<std::ptrdiff_t>(least));
  }
  return counts;
}

}  // namespace motley
