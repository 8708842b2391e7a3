// FleetBound: for many devices of few types, whether any plan of one load is done by a time. A relaxation to a linear
// program, decided by weak duality: what it calls impossible is proved to be.
//
// A stage is a multiset q of types. In the time of one micro-batch, T / M, it holds at most l_q whole layers; a pass
// through it takes them all. With x_q stages of each q, at any fraction: sum x q <= the devices, sum x l >= all layers,
// and sum x (time of a pass, hop included) <= T less what the head takes: one micro-batch goes through all stages, and
// none overtakes itself. Prices y >= 0 of the devices and of the time for which no q gives more layers than it costs
// prove that y * (devices, time) layers are the most; too few of them rule T out.
//
// Steps with a chunk of a prompt come in the same rounds of all M micro-batches (replay.hpp). With b of a stage in such
// a round and a in one without, sums over the stages with hops, and q <= 1/2 of the rounds long: the last micro-batch
// leaves the slowest stage (M - 1) max b after the first, and none of the next round overtakes it, so
//   T >= (1 - 2 q) sum a + q sum b + q (M - 1) max b >= (1 - q) sum of means + q (M - 1) max b.
// Every range of max b is looked at: it leaves less time for the pass, and stages that are no longer than that.
//
// Where there are many multisets, counts are taken in ranges: the cost of the lowest, the speed of the highest.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace motley {

// Of a type's devices, the best of each figure; of any layer the least. Nanoseconds of the mean step.
struct FleetType {
  size_t count = 0;
  double layer_ns = 0;  // whole, on one device alone
  // Attention, FFN, experts: of all its units a nanosecond, after what any program costs (experts: at all). 0: not
  // every layer has it.
  std::array<double, 3> axis_rate{};
  double stage_ns = 0;                // of every stage
  double program_ns = 0;              // of any
  double part_ns = 0;                 // of copies, for each of a layer's two parts
  double hop_ns = 0;                  // to the nearest other device
  double layers_max = 0;              // that memory holds
  std::vector<double> all_reduce_ns;  // [members] of one, with the nearest
};

class FleetBound {
 public:
  static constexpr size_t kTypesMax = 6;
  // `mean` and `lengthy` are the same types: of the mean step, and of one with a chunk, which `chunk_share` have.
  // `head_ns`: of the last stage, at least.
  FleetBound(const std::vector<FleetType>& mean, const std::vector<FleetType>& lengthy, double chunk_share,
             size_t layers, double micro_batches, double head_ns);

  // False: proved to be impossible.
  bool possible(double time_ns);

 private:
  using Prices = std::array<double, kTypesMax + 1>;  // of each type, then of a nanosecond of a pass
  struct Column {
    std::array<double, kTypesMax> devices{};  // the least of its ranges
    double layer_ns = 0, fixed_ns = 0, hop_ns = 0, layers_max = 0;
    double lengthy_layer_ns = 0, lengthy_fixed_ns = 0;
    double layers = 0, pass_ns = 0;  // at the time looked at
  };
  static Column column_of(const std::vector<FleetType>& types, const std::vector<size_t>& low,
                          const std::vector<size_t>& high);
  void add_columns(const std::vector<FleetType>& mean, const std::vector<FleetType>& lengthy);
  // With max b within (least, most].
  bool possible(double time_ns, double least_ns, double most_ns);
  bool solvable(double time_ns, double pass_ns, double lengthy_ns);
  void measure(double time_ns, double lengthy_ns);
  double cost(const Column& column, const Prices& prices) const;
  // The column that gives most layers for its price.
  const Column* best(const Prices& prices) const;

  std::vector<double> counts_;  // [type]
  const double chunk_share_, layers_, micro_batches_, head_ns_;
  double hop_max_ns_ = 0;
  std::vector<Column> columns_;
};

}  // namespace motley
