// VirtualService: requests without end on a virtual machine, with a plan that follows its devices: the engine's
// Scheduler, the runtime and the planner's control law, driven on one thread as VirtualRun is.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/scheduler.hpp"
#include "planner/adaptation.hpp"
#include "planning/lanes_under_way.hpp"
#include "planning/virtual_run.hpp"

namespace motley::testing {

// What was measured of one machine, for another of the same devices.
PlanInput renamed(PlanInput input, const VirtualMachine& from, const VirtualMachine& to);

struct ServiceMove {
  int64_t judged_ns = 0, in_force_ns = 0;
  int64_t pause_ns = 0;         // from the last step planned for the one plan to the first for the next
  double gain = 0;              // as predicted
  size_t blocks = 0;            // of KV that went from one owner to another
  uint64_t computed_again = 0;  // positions
  uint64_t packed_bytes = 0;    // of weights, for the next plan
};

// Not thread-safe; aborts on failures.
class VirtualService {
 public:
  // All but the input are borrowed. Begins at `start_ns` of virtual time, with the best plan for what was measured.
  VirtualService(const Model& model, const VirtualMachine& machine, PlanInput measured, const Load& load,
                 int64_t start_ns);
  ~VirtualService();

  void run_until(int64_t ns);
  // What planning and compiling take, 0.2 s if nobody says otherwise; packing comes on top, as long as its price says.
  void set_making_ns(int64_t ns) { making_ns_ = ns; }
  const std::vector<ServiceMove>& moves() const { return moves_; }
  const Placement& placement() const { return placement_; }
  // Output tokens, in a time.
  double tokens_per_s(int64_t begin_ns, int64_t end_ns) const;
  // Between two tokens of one stream, ascending: of all of them that span a move, and of those that end in a time.
  std::vector<int64_t> gaps_over_moves_ns() const;
  std::vector<int64_t> gaps_ns(int64_t begin_ns, int64_t end_ns) const;
  // By request, in the order of their coming: of those that have ended, with the two best of each token.
  const std::map<uint64_t, std::vector<SampledToken>>& texts() const { return ended_; }
  uint64_t failed() const { return failed_; }

 private:
  // Between tokens of a stream at two times.
  std::vector<int64_t> gaps_if(const std::function<bool(int64_t, int64_t)>& wanted) const;

  class Now : public Clock {
   public:
    int64_t now_ns() const override { return ns; }
    int64_t ns = 0;
  };
  struct Next {
    PlanReport report;
    Placement placement;
    std::unique_ptr<RuntimeExecutor> executor;
    ServiceMove move;
  };

  std::unique_ptr<RuntimeExecutor> executor_of(const Placement& placement) const;
  ExecutorDescription description() const;
  void take_models();
  void top_up();
  void hear(const Sequence& sequence, RequestUpdate update);
  void take_result();
  void look();
  DriftFactors factors_of_others() const;
  bool still_better();
  void save_ahead();
  void bring_late();
  void take_over();

  const Model& model_;
  const VirtualMachine& machine_;
  const ModelShape shape_;
  const PlanInput input_;
  const Load load_;
  const PlanRequest request_;
  Now now_;
  int64_t making_ns_ = 200'000'000;
  Placement placement_;
  std::shared_ptr<Holdings> holdings_;
  std::unique_ptr<RuntimeExecutor> executor_;
  EngineOptions options_;
  std::unique_ptr<Scheduler> scheduler_;
  std::optional<LanesUnderWay> lanes_;
  uint64_t requests_ = 0, failed_ = 0;
  std::map<uint64_t, std::vector<SampledToken>> open_, ended_;
  std::map<uint64_t, std::vector<int64_t>> token_times_ns_;
  Adaptation law_;
  std::map<std::string, std::vector<BusyModel>> models_;  // by device, [lane]
  std::optional<Next> next_;
  std::optional<int64_t> saved_at_ns_;    // when what is saved beside the steps will have been
  std::optional<int64_t> stopped_at_ns_;  // no planning: the next plan waits for the steps under way
  KvSaved saved_;
  std::optional<std::pair<RequestId, int64_t>> coming_;  // late, and when its KV will be there
  std::vector<ServiceMove> moves_;
};

}  // namespace motley::testing
