#include "planner/step_costs.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

namespace motley {
namespace {

constexpr double kF32Bytes = 4, kTokenBytes = 4;

double count(int64_t units) { return static_cast<double>(units); }

// Of any program, beside what it computes: the smallest there is takes no less than that, whatever was disturbed when
// the others were measured.
double least_program_ns(const DeviceProfile& device) {
  double least = device.embed.empty() ? std::numeric_limits<double>::max() : device.embed.ns.back().front();
  for (const CostTable* part : {&device.attention, &device.ffn, &device.experts}) {
    if (!part->empty()) least = std::min(least, part->ns.front().front());
  }
  return least == std::numeric_limits<double>::max() ? 0 : least;
}

}  // namespace

StepCosts::StepCosts(const ModelShape& shape, const PlanInput& input, const LinkTable& links,
                     const std::vector<size_t>& twins, const StepLoad& load)
    : shape_(shape), input_(input), links_(links), twins_(twins), load_(load) {
  std::map<std::string_view, size_t> named;
  curves_.resize(input.devices.size());
  for (size_t d = 0; d < input.devices.size(); ++d) {
    const DeviceProfile& device = input.devices[d];
    size_t group = group_sizes_.size();
    if (!device.memory_group.empty()) group = named.emplace(device.memory_group, group).first->second;
    if (group == group_sizes_.size()) group_sizes_.push_back(0);
    ++group_sizes_[group];
    groups_.push_back(group);
    if (twins[d] != d) continue;
    curves_[d] = curves_of(device);
  }
  kinds_.assign(shape.kinds(), nullptr);
  decode_positions_.assign(shape.kinds(), 0);
  chunk_positions_.assign(shape.kinds(), 0);
  for (const LayerShape& layer : shape.layers) {
    kinds_[layer.kind] = &layer;
    decode_positions_[layer.kind] = load.decode_positions(layer.window);
    chunk_positions_[layer.kind] = load.chunk_positions(layer.window);
  }
}

StepCosts::Curves StepCosts::curves_of(const DeviceProfile& device) const {
  const double rows = device.rows_run(load_.rows());
  const double again = load_.chunk_rows > 0 ? device.mixed : 0;  // that rows which decode cost
  const auto at = [&](const CostTable& table, double of) {
    UnitCurve curve = table.at_rows(of);
    if (again == 0 || load_.decode_rows == 0) return curve;
    const UnitCurve alone = table.at_rows(load_.decode_rows);
    for (size_t i = 0; i < curve.ns.size(); ++i) curve.ns[i] += again * alone.ns[i];
    return curve;
  };
  Curves curves{at(device.attention, rows),
                at(device.ffn, rows),
                at(device.experts, rows),
                device.head.at_rows(load_.head_rows),
                device.embed.at_rows(rows),
                std::max(1.0, device.together.at(rows, 1)),
                least_program_ns(device),
                device.context.at(load_.decode_rows),
                device.sequences.at(load_.decode_rows),
                0,
                device.wait_ns};
  if (shape_.layers.empty()) return curves;
  const LayerShape& middle = shape_.layers[shape_.layers.size() / 2];  // was measured
  // Beyond the rows that whole layers were measured at, joining saves as much as there.
  const double known = device.layer.empty() ? rows : std::min(rows, static_cast<double>(device.layer.rows.back()));
  Curves parts;
  parts.ffn = at(device.ffn, known), parts.experts = at(device.experts, known);
  parts.program_ns = curves.program_ns, parts.wait_ns = curves.wait_ns;
  const double attention = at(device.attention, known).at(count(shape_.kv_heads));
  const double ffn = fused_ffn_ns(parts, middle, shape_.ffn_columns, shape_.experts);
  curves.joined_ns = device.layer.empty() ? std::min(attention, curves.program_ns) + std::min(ffn, curves.program_ns)
                                          : attention + ffn - at(device.layer, known).at(1);
  return curves;
}

double StepCosts::fused_ffn_ns(const Curves& curves, const LayerShape& layer, int64_t columns, int64_t experts) {
  double ns = 0;
  if (layer.has_ffn) ns += curves.ffn.at(count(columns));
  if (layer.has_experts) {
    const double routed = curves.experts.at(count(experts));
    ns += routed - (ns > 0 ? std::min(routed, curves.program_ns + curves.wait_ns) : 0);  // one program of both
  }
  return ns;
}

double StepCosts::attention_ns(size_t device, uint32_t kind, int64_t query_heads, int64_t kv_heads) const {
  if (query_heads <= 0) return 0;
  // Weights of a KV head: 2 of key and value, 2 a query head of query and output.
  const double group = count(shape_.query_heads_per_kv());
  const double heads = (count(query_heads) + count(kv_heads)) / (group + 1);
  const UnitCurve& curve = curves(device).attention;
  double weights = curve.at(heads);
  if (curve.units.size() == 1 && heads < curve.units[0]) {
    // Less than was measured: all but what any program costs goes by its part.
    const double fixed = std::min(curve.ns[0], program_ns(device) + wait_ns(device));
    weights = fixed + (curve.ns[0] - fixed) * heads / curve.units[0];
  }
  return weights + reading_ns(device, kind, kv_heads) + more_reading_ns(device, kind, kv_heads);
}

// Of the rows of a chunk, and what rows of sequences of their own take beside reading.
double StepCosts::more_reading_ns(size_t device, uint32_t kind, int64_t kv_heads) const {
  const DeviceProfile& profile = input_.devices[device];
  const double chunk_ns = profile.chunk_context_ns.value_or(profile.context.at(1));
  return count(kv_heads) * (chunk_ns * chunk_positions_[kind] + curves(device).sequences_ns);
}

double StepCosts::partner_ns(size_t partner, uint32_t kind, int64_t kv_heads, double share) const {
  return program_ns(partner) + wait_ns(partner) + share * more_reading_ns(partner, kind, kv_heads);
}

double StepCosts::exchange_ns(size_t dense, size_t partner, int64_t query_heads, int64_t kv_heads) const {
  const double head = load_.rows() * count(shape_.head_dim) * kF32Bytes;
  const double over = head * count(query_heads + 2 * kv_heads), back = head * count(query_heads);
  const LinkProfile& link = links_.between(dense, partner);
  return exchange_copies_ns(dense, query_heads, kv_heads) + exchange_copies_ns(partner, query_heads, kv_heads) +
         2 * link.latency_ns + (over + back) * link.ns_per_byte;
}

double StepCosts::exchange_copies_ns(size_t device, int64_t query_heads, int64_t kv_heads) const {
  const double head = load_.rows() * count(shape_.head_dim) * kF32Bytes;
  // Queries, keys and values, each by itself, and what comes of them.
  return 2 * copy_ns(device, head * count(query_heads)) + 2 * copy_ns(device, head * count(kv_heads));
}

double StepCosts::reading_ns(size_t device, uint32_t kind, int64_t kv_heads) const {
  return count(kv_heads) * curves(device).context_ns * decode_positions_[kind];
}

double StepCosts::ffn_ns(size_t device, uint32_t kind, int64_t columns, int64_t experts) const {
  return fused_ffn_ns(curves(device), *kinds_[kind], columns, experts);
}

double StepCosts::program_ns(size_t device) const { return curves(device).program_ns; }

double StepCosts::residual_row_bytes() const { return count(shape_.hidden) * kF32Bytes; }

double StepCosts::copy_ids_ns(size_t device) const { return copy_ns(device, load_.head_rows * kTokenBytes); }

double StepCosts::copy_logits_ns(size_t device, int64_t vocab_rows) const {
  return copy_ns(device, load_.head_rows * count(vocab_rows) * kF32Bytes);
}

double StepCosts::embed_ns(size_t device, int64_t rows) const { return curves(device).embed.at(count(rows)); }
double StepCosts::head_ns(size_t device, int64_t rows) const { return curves(device).head.at(count(rows)); }
double StepCosts::sample_ns(size_t device) const {
  return program_ns(device) + static_cast<double>(input_.devices[device].sample_ns) * load_.head_rows;
}

double StepCosts::layer_ns(size_t device, uint32_t kind) const {
  const double attention = attention_ns(device, kind, shape_.heads, shape_.kv_heads);
  const double ffn = ffn_ns(device, kind, shape_.ffn_columns, shape_.experts);
  return std::max(0.0, attention + ffn - curves(device).joined_ns);
}

double StepCosts::all_reduce_ns(const LinkProfile& link, size_t members) const {
  const double bytes = load_.rows() * count(shape_.hidden) * kF32Bytes, n = static_cast<double>(members);
  const double one_shot = link.latency_ns + (n - 1) * bytes * link.ns_per_byte;
  const double ring = 2 * (n - 1) * link.latency_ns + 2 * bytes * link.ns_per_byte * (n - 1) / n;
  return std::min(one_shot, ring);
}

double StepCosts::all_reduce_ns(std::span<const size_t> devices) const {
  double worst = 0;
  for (size_t i = 0; i < devices.size(); ++i) {
    for (size_t j = i + 1; j < devices.size(); ++j) {
      worst = std::max(worst, all_reduce_ns(links_.between(devices[i], devices[j]), devices.size()));
    }
  }
  return worst;
}

double StepCosts::hop_ns(size_t from, size_t to) const {
  if (from == to) return 0;
  const LinkProfile& link = links_.between(from, to);
  return link.latency_ns + input_.devices[to].wake_ns +
         load_.rows() * count(shape_.hidden) * kF32Bytes * link.ns_per_byte;
}

double StepCosts::gather_ns(size_t from, size_t to, int64_t vocab_rows) const {
  if (from == to) return 0;
  const LinkProfile& link = links_.between(from, to);
  return link.latency_ns + load_.head_rows * count(vocab_rows) * kF32Bytes * link.ns_per_byte;
}

double StepCosts::token_hop_ns(size_t from, size_t to) const {
  if (from == to) return 0;
  const LinkProfile& link = links_.between(from, to);
  return link.latency_ns + input_.devices[to].wake_ns + load_.head_rows * kTokenBytes * link.ns_per_byte;
}

double StepCosts::slowdown(size_t device, size_t active) const {
  return shared(device, active, curves(device).slowdown);
}

double StepCosts::reading_slowdown(size_t device, size_t active) const {
  return shared(device, active, input_.devices[device].context_together);
}

double StepCosts::shared(size_t device, size_t active, double factor) const {
  const size_t members = group_sizes_[groups_[device]];
  if (members < 2 || active < 2) return 1;
  const double others = static_cast<double>(std::min(active, members) - 1);
  return 1 + (factor - 1) * others / static_cast<double>(members - 1);
}

namespace {

// Adds up one stage's parts.
class StageClock {
 public:
  StageClock(const StepCosts& costs, const LanePlan& plan, size_t stage, bool overlapped)
      : costs_(costs),
        plan_(plan),
        stage_(plan.stages[stage]),
        shared_(stage_.shards.size() > 1),
        split_(splits_layers(stage_)),
        first_(stage == 0),
        last_(stage + 1 == plan.stages.size()),
        lone_(plan.stages.size() == 1) {
    cost_.busy_ns.assign(stage_.shards.size(), 0);
    cost_.partner_ns.assign(stage_.shards.size(), 0);
    cost_.section_ns.assign(plan.sections.size(), 0);
    for (const ShardPlan& shard : stage_.shards) {
      devices_.push_back(shard.device);
      const size_t running = active(plan, stage, shard.device, overlapped);
      slowdowns_.push_back(costs.slowdown(shard.device, running));
      reading_slowdowns_.push_back(costs.reading_slowdown(shard.device, running));
      const size_t beside = active(plan, stage, shard.kv_owner(), overlapped);
      partner_slowdowns_.push_back(
          {costs.slowdown(shard.kv_owner(), beside), costs.reading_slowdown(shard.kv_owner(), beside)});
    }
    for (const SectionPlan& section : plan.sections) {
      const size_t beside = active(plan, stage, section.owner, overlapped);
      section_slowdowns_.push_back(
          {costs.slowdown(section.owner, beside), costs.reading_slowdown(section.owner, beside)});
    }
    reduce_ns_ = costs.all_reduce_ns(devices_);
  }

