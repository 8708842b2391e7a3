#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "planner/planner_test_fleet.hpp"
#include "planner/search.hpp"

namespace motley {
namespace {

struct Line {
  int number = 0;
  std::string verb;
  std::vector<std::string> words;             // without "="
  std::map<std::string, std::string> values;  // NAME=VALUE

  double number_of(const std::string& name, double otherwise) const {
    const auto found = values.find(name);
    return found == values.end() ? otherwise : std::stod(found->second);
  }
  int64_t whole(const std::string& name, int64_t otherwise) const {
    return static_cast<int64_t>(number_of(name, static_cast<double>(otherwise)));
  }
};

std::vector<Line> read_lines(const std::filesystem::path& file) {
  std::vector<Line> lines;
  std::ifstream in(file);
  std::string text;
  for (int number = 1; std::getline(in, text); ++number) {
    std::istringstream words(text.substr(0, text.find('#')));
    Line line;
    line.number = number;
    if (!(words >> line.verb)) continue;
    for (std::string word; words >> word;) {
      const size_t at = word.find('=');
      if (at == std::string::npos) {
        line.words.push_back(word);
      } else {
        line.values[word.substr(0, at)] = word.substr(at + 1);
      }
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

struct Scenario {
  ModelShape shape;
  PlanInput input;
  PlanRequest request;
  std::vector<Line> expectations;
};

testing::SizedShape size_of(const Line& line) {
  testing::SizedShape size;
  size.layers = line.whole("layers", size.layers);
  size.hidden = line.whole("hidden", size.hidden);
  size.heads = line.whole("heads", size.heads);
  size.kv_heads = line.whole("kv_heads", size.kv_heads);
  size.head_dim = line.whole("head_dim", size.head_dim);
  size.ffn = line.whole("ffn", size.ffn);
  size.vocab = line.whole("vocab", size.vocab);
  size.experts = line.whole("experts", size.experts);
  size.weight_bytes = line.number_of("bytes", size.weight_bytes);
  return size;
}

void add_device(const Line& line, Scenario* scenario) {
  testing::Speed speed;
  speed.gb_per_s = line.number_of("gb_per_s", speed.gb_per_s);
  speed.gflops = line.number_of("gflops", speed.gflops);
  speed.overhead_ns = 1e3 * line.number_of("overhead_us", 5);
  speed.gib = line.number_of("gib", speed.gib);
  speed.element_bytes = line.number_of("bytes", speed.element_bytes);
  DeviceProfile device = testing::make_device(line.words.at(0), line.values.at("kind"), speed, scenario->shape);
  if (line.values.contains("prompt_rows_a_read"))
    device.chunk_context_ns = device.context.values[0] / line.number_of("prompt_rows_a_read", 1);
  if (line.whole("fixed_rows", 0) != 0) device = testing::with_fixed_rows(std::move(device), speed, scenario->shape);
  device.own_memory = line.whole("own_memory", 0) != 0;
  if (line.values.contains("group")) {
    device.memory_group = line.values.at("group");
    device.together = {{1}, {line.number_of("together", 1)}};
  }
  scenario->input.devices.push_back(std::move(device));
}

Scenario read_scenario(const std::filesystem::path& file) {
  Scenario scenario;
  for (const Line& line : read_lines(file)) {
    if (line.verb == "model") {
      scenario.shape = testing::make_shape(size_of(line));
    } else if (line.verb == "device") {
      add_device(line, &scenario);
    } else if (line.verb == "link") {
      scenario.input.links.push_back({line.words.at(0), line.words.at(1), 1e3 * line.number_of("latency_us", 5),
                                      1 / line.number_of("gb_per_s", 10)});
    } else if (line.verb == "load") {
      PlanRequest& request = scenario.request;
      request.concurrency = static_cast<uint32_t>(line.whole("concurrency", request.concurrency));
      request.prompt_len = static_cast<uint32_t>(line.whole("prompt", request.prompt_len));
      request.output_len = static_cast<uint32_t>(line.whole("output", request.output_len));
      request.tensor_parallel_size = static_cast<uint32_t>(line.whole("tensor_parallel", 0));
      request.pipeline_parallel_size = static_cast<uint32_t>(line.whole("pipeline_parallel", 0));
      request.use_all_devices = line.whole("use_all", 0) != 0;
      request.step_bytes = static_cast<uint64_t>(line.whole("step_kib", 0)) << 10;
      request.kv.max_model_len = static_cast<uint32_t>(line.whole("longest", 0));
      if (line.whole("latency", 0) != 0) request.objective = Objective::kLatency;
    } else if (line.verb == "expect") {
      scenario.expectations.push_back(line);
    } else {
      ADD_FAILURE() << file << ":" << line.number << ": " << line.verb << " is no verb";
    }
  }
  return scenario;
}

std::map<std::string, uint64_t> weights_by_device(const PlanReport& report) {
  std::map<std::string, uint64_t> weights;
  for (const DeviceShare& share : report.devices) weights[share.device] = share.weight_bytes;
  return weights;
}

// The first device of each lane that computes prompts, or tokens.
std::set<std::string> computes(const PlanReport& report, bool Lane::*rows) {
  std::set<std::string> names;
  for (const Lane& lane : report.placement.lanes)
    if (lane.*rows) names.insert(lane.stages.at(0).shards.at(0).device);
  return names;
}

// Who keeps KV, of all lanes and sections.
std::set<std::string> kv_owners(const PlanReport& report) {
  std::set<std::string> names;
  for (const Lane& lane : report.placement.lanes) {
    for (const Stage& stage : lane.stages) names.insert(stage.kv_owners.begin(), stage.kv_owners.end());
    for (const KvSection& section : lane.sections) names.insert(section.owner);
  }
  return names;
}

double best_single(const Scenario& scenario) {
  double best = 0;
  for (const DeviceProfile& device : scenario.input.devices) {
    PlanInput one = scenario.input;
    one.devices = {device};
    one.links.clear();
    PlanRequest free = scenario.request;
    free.tensor_parallel_size = free.pipeline_parallel_size = 0;
    const auto report = plan(scenario.shape, one, free);
    if (report.ok()) best = std::max(best, report->predicted.tokens_per_s);
  }
  return best;
}

void check(const Scenario& scenario, const PlanReport& report, const Line& line) {
  const std::string& what = line.words.at(0);
  const auto weights = weights_by_device(report);
  const auto number = [&] { return std::stod(line.words.at(1)); };
  const std::set<std::string> named(line.words.begin() + 1, line.words.end());
  if (what == "used") {
    std::set<std::string> used;
    for (const auto& [name, bytes] : weights) used.insert(name);
    EXPECT_EQ(used, named);
  } else if (what == "left_out") {
    std::set<std::string> left;
    for (const LeftOut& out : report.left_out) {
      left.insert(out.device);
      EXPECT_TRUE(std::any_of(out.reason.begin(), out.reason.end(), [](char c) { return c >= '0' && c <= '9'; }))
          << out.reason;
    }
    EXPECT_EQ(left, named);
  } else if (what == "stages") {
    EXPECT_EQ(report.placement.lanes.at(0).stages.size(), static_cast<size_t>(number()));
  } else if (what == "lanes") {
    EXPECT_EQ(report.placement.lanes.size(), static_cast<size_t>(number()));
  } else if (what == "sections") {
    EXPECT_EQ(report.placement.lanes.at(0).sections.size(), static_cast<size_t>(number()));
  } else if (what == "prompts") {
    EXPECT_EQ(computes(report, &Lane::prefills), named);
  } else if (what == "tokens") {
    EXPECT_EQ(computes(report, &Lane::decodes), named);
  } else if (what == "kv") {
    EXPECT_EQ(kv_owners(report), named);
  } else if (what == "kv_tokens") {
    EXPECT_GE(static_cast<double>(report.kv_capacity_tokens), number());
  } else if (what == "more") {
    EXPECT_GT(weights.at(line.words.at(1)), weights.at(line.words.at(2)));
  } else if (what == "gain") {
    EXPECT_GE(report.predicted.tokens_per_s, number() * best_single(scenario));
  } else if (what == "gain_at_most") {
    EXPECT_LE(report.predicted.tokens_per_s, number() * best_single(scenario));
  } else if (what == "loss") {
    EXPECT_GE(report.forced_loss.loss, number());
  } else if (what == "loss_at_most") {
    EXPECT_LE(report.forced_loss.loss, number());
  } else {
    ADD_FAILURE() << what << " is nothing to expect";
  }
}

class Scenarios : public ::testing::TestWithParam<std::filesystem::path> {};

TEST_P(Scenarios, PlannerMakesOfIt) {
  const Scenario scenario = read_scenario(GetParam());
  ASSERT_FALSE(scenario.expectations.empty());
  const auto report = plan(scenario.shape, scenario.input, scenario.request);
  const std::string& first = scenario.expectations[0].words.at(0);
  if (first == "refused" || first == "impossible") {
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().code(), first == "refused" ? MOTLEY_RESOURCE_EXHAUSTED : MOTLEY_INVALID_ARGUMENT);
    EXPECT_NE(report.error().message().find(scenario.expectations[0].words.at(1)), std::string::npos)
        << report.error().message();
    return;
  }
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_LE(report->predicted.tokens_per_s, report->bound_tokens_per_s);
  for (const Line& line : scenario.expectations) {
    SCOPED_TRACE(GetParam().filename().string() + ":" + std::to_string(line.number));
    check(scenario, *report, line);
  }
}

std::vector<std::filesystem::path> files() {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(MOTLEY_SOURCE_DIR "/tests/scenarios"))
    if (entry.path().extension() == ".scenario") found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

INSTANTIATE_TEST_SUITE_P(Files, Scenarios, ::testing::ValuesIn(files()),
                         [](const auto& info) { return info.param.stem().string(); });

}  // namespace
}  // namespace motley
