#include "planner/section_search.hpp"

#include <algorithm>
#include <utility>

namespace motley {
namespace {

constexpr size_t kOwnersMax = 32;       // that are tried: the first ones listed
constexpr double kWorthAnother = 1.05;  // owner, where those before hold a sequence without him

class SectionSearch {
 public:
  explicit SectionSearch(Predictor* predictor) : predictor_(*predictor) {}

  void try_start(LanePlan plan) {
    double before = 0;  // the score of what holds a sequence already
    while (plan.sections.size() < kSectionsMax) {
      std::optional<LaneSet> best = with_another(plan);
      if (!best || (before > 0 && score(*best) < kWorthAnother * before)) return;
      plan = best->lanes[0].plan;
      if (!best->fits()) continue;
      before = score(*best);
      if (!best_ || better(*best, *best_)) best_ = std::move(best);
    }
  }

  std::optional<LaneSet> take() { return std::move(best_); }

 private:
  double score(const LaneSet& set) const { return predictor_.score(set.predicted); }

  // The best with one owner more, at any place of the order in which a pool is filled.
  std::optional<LaneSet> with_another(const LanePlan& plan) {
    std::optional<LaneSet> best;
    for (size_t owner = 0; owner < std::min(predictor_.input().devices.size(), kOwnersMax); ++owner) {
      for (size_t place = 0; place <= plan.sections.size(); ++place) {
        LanePlan more = plan;
        more.sections.insert(more.sections.begin() + static_cast<std::ptrdiff_t>(place), SectionPlan{owner});
        if (!check_lane(predictor_.shape(), predictor_.input(), more).ok()) break;
        LaneSet set = evaluate_lanes(&predictor_, {{std::move(more)}});
        if (!best || better(set, *best)) best = std::move(set);
      }
    }
    return best;
  }

  // One that holds a sequence before one that does not; of the latter, the one that lacks least.
  bool better(const LaneSet& a, const LaneSet& b) const {
    if (a.fits() != b.fits()) return a.fits();
    if (!a.fits()) return a.memory.missing_bytes < b.memory.missing_bytes;
    return score(a) > score(b);
  }

  Predictor& predictor_;
  std::optional<LaneSet> best_;
};

}  // namespace

std::optional<LaneSet> find_sections(Predictor* predictor, std::span<const LanePlan> starts) {
  SectionSearch search(predictor);
  for (const LanePlan& start : starts) search.try_start(start);
  return search.take();
}

}  // namespace motley
