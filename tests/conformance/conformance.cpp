#include "conformance.hpp"

#include <exception>

#include "harness.hpp"

namespace motley::conformance {

namespace {

struct Group {
  const char* name;
  void (*run)(Judge&);
};
constexpr Group kGroups[] = {
    {"description", judge_description},
    {"ops", judge_ops},
    {"experts", judge_experts},
    {"weights", judge_weights},
    {"kv", judge_kv},
    {"attention", judge_attention},
    {"segments", judge_segments},
    {"invariance", judge_invariance},
    {"parts", judge_parts},
    {"blobs", judge_blobs},
    {"sampling", judge_sampling},
    {"noise", judge_noise},
    {"queues", judge_queues},
    {"errors", judge_errors},
    {"loss", judge_loss},
};

void run_group(Judge& judge, const Group& group) {
  const uint64_t passed = judge.report().passed, failed = judge.report().failed;
  const std::string name = group.name;
  try {
    group.run(judge);
  } catch (const Stop& stop) {
    judge.check(false, name + ": " + stop.text);
  } catch (const std::exception& error) {
    judge.check(false, name + ": " + error.what());
  }
  if (judge.options().line)
    judge.options().line(name + ": " + std::to_string(judge.report().passed - passed) + " passed, " +
                         std::to_string(judge.report().failed - failed) + " failed");
}

}  // namespace

Report run_conformance(const motley_backend& backend, const Options& options) {
  try {
    Judge judge(backend, options);
    for (const Group& group : kGroups)
      if (options.only.empty() || std::string(group.name).find(options.only) != std::string::npos)
        run_group(judge, group);
    return judge.report();
  } catch (const Stop& stop) {
    Report report;
    report.failed = 1;
    report.failures.push_back(stop.text);
    if (options.line) options.line("FAILED " + stop.text);
    return report;
  }
}

}  // namespace motley::conformance