  void embed() {
    part(1, [&](const ShardPlan& s) {
      return Work{costs_.embed_ns(s.device, s.vocab_rows) + wait(s), pull(s, s.vocab_rows)};
    });
    cost_.ns += reduce_ns_;
  }

  void layers() {
    std::vector<double> of_kind(costs_.shape().kinds(), 0);
    for (size_t l = stage_.begin; l < stage_.end; ++l) of_kind[costs_.shape().layers[l].kind] += 1;
    for (uint32_t kind = 0; kind < of_kind.size(); ++kind) {
      if (of_kind[kind] == 0) continue;
      if (!split_) {
        part(of_kind[kind], [&](const ShardPlan& s) {
          if (!s.in_layers()) return Work{};
          return attended(s, kind, {costs_.layer_ns(s.device, kind), 0, costs_.reading_ns(s.device, kind, s.kv_heads)});
        });
        continue;
      }
      part(of_kind[kind], [&](const ShardPlan& s) {
        Work work = shared(s, costs_.attention_ns(s.device, kind, s.query_heads, s.kv_heads));
        work.reading_ns = s.query_heads > 0 ? costs_.reading_ns(s.device, kind, s.kv_heads) : 0;
        return attended(s, kind, work);
      });
      part(of_kind[kind],
           [&](const ShardPlan& s) { return shared(s, costs_.ffn_ns(s.device, kind, s.ffn_columns, s.experts)); });
      cost_.ns += 2 * of_kind[kind] * reduce_ns_;
    }
    // Once a stage: a whole one's program; of a split one the program that adds the last sum. The residual stream comes
    // in before and goes out after.
    part(1, [&](const ShardPlan& s) {
      const double copies = (shared_ || !first_ ? 1 : 0) + (last_ && !hands_over() ? 0 : 1);
      return Work{costs_.program_ns(s.device), copies * costs_.copy_residual_ns(s.device)};
    });
    if (hands_over()) cost_.ns += reduce_ns_;
  }

