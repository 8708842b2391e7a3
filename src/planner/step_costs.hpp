// StepCosts: what each part of the model costs on each device, for one step's load; and what a lane's stages cost.
//
// A device alone in its stage runs all its layers as one program: a layer in it costs what was measured of one, where
// layers differ, with the parts that it has instead. Shards run, for each layer, the attention part and
// the FFN part as a program each, and after either an all-reduce: the slowest shard's program with its copies counts,
// from its device's memory to the host's before, and back after. Embedding before the first layer; head, gathering of
// logits and sampling after the last; the host waits for embedding and head, too. A program costs something whatever it
// computes: as much as a look-up of one row. Shards of one memory group slow one another's programs down by the
// measured factor, also where one of them is done first: a split must pay without what a partner that idles leaves of
// the bus. Copies of the residual stream to the next stage take the time of the devices, hops between them do not.
// All-reduce of v bytes over n shards: for the slowest pair, min(a + (n - 1) v b, 2 (n - 1) a + 2 v b (n - 1) / n), a
// the latency and b the time of a byte: one shot, or a ring. Where one shard alone has units of the layers there are
// none of these; the others wait, and get the residual stream at the end. A shard with a partner waits for it in every
// layer: what goes over, the partner's program with what it reads, and what comes back; a second step fills the gaps.
// Where a pool has further sections, each owner reads its share of the positions. What goes over and comes back adds
// up; their programs run beside one another, and beside the shard's own attention.
// Hops between stages: a + v b of the slowest receiver, which has waited and wakes.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "planner/lane_plan.hpp"

namespace motley {

class StepCosts {
 public:
  // All outlive this. `twins` as of find_twins().
  StepCosts(const ModelShape& shape, const PlanInput& input, const LinkTable& links, const std::vector<size_t>& twins,
            const StepLoad& load);

  // Nanoseconds of one layer of the kind as a program of its own. 0 for no units.
  double attention_ns(size_t device, uint32_t kind, int64_t query_heads, int64_t kv_heads) const;
  // Of that, what rows that decode read of the KV pool.
  double reading_ns(size_t device, uint32_t kind, int64_t kv_heads) const;
  double ffn_ns(size_t device, uint32_t kind, int64_t columns, int64_t experts) const;
  double embed_ns(size_t device, int64_t rows) const;
  double head_ns(size_t device, int64_t rows) const;
  double sample_ns(size_t device) const;
  double layer_ns(size_t device, uint32_t kind) const;  // whole, within a program of several
  double program_ns(size_t device) const;               // of any program, beside what it computes
  // What a partner does for one layer beside reading_ns(), waited for, where it keeps that share of the positions; and
  // what the values take to it and back.
  double partner_ns(size_t partner, uint32_t kind, int64_t kv_heads, double share = 1) const;
  double exchange_ns(size_t dense, size_t partner, int64_t query_heads, int64_t kv_heads) const;
  // Of that, what one of the two is busy with.
  double exchange_copies_ns(size_t device, int64_t query_heads, int64_t kv_heads) const;
  double wait_ns(size_t device) const { return input_.devices[device].wait_ns; }
  // One way: the residual stream; the sampled ids.
  double copy_residual_ns(size_t device) const { return copy_ns(device, load_.rows() * residual_row_bytes()); }
  double copy_ids_ns(size_t device) const;
  double copy_logits_ns(size_t device, int64_t vocab_rows) const;

  double all_reduce_ns(std::span<const size_t> devices) const;
  // Of the residual, by so many, all as near as this link says.
  double all_reduce_ns(const LinkProfile& link, size_t members) const;
  // The residual, to a device that does not have it; until the device, which waits for it, runs.
  double hop_ns(size_t from, size_t to) const;
  double gather_ns(size_t from, size_t to, int64_t vocab_rows) const;  // logits
  double token_hop_ns(size_t from, size_t to) const;                   // sampled ids, to one that embeds
  // With `active` devices of its memory group running: 1 or more.
  double slowdown(size_t device, size_t active) const;
  double reading_slowdown(size_t device, size_t active) const;
  size_t group_of(size_t device) const { return groups_[device]; }

  const ModelShape& shape() const { return shape_; }
  const StepLoad& load() const { return load_; }

 private:
  struct Curves {
    UnitCurve attention, ffn, experts, head, embed;
    double slowdown = 1;  // with the whole group
    double program_ns = 0;
    double context_ns = 0;    // per KV head and position read by a row that decodes
    double sequences_ns = 0;  // per KV head: of rows that decode, beside what as many of one sequence take
    double joined_ns = 0;     // what a whole layer's parts take less in one program with other layers
    double wait_ns = 0;       // of a program that is waited for, as the parts of a layer are
  };
  Curves curves_of(const DeviceProfile& device) const;
  static double fused_ffn_ns(const Curves& curves, const LayerShape& layer, int64_t columns, int64_t experts);
  double more_reading_ns(size_t device, uint32_t kind, int64_t kv_heads) const;
  double shared(size_t device, size_t active, double factor) const;  // that holds with the whole group running
  double copy_ns(size_t device, double bytes) const { return input_.devices[device].copy.at(bytes); }
  double residual_row_bytes() const;
  const ModelShape& shape_;
  const PlanInput& input_;
  const LinkTable& links_;
  const std::vector<size_t>& twins_;
  const StepLoad load_;
  const Curves& curves(size_t device) const { return curves_[twins_[device]]; }
  std::vector<Curves> curves_;                              // [device], empty where it has a twin
  std::vector<size_t> groups_;                              // [device]; devices of one number share memory
  std::vector<size_t> group_sizes_;                         // [group]
  std::vector<double> decode_positions_, chunk_positions_;  // [kind] read by all rows
  std::vector<const LayerShape*> kinds_;
};

struct StageCost {
  double ns = 0;                   // of one step
  double most_ns = 0;              // from one step's beginning to the next one's, at least: less where partners attend
  double hop_ns = 0;               // to the next stage, between the hosts' memories
  std::vector<double> busy_ns;     // [shard]
  std::vector<double> partner_ns;  // [shard] its partner is busy for it
  std::vector<double> section_ns;  // [section] its owner is busy for all of them
};

// `overlapped`: the other stages run other steps meanwhile, and share their memory's bus with this one.
StageCost stage_cost(const StepCosts& costs, const LanePlan& plan, size_t stage, bool overlapped);

}  // namespace motley
