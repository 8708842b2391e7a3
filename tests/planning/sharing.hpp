// What two devices do together, for the test and for the tables of benchmarks/sharing.
#pragma once

#include <string>

#include "make_model/make_model.hpp"
#include "planner/model_shape.hpp"
#include "planning/virtual_run.hpp"

namespace motley::testing {

// Small in the hidden size, so that it computes fast; of many heads and columns, so that they can be split 10 : 1.
make_model::ModelSpec sharing_model();
SimDevice sharing_device(double speed);
VirtualLink sharing_link();

// Output tokens/s.
struct SharingRow {
  double r = 1;                        // speeds r : 1
  double fast = 0, slow = 0;           // each alone
  double predicted = 0, together = 0;  // by the planner's uneven split
  double even = 0;                     // by the even one
  double bound = 0;                    // the sum of speeds, less communication
  double sum() const { return fast + slow; }
};
SharingRow share(const Model& model, const ModelShape& shape, double r);
std::string text_of(const SharingRow& row);

struct PipelineRow {
  double r = 1;
  double predicted = 0, together = 0;
  double bound = 0;    // were its slowest stage never idle
  double overlap = 0;  // time that both are busy at least, of the shorter's
  std::string layers;
};
PipelineRow pipeline(const Model& model, const ModelShape& shape, double r);
std::string text_of(const PipelineRow& row);

}  // namespace motley::testing