  void head() {
    const auto holders = std::count_if(stage_.shards.begin(), stage_.shards.end(),
                                       [](const ShardPlan& shard) { return shard.vocab_rows > 0; });
    if (holders == 0) return;
    const ShardPlan& sampler = *std::find_if(stage_.shards.begin(), stage_.shards.end(),
                                             [](const ShardPlan& shard) { return shard.vocab_rows > 0; });
    part(1, [&](const ShardPlan& s) {
      if (s.vocab_rows == 0) return Work{};
      return Work{costs_.head_ns(s.device, s.vocab_rows) + wait(s),
                  holders > 1 ? costs_.copy_logits_ns(s.device, s.vocab_rows) : 0};
    });
    double meet = 0;
    for (const ShardPlan& shard : stage_.shards) {
      if (shard.vocab_rows == 0) continue;
      meet = std::max(meet, costs_.gather_ns(shard.device, sampler.device, shard.vocab_rows));
    }
    if (holders > 1) meet += costs_.copy_logits_ns(sampler.device, costs_.shape().vocab);
    const double sample = costs_.sample_ns(sampler.device), ids = costs_.copy_ids_ns(sampler.device);
    cost_.busy_ns[static_cast<size_t>(&sampler - stage_.shards.data())] += sample;
    double tokens = 0;  // where others of the stage embed, the ids are fetched for them, too
    for (const ShardPlan& shard : stage_.shards) {
      if (!lone_ || holders == 1 || shard.vocab_rows == 0) continue;
      tokens = std::max({tokens, ids, costs_.token_hop_ns(sampler.device, shard.device)});
    }
    cost_.ns += meet + sample + ids + tokens;
  }

