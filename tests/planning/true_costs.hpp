// TrueCosts: what a placement should take by the devices' true rates, in closed form. Shares nothing with the planner
// and nothing with the simulation: it counts the matrices of a llama model itself. Good to some percent; what it finds
// best is then run.
#pragma once

#include <vector>

#include "make_model/make_model.hpp"
#include "planning/placements.hpp"
#include "planning/virtual_run.hpp"

namespace motley::testing {

// A placement in counts, as brute force turns it over.
struct TrueShard {
  size_t device = 0;
  double heads = 0, columns = 0, vocab = 0;
};

struct TrueStage {
  double layers = 0;
  std::vector<TrueShard> shards;
};

class TrueCosts {
 public:
  // All outlive this. Every device of a group that is in use slows the others down.
  TrueCosts(const make_model::ModelSpec& model, const std::vector<SimDevice>& devices, const VirtualLink& link)
      : model_(model), devices_(devices), link_(link) {}

  // Nanoseconds of the whole load, micro_batches groups of sequences in flight.
  double load_ns(const std::vector<TrueStage>& stages, const Load& load, uint32_t micro_batches);

 private:
  struct Rows {
    double rows = 0, sequences = 0, context = 0;  // positions that a row sees
    double drawn = 0;
    bool decode = true;
  };
  double phase_ns(const std::vector<TrueStage>& stages, Rows rows, uint32_t micro_batches) const;
  double stage_ns(const std::vector<TrueStage>& stages, size_t stage, const Rows& rows) const;
  double matrix_ns(size_t device, double rows, double in, double out) const;
  double moved_ns(size_t device, double floats) const;
  double attention_ns(size_t device, const Rows& rows, double heads) const;
  double ffn_ns(size_t device, const Rows& rows, double columns) const;
  double head_ns(size_t device, const Rows& rows, double vocab) const;
  double dispatch_ns(size_t device) const { return devices_[device].dispatch_us * 1e3; }
  double copy_ns(size_t device, double floats) const;

  const make_model::ModelSpec& model_;
  const std::vector<SimDevice>& devices_;
  const VirtualLink& link_;
  std::vector<double> bandwidth_;  // [device] bytes a nanosecond, as shared by the placement looked at
};

}  // namespace motley::testing
