// Reads what motley --trace writes (docs/tracing.md), line by line, and says how busy its tracks were and together.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/status.hpp"

namespace motley::testing {

struct TraceSpan {
  std::string name;
  int64_t begin_ns = 0, end_ns = 0;  // as near as the format's doubles come: within 2 ns
  std::map<std::string, int64_t> arguments;

  int64_t argument(const std::string& key) const;  // CHECKs that it is there
};

struct TraceRow {
  std::string group, name;
  std::vector<TraceSpan> spans;  // by their begin; of equal ones the longer first

  std::vector<TraceSpan> named(const std::string& name) const;
};

struct TraceContent {
  std::string clock;
  int64_t dropped_events = 0;
  std::vector<TraceRow> rows;

  const TraceRow* find(const std::string& name) const;  // null if no row, or more than one, has it
};

// INVALID_ARGUMENT with file and line for what is no trace, or none that was closed.
Result<TraceContent> read_trace(const std::string& path);

// Half open, ascending, with gaps between them.
using Intervals = std::vector<std::pair<int64_t, int64_t>>;

Intervals busy(const std::vector<TraceSpan>& spans);
Intervals intersection(const Intervals& a, const Intervals& b);
int64_t length_ns(const Intervals& intervals);
// The part of the shorter busy time in which the other was busy too, 0 to 1; 0 if one never was.
double overlap(const Intervals& a, const Intervals& b);

}  // namespace motley::testing