  // Each receiver hears from one of the members of this stage.
  void hop_to(const StagePlan& next) {
    for (const ShardPlan& to : next.shards) {
      double least = std::numeric_limits<double>::max();
      for (const size_t from : devices_) least = std::min(least, costs_.hop_ns(from, to.device));
      cost_.hop_ns = std::max(cost_.hop_ns, least);
    }
  }

  StageCost take() {
    cost_.most_ns = cost_.ns;
    if (plan_.sections.empty() && std::none_of(stage_.shards.begin(), stage_.shards.end(),
                                               [](const ShardPlan& shard) { return shard.partner != kNoPartner; }))
      return std::move(cost_);
    cost_.most_ns = 0;  // two steps by turns: who has most to do
    for (size_t i = 0; i < stage_.shards.size(); ++i) {
      for (const size_t device : {stage_.shards[i].device, stage_.shards[i].kv_owner()})
        cost_.most_ns = std::max(cost_.most_ns, busy_of(device));
    }
    for (const SectionPlan& section : plan_.sections) cost_.most_ns = std::max(cost_.most_ns, busy_of(section.owner));
    return std::move(cost_);
  }

 private:
  struct Work {
    double program_ns = 0, copies_ns = 0;
    double reading_ns = 0;                                               // of the program's
    double attending_ns = 0, attending_reading_ns = 0, exchange_ns = 0;  // of its partner
    double given_ns = 0, taken_ns = 0;                                   // of the exchange: copies here, and there
    double hidden_ns = 0;                                                // of what owners of further sections take
    const ShardPlan* of = nullptr;                                       // whose heads they attend for; null: for none
    uint32_t kind = 0;
  };

