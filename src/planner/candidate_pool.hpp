// CandidatePool: the plans tried so far, the best of each set of devices. A value; deterministic.
#pragma once

#include <map>
#include <vector>

#include "planner/prediction.hpp"

namespace motley {

class CandidatePool {
 public:
  // The predictor outlives the pool.
  explicit CandidatePool(const Predictor& predictor) : predictor_(predictor) {}

  // Keeps it if it fits and is the best of its devices. Whether it fits.
  bool add(Candidate candidate);

  bool empty() const { return by_devices_.empty(); }
  // By falling score; of equals fewer devices first. Pointers live until the next add().
  std::vector<const Candidate*> ranked() const;
  // Null where there is none.
  const Candidate* best() const;
  const Candidate* best_of_one() const;  // with a single device

  // Of plans that did not fit, the one that lacked least.
  const Candidate* nearest_miss() const { return has_miss_ ? &miss_ : nullptr; }

 private:
  const Predictor& predictor_;
  std::map<std::vector<size_t>, Candidate> by_devices_;
  Candidate miss_;
  bool has_miss_ = false;
};

}  // namespace motley
