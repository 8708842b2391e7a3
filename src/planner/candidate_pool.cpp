#include "planner/candidate_pool.hpp"

#include <algorithm>

namespace motley {

bool CandidatePool::add(Candidate candidate) {
  if (!candidate.fits()) {
    if (!has_miss_ || candidate.memory.missing_bytes < miss_.memory.missing_bytes) miss_ = std::move(candidate);
    has_miss_ = true;
    return false;
  }
  std::vector<size_t> devices = devices_of(candidate.plan);
  const auto at = by_devices_.find(devices);
  if (at == by_devices_.end()) {
    by_devices_.emplace(std::move(devices), std::move(candidate));
  } else if (predictor_.score(candidate.predicted) > predictor_.score(at->second.predicted)) {
    at->second = std::move(candidate);
  }
  return true;
}

std::vector<const Candidate*> CandidatePool::ranked() const {
  std::vector<const Candidate*> all;
  for (const auto& [devices, candidate] : by_devices_) all.push_back(&candidate);
  // The map's order makes it deterministic among equals.
  std::stable_sort(all.begin(), all.end(), [this](const Candidate* a, const Candidate* b) {
    const double x = predictor_.score(a->predicted), y = predictor_.score(b->predicted);
    return x != y ? x > y : a->memory.devices.size() < b->memory.devices.size();
  });
  return all;
}

const Candidate* CandidatePool::best() const {
  const auto all = ranked();
  return all.empty() ? nullptr : all.front();
}

const Candidate* CandidatePool::best_of_one() const {
  for (const Candidate* candidate : ranked()) {
    if (candidate->memory.devices.size() == 1) return candidate;
  }
  return nullptr;
}

}  // namespace motley