  bool hands_over() const { return shared_ && !split_; }

  // With what its partner does for it meanwhile, if it has one.
  Work attended(const ShardPlan& shard, uint32_t kind, Work work) const {
    if (shard.query_heads == 0) return work;
    const double share = plan_.first_share();
    const double seen = costs_.partner_ns(shard.device, kind, shard.kv_heads) -
                        costs_.partner_ns(shard.device, kind, shard.kv_heads, 0);
    if (shard.partner != kNoPartner) {  // which reads what the program would
      work.program_ns = std::max(0.0, work.program_ns - work.reading_ns - seen);
      work.reading_ns = 0;
      work.attending_ns = costs_.partner_ns(shard.partner, kind, shard.kv_heads, share);
      work.attending_reading_ns = share * costs_.reading_ns(shard.partner, kind, shard.kv_heads);
      work.exchange_ns = costs_.exchange_ns(shard.device, shard.partner, shard.query_heads, shard.kv_heads);
      work.given_ns = costs_.exchange_copies_ns(shard.device, shard.query_heads, shard.kv_heads);
      work.taken_ns = costs_.exchange_copies_ns(shard.partner, shard.query_heads, shard.kv_heads);
      work.hidden_ns = work.attending_ns + work.attending_reading_ns;
    } else if (!plan_.sections.empty()) {  // attention is a program of its own, and so is what follows it
      work.program_ns = std::max(0.0, work.program_ns - (1 - share) * (work.reading_ns + seen));
      work.program_ns += 2 * (costs_.program_ns(shard.device) + costs_.wait_ns(shard.device));
      work.reading_ns *= share;
      work.hidden_ns = work.reading_ns + share * seen;
    }
    work.of = &shard, work.kind = kind;
    for (const SectionPlan& section : plan_.sections)
      work.exchange_ns += costs_.exchange_ns(shard.device, section.owner, shard.query_heads, shard.kv_heads);
    return work;
  }

  // Of a step, everything that the device does in this stage.
  double busy_of(size_t device) const {
    double ns = 0;
    for (size_t i = 0; i < stage_.shards.size(); ++i) {
      if (stage_.shards[i].device == device) ns += cost_.busy_ns[i] + copies_ns_[i];
      if (stage_.shards[i].kv_owner() == device) ns += cost_.partner_ns[i] + partner_copies_ns_[i];
    }
    for (size_t s = 0; s < plan_.sections.size(); ++s)
      if (plan_.sections[s].owner == device) ns += cost_.section_ns[s];
    return ns;
  }

  // Of a program before a meeting.
  double wait(const ShardPlan& shard) const { return shared_ ? costs_.wait_ns(shard.device) : 0; }

  double pull(const ShardPlan& shard, int64_t units) const {
    return shared_ && units > 0 ? costs_.copy_residual_ns(shard.device) : 0;
  }

