#include "planner/routes.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace motley {

Route group_route(const LinkTable& links, std::span<const size_t> devices, double bytes) {
  Route route = Route::kSharedMemory;
  double worst = -1;
  for (size_t i = 0; i < devices.size(); ++i) {
    for (size_t j = i + 1; j < devices.size(); ++j) {
      const LinkProfile& link = links.between(devices[i], devices[j]);
      const double ns = link.latency_ns + bytes * link.ns_per_byte;
      if (ns < worst) continue;
      route = ns > worst ? link.route : std::min(route, link.route);
      worst = ns;
    }
  }
  return route;
}

std::vector<PairRoute> lane_routes(const PlanInput& input, const LinkTable& links, const LanePlan& plan,
                                   double row_bytes) {
  std::map<std::pair<size_t, size_t>, Route> met;  // the lower device first; the first meeting of a pair counts
  std::vector<std::vector<size_t>> stages;
  for (const StagePlan& stage : plan.stages) {
    std::vector<size_t>& devices = stages.emplace_back();
    for (const ShardPlan& shard : stage.shards) devices.push_back(shard.device);
    const Route route = group_route(links, devices, row_bytes);
    for (size_t i = 0; i < devices.size(); ++i) {
      for (size_t j = i + 1; j < devices.size(); ++j) met.emplace(std::minmax(devices[i], devices[j]), route);
    }
    for (const ShardPlan& shard : stage.shards) {
      if (shard.partner != kNoPartner)
        met.emplace(std::minmax(shard.device, shard.partner), links.between(shard.device, shard.partner).route);
      for (const SectionPlan& section : plan.sections) {
        if (shard.query_heads > 0)
          met.emplace(std::minmax(shard.device, section.owner), links.between(shard.device, section.owner).route);
      }
    }
  }
  for (size_t s = 1; s < stages.size(); ++s) {
    for (const size_t from : stages[s - 1]) {
      for (const size_t to : stages[s]) {
        if (from != to) met.emplace(std::minmax(from, to), links.between(from, to).route);
      }
    }
  }
  std::vector<PairRoute> routes;
  for (const auto& [pair, route] : met) {
    if (route == Route::kSharedMemory) continue;
    routes.push_back({input.devices[pair.first].name, input.devices[pair.second].name, route});
  }
  return routes;
}

}  // namespace motley
