#include "model/trace_reader.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/check.hpp"

namespace motley::testing {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kHead = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[", kTail = "],\"otherData\":";

int64_t ns_of(const Json& us) { return std::llround(us.get<double>() * 1e3); }

// Throws Json::exception for an event that lacks what it must have.
class Builder {
 public:
  void add(const Json& event) {
    const auto process = event.at("pid").get<uint32_t>(), thread = event.at("tid").get<uint32_t>();
    const std::string phase = event.at("ph").get<std::string>(), name = event.at("name").get<std::string>();
    const Json& args = event.at("args");
    if (phase == "X") {
      const int64_t begin_ns = ns_of(event.at("ts"));
      TraceSpan span{name, begin_ns, begin_ns + ns_of(event.at("dur")), {}};
      for (const auto& [key, value] : args.items()) span.arguments[key] = value.get<int64_t>();
      rows_[{process, thread}].spans.push_back(std::move(span));
    } else if (name == "process_name") {
      groups_[process] = args.at("name").get<std::string>();
    } else if (name == "thread_name") {
      rows_[{process, thread}].name = args.at("name").get<std::string>();
    }
  }

  std::vector<TraceRow> finish() {
    std::vector<TraceRow> rows;
    for (auto& [place, row] : rows_) {
      row.group = groups_[place.first];
      std::stable_sort(row.spans.begin(), row.spans.end(), [](const TraceSpan& a, const TraceSpan& b) {
        return std::pair{a.begin_ns, -a.end_ns} < std::pair{b.begin_ns, -b.end_ns};
      });
      rows.push_back(std::move(row));
    }
    return rows;
  }

 private:
  std::map<uint32_t, std::string> groups_;
  std::map<std::pair<uint32_t, uint32_t>, TraceRow> rows_;
};

}  // namespace

int64_t TraceSpan::argument(const std::string& key) const {
  const auto found = arguments.find(key);
  CHECK(found != arguments.end(), "{} has no argument {}", name, key);
  return found->second;
}

std::vector<TraceSpan> TraceRow::named(const std::string& wanted) const {
  std::vector<TraceSpan> chosen;
  std::copy_if(spans.begin(), spans.end(), std::back_inserter(chosen), [&](const auto& s) { return s.name == wanted; });
  return chosen;
}

const TraceRow* TraceContent::find(const std::string& name) const {
  const auto has_it = [&](const TraceRow& row) { return row.name == name; };
  if (std::count_if(rows.begin(), rows.end(), has_it) != 1) return nullptr;
  return &*std::find_if(rows.begin(), rows.end(), has_it);
}

Result<TraceContent> read_trace(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != kHead) return invalid_argument("{}:1: this is no trace", path);
  TraceContent content;
  Builder builder;
  for (int number = 2; std::getline(file, line); ++number) {
    try {
      if (line.starts_with(kTail)) {
        const Json other = Json::parse(line.substr(kTail.size(), line.size() - kTail.size() - 1));
        content.clock = other.at("clock").get<std::string>();
        content.dropped_events = other.at("dropped_events").get<int64_t>();
        content.rows = builder.finish();
        return content;
      }
      if (line.ends_with(',')) line.pop_back();
      if (!line.empty()) builder.add(Json::parse(line));
    } catch (const Json::exception& failure) {
      return invalid_argument("{}:{}: {}", path, number, failure.what());
    }
  }
  return invalid_argument("{}: the trace was not closed", path);
}

Intervals busy(const std::vector<TraceSpan>& spans) {
  Intervals all, joined;
  for (const TraceSpan& span : spans)
    if (span.end_ns > span.begin_ns) all.emplace_back(span.begin_ns, span.end_ns);
  std::sort(all.begin(), all.end());
  for (const auto& [begin, end] : all) {
    if (!joined.empty() && begin <= joined.back().second)
      joined.back().second = std::max(joined.back().second, end);
    else
      joined.emplace_back(begin, end);
  }
  return joined;
}

Intervals intersection(const Intervals& a, const Intervals& b) {
  Intervals both;
  for (size_t i = 0, k = 0; i < a.size() && k < b.size();) {
    const int64_t begin = std::max(a[i].first, b[k].first), end = std::min(a[i].second, b[k].second);
    if (begin < end) both.emplace_back(begin, end);
    (a[i].second < b[k].second ? i : k) += 1;
  }
  return both;
}

int64_t length_ns(const Intervals& intervals) {
  int64_t sum = 0;
  for (const auto& [begin, end] : intervals) sum += end - begin;
  return sum;
}

double overlap(const Intervals& a, const Intervals& b) {
  const int64_t shorter = std::min(length_ns(a), length_ns(b));
  return shorter == 0 ? 0 : static_cast<double>(length_ns(intersection(a, b))) / static_cast<double>(shorter);
}

}  // namespace motley::testing