  // A shard's part between two sums. Without units it still gets the one and adds it.
  Work shared(const ShardPlan& shard, double program_ns) const {
    const double copy = costs_.copy_residual_ns(shard.device);
    return program_ns > 0 ? Work{program_ns, 2 * copy} : Work{costs_.program_ns(shard.device) + wait(shard), copy};
  }

  // Devices of its group that run while this one does, itself included.
  size_t active(const LanePlan& plan, size_t stage, size_t device, bool overlapped) const {
    size_t active = 1;
    for (size_t s = 0; s < plan.stages.size(); ++s) {
      if (s != stage && !overlapped) continue;
      for (const ShardPlan& shard : plan.stages[s].shards)
        active += costs_.group_of(shard.device) == costs_.group_of(device) && shard.device != device ? 1 : 0;
      for (const ShardPlan& shard : plan.stages[s].shards) {
        if (shard.partner == kNoPartner || shard.partner == device || is_shard(plan.stages[s], shard.partner)) continue;
        active += costs_.group_of(shard.partner) == costs_.group_of(device) ? 1 : 0;
      }
    }
    return active;
  }

  static bool is_shard(const StagePlan& stage, size_t device) {
    return std::any_of(stage.shards.begin(), stage.shards.end(),
                       [&](const ShardPlan& shard) { return shard.device == device; });
  }

  // What the owners of further sections take longer than who keeps the first; counts their time.
  double attend_elsewhere(const Work& work, double times) {
    double most = 0;
    for (size_t s = 0; s < plan_.sections.size(); ++s) {
      const SectionPlan& section = plan_.sections[s];
      const auto& [slow, slow_reading] = section_slowdowns_[s];
      const double ns = slow * costs_.partner_ns(section.owner, work.kind, work.of->kv_heads, section.share) +
                        slow_reading * section.share * costs_.reading_ns(section.owner, work.kind, work.of->kv_heads);
      cost_.section_ns[s] += times * ns;
      most = std::max(most, ns - work.hidden_ns);
    }
    return most;
  }

  template <typename WorkOf>
  void part(double times, const WorkOf& work_of) {
    double latest = 0;
    for (size_t i = 0; i < stage_.shards.size(); ++i) {
      const Work work = work_of(stage_.shards[i]);
      const double reading = std::min(work.reading_ns, work.program_ns);
      const double ns = (work.program_ns - reading) * slowdowns_[i] + reading * reading_slowdowns_[i];
      const auto& [slow, slow_reading] = partner_slowdowns_[i];
      const double attending = work.attending_ns * slow + work.attending_reading_ns * slow_reading;
      cost_.busy_ns[i] += times * ns;
      cost_.partner_ns[i] += times * attending;
      copies_ns_[i] += times * (work.copies_ns + work.given_ns);
      partner_copies_ns_[i] += times * work.taken_ns;
      const double elsewhere = work.of == nullptr ? 0 : attend_elsewhere(work, times);
      latest = std::max(latest, ns + work.copies_ns + attending + elsewhere + work.exchange_ns);
    }
    cost_.ns += times * latest;
  }

  const StepCosts& costs_;
  const LanePlan& plan_;
  const StagePlan& stage_;
  const bool shared_;  // it has several shards
  const bool split_;   // and its layers are summed over them
  const bool first_, last_, lone_;
  std::vector<size_t> devices_;
  std::vector<double> slowdowns_, reading_slowdowns_;         // [shard]
  std::vector<std::pair<double, double>> partner_slowdowns_;  // the same of its partner
  std::vector<std::pair<double, double>> section_slowdowns_;  // [section] of its owner
  std::vector<double> copies_ns_ = std::vector<double>(stage_.shards.size(), 0);
  std::vector<double> partner_copies_ns_ = copies_ns_;
  double reduce_ns_ = 0;
  StageCost cost_;
};

}  // namespace

StageCost stage_cost(const StepCosts& costs, const LanePlan& plan, size_t stage, bool overlapped) {
  StageClock clock(costs, plan, stage, overlapped);
  if (stage == 0) clock.embed();
  clock.layers();
  if (stage + 1 == plan.stages.size()) {
    clock.head();
  } else {
    clock.hop_to(plan.stages[stage + 1]);
  }
  return clock.take();
}

}  // namespace motley
