#include "planner/plan_json.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "planner/json_fields.hpp"

namespace motley {
namespace {

using nlohmann::ordered_json;
using planner::JsonFields;

constexpr size_t kStagesMax = 4096;
constexpr size_t kLanesMax = 64;
constexpr int64_t kMicroBatchesMax = 65536;
constexpr double kShareMin = 1e-6;
constexpr int64_t kChunkRowsMax = 1 << 20;
constexpr const char* kOwners = "must name the shards that have heads, or their partners, and no others";

ordered_json shard_json(const PlanReport& report, const Shard& shard) {
  const auto share = std::find_if(report.devices.begin(), report.devices.end(),
                                  [&](const DeviceShare& d) { return d.device == shard.device; });
  ordered_json json = {{"device", shard.device}, {"kv_heads", units_in(shard.kv_heads)}};
  if (!shard.query_heads.empty()) json["query_heads"] = units_in(shard.query_heads);
  json["ffn_columns"] = units_in(shard.ffn_columns);
  json["vocab_rows"] = units_in(shard.vocab_rows);
  if (!shard.partner.empty()) json["partner"] = shard.partner;
  json["experts"] = shard.experts;
  json["weight_bytes"] = shard.weight_bytes;
  json["format"] = share == report.devices.end() || share->format.empty() ? "as in the file" : share->format;
  return json;
}

ordered_json lane_json(const PlanReport& report, const Lane& lane) {
  ordered_json json = {{"stages", ordered_json::array()}};
  for (const Stage& stage : lane.stages) {
    ordered_json one = {{"layers", {stage.layer_begin, stage.layer_end}}, {"shards", ordered_json::array()}};
    for (const Shard& shard : stage.shards) one["shards"].push_back(shard_json(report, shard));
    one["kv_owners"] = stage.kv_owners;
    json["stages"].push_back(std::move(one));
  }
  for (const KvSection& section : lane.sections) {
    json["sections"].push_back(
        {{"owner", section.owner}, {"kv_capacity_tokens", uint64_t{section.blocks} * report.placement.block_size}});
  }
  if (lane.micro_batches > 0) json["micro_batches"] = lane.micro_batches;
  if (lane.chunk_rows > 0) json["chunk_rows"] = lane.chunk_rows;
  for (const PairRoute& pair : lane.routes)
    json["routes"].push_back({{"a", pair.a}, {"b", pair.b}, {"route", route_name(pair.route)}});
  return json;
}

// Reads one lane of a file against one model and machine.
class PlanReader {
 public:
  PlanReader(const ModelShape& shape, const PlanInput& input) : shape_(shape), input_(input) {}

  Status read_stages(const JsonFields& lane) {
    const hf::JsonValue::Array* list = nullptr;
    RETURN_IF_ERROR(lane.list("stages", &list, kStagesMax));
    const hf::JsonValue::Array& stages = *list;
    for (size_t s = 0; s < stages.size(); ++s) RETURN_IF_ERROR(read_stage(stages[s], s, s + 1 == stages.size()));
    return check_lane(shape_, input_, plan_);
  }

  // The further sections of the pool, before its stages are read. Positions of each; 0 = as many as fit.
  Result<std::vector<uint64_t>> read_sections(const JsonFields& lane, uint32_t block_size) {
    const hf::JsonValue::Array* list = nullptr;
    RETURN_IF_ERROR(lane.list("sections", &list, kSectionsMax, false));
    std::vector<uint64_t> tokens;
    for (size_t i = 0; list != nullptr && i < list->size(); ++i) {
      const JsonFields fields((*list)[i], fmt::format("sections[{}]", i));
      RETURN_IF_ERROR(fields.check_names({"owner", "kv_capacity_tokens"}));
      ASSIGN_OR_RETURN(plan_.sections.emplace_back().owner, read_device(fields, "owner"));
      RETURN_IF_ERROR(read_tokens(fields, block_size, &tokens.emplace_back()));
    }
    return tokens;
  }

  // Left out: 0.
  static Status read_tokens(const JsonFields& fields, uint32_t block_size, uint64_t* tokens) {
    constexpr const char* kName = "kv_capacity_tokens";
    RETURN_IF_ERROR(fields.whole(kName, tokens, 0, INT32_MAX, false));
    if (fields.find(kName) == nullptr || *tokens >= block_size) return ok_status();
    return fields.wrong(kName, fmt::format("is {}, less than a block of {}", *tokens, block_size));
  }

  Result<std::vector<PairRoute>> read_routes(const JsonFields& file) const {
    const hf::JsonValue::Array* pairs = nullptr;
    RETURN_IF_ERROR(file.list("routes", &pairs, kPlanDevicesMax * kPlanDevicesMax, false));
    std::vector<PairRoute> routes;
    std::set<std::pair<size_t, size_t>> seen;
    for (size_t i = 0; pairs != nullptr && i < pairs->size(); ++i) {
      const JsonFields fields((*pairs)[i], fmt::format("routes[{}]", i));
      RETURN_IF_ERROR(fields.check_names({"a", "b", "route"}));
      ASSIGN_OR_RETURN(const size_t a, read_device(fields, "a"));
      ASSIGN_OR_RETURN(const size_t b, read_device(fields, "b"));
      PairRoute& pair = routes.emplace_back();
      pair.a = input_.devices[a].name, pair.b = input_.devices[b].name;
      RETURN_IF_ERROR(fields.route("route", &pair.route));
      if (a == b) return fields.wrong("b", "is the same device as a; a route is of two");
      if (!seen.insert(std::minmax(a, b)).second)
        return fields.wrong("", fmt::format("is of {} and {}, which are there before; leave one out", in_quotes(pair.a),
                                            in_quotes(pair.b)));
    }
    return routes;
  }

  const LanePlan& plan() const { return plan_; }

 private:
  Result<size_t> read_device(const JsonFields& fields, std::string_view key) const {
    std::string name;
    RETURN_IF_ERROR(fields.text(key, &name));
    for (size_t d = 0; d < input_.devices.size(); ++d) {
      if (same_device(input_.devices[d].name, name)) return d;
    }
    std::string known;
    for (size_t d = 0; d < input_.devices.size() && d < 8; ++d) known += (d > 0 ? ", " : "") + input_.devices[d].name;
    if (input_.devices.size() > 8) known += ", ...";
    return fields.wrong(key, fmt::format("is {}, which is not listed (there are: {})", in_quotes(name), known));
  }

  Status read_experts(const JsonFields& fields, ShardPlan* shard) {
    std::vector<int64_t> ids;
    RETURN_IF_ERROR(
        fields.whole_numbers("experts", &ids, static_cast<size_t>(std::max<int64_t>(shape_.experts, 0)), false));
    // The ids follow the order of the shards, as all ranges do.
    for (const int64_t id : ids) {
      if (id != next_expert_) {
        return fields.wrong("experts",
                            fmt::format("has {} where {} comes next: each expert once, in order", id, next_expert_));
      }
      ++next_expert_;
    }
    shard->experts = static_cast<int64_t>(ids.size());
    return ok_status();
  }

  Status read_shard(const hf::JsonValue& json, const std::string& where, bool outer, bool only, bool* replicated,
                    ShardPlan* shard) {
    const JsonFields fields(json, where);
    RETURN_IF_ERROR(fields.check_names({"device", "kv_heads", "query_heads", "ffn_columns", "vocab_rows", "experts",
                                        "weight_bytes", "format", "partner"}));
    std::string format;
    uint64_t bytes = 0;
    ASSIGN_OR_RETURN(shard->device, read_device(fields, "device"));
    if (only) {
      const StagePlan whole = whole_stage(shape_, shard->device, 0, shape_.layers.size());
      *shard = whole.shards[0];
      if (!outer) shard->vocab_rows = 0;
    }
    RETURN_IF_ERROR(fields.whole("kv_heads", &shard->kv_heads, 0, shape_.kv_heads, false));
    if (!only || fields.find("kv_heads") != nullptr) shard->query_heads = shard->kv_heads * shape_.query_heads_per_kv();
    *replicated = fields.find("query_heads") != nullptr;
    RETURN_IF_ERROR(fields.whole("query_heads", &shard->query_heads, 0, shape_.heads, false));
    RETURN_IF_ERROR(fields.whole("ffn_columns", &shard->ffn_columns, 0, shape_.ffn_columns, false));
    RETURN_IF_ERROR(fields.whole("vocab_rows", &shard->vocab_rows, 0, shape_.vocab, false));
    if (fields.find("partner") != nullptr) {
      ASSIGN_OR_RETURN(shard->partner, read_device(fields, "partner"));
    }
    if (!only || fields.find("experts") != nullptr) RETURN_IF_ERROR(read_experts(fields, shard));
    RETURN_IF_ERROR(fields.whole("weight_bytes", &bytes, 0, INT64_MAX, false));
    return fields.text("format", &format, false);
  }

  Status read_layers(const JsonFields& fields, StagePlan* stage) {
    std::vector<int64_t> layers;
    RETURN_IF_ERROR(fields.whole_numbers("layers", &layers, 2));
    if (layers.size() != 2 || layers[0] < 0 || layers[1] <= layers[0] ||
        layers[1] > static_cast<int64_t>(shape_.layers.size())) {
      return fields.wrong("layers", fmt::format("must be [first, end) within the model's {}", shape_.layers.size()));
    }
    stage->begin = static_cast<size_t>(layers[0]), stage->end = static_cast<size_t>(layers[1]);
    return ok_status();
  }

  // KV heads held must be those of the query heads, as they lie in the shards' order.
  Status settle(const std::string& where, bool replicated, StagePlan* stage) {
    StagePlan settled = *stage;
    settle_heads(shape_, &settled);
    for (size_t i = 0; i < stage->shards.size(); ++i) {
      if (settled.shards[i].kv_heads == stage->shards[i].kv_heads) continue;
      return invalid_argument("{}.shards[{}]: {} query heads at this place use {} KV heads, not {}{}", where, i,
                              stage->shards[i].query_heads, settled.shards[i].kv_heads, stage->shards[i].kv_heads,
                              replicated ? "" : "; give query_heads for every shard");
    }
    return ok_status();
  }

  Status check_owners(const JsonFields& fields, const StagePlan& stage) {
    const hf::JsonValue::Array* owners = nullptr;
    RETURN_IF_ERROR(fields.list("kv_owners", &owners, kPlanDevicesMax, false));
    if (owners == nullptr) return ok_status();
    size_t holders = 0;
    for (const ShardPlan& shard : stage.shards) {
      if (shard.query_heads == 0) continue;
      ++holders;
      const bool found = std::any_of(owners->begin(), owners->end(), [&](const hf::JsonValue& owner) {
        return owner.text() != nullptr && same_device(*owner.text(), input_.devices[shard.kv_owner()].name);
      });
      if (!found) return fields.wrong("kv_owners", kOwners);
    }
    return holders == owners->size() ? ok_status() : fields.wrong("kv_owners", kOwners);
  }

  Status read_stage(const hf::JsonValue& json, size_t s, bool last) {
    const std::string where = fmt::format("stages[{}]", s);
    const JsonFields fields(json, where);
    RETURN_IF_ERROR(fields.check_names({"layers", "shards", "kv_owners"}));
    StagePlan stage;
    RETURN_IF_ERROR(read_layers(fields, &stage));
    const hf::JsonValue::Array* shards = nullptr;
    RETURN_IF_ERROR(fields.list("shards", &shards, kPlanDevicesMax));
    if (shards->empty()) return fields.wrong("shards", "is empty");
    next_expert_ = 0;
    size_t with_queries = 0;
    for (size_t i = 0; i < shards->size(); ++i) {
      ShardPlan shard;
      bool replicated = false;
      RETURN_IF_ERROR(read_shard((*shards)[i], fmt::format("{}.shards[{}]", where, i), s == 0 || last,
                                 shards->size() == 1, &replicated, &shard));
      with_queries += replicated ? 1 : 0;
      stage.shards.push_back(shard);
    }
    if (with_queries != 0 && with_queries != shards->size()) {
      return fields.wrong("shards", "have query_heads in some and not in others");
    }
    RETURN_IF_ERROR(settle(where, with_queries != 0, &stage));
    RETURN_IF_ERROR(check_owners(fields, stage));
    plan_.stages.push_back(std::move(stage));
    return ok_status();
  }

  const ModelShape& shape_;
  const PlanInput& input_;
  LanePlan plan_;
  int64_t next_expert_ = 0;
};

Status check_identity(const JsonFields& file, const ModelShape& shape, const PlanIdentity& identity) {
  std::string machine, name, digest;
  RETURN_IF_ERROR(file.text("machine", &machine, false));
  if (file.find("machine") != nullptr && machine != identity.machine) {
    return invalid_argument("this plan was made on another machine ({}, here {}); plan again, or leave \"machine\" out",
                            in_quotes(machine), in_quotes(identity.machine));
  }
  const hf::JsonValue* model = file.find("model");
  if (model == nullptr) return ok_status();
  const JsonFields fields(*model, "model");
  RETURN_IF_ERROR(fields.check_names({"name", "digest"}));
  RETURN_IF_ERROR(fields.text("name", &name, false));
  RETURN_IF_ERROR(fields.text("digest", &digest, false));
  if (fields.find("digest") != nullptr && digest != identity.model_digest) {
    return invalid_argument("this plan is of another model ({}, digest {}; here {}, digest {}); plan again",
                            in_quotes(name), in_quotes(digest), in_quotes(shape.name),
                            in_quotes(identity.model_digest));
  }
  return ok_status();
}

// What is forced beside the file must hold in each lane.
Status check_sizes(const LanePlan& plan, const PlanRequest& request) {
  const uint32_t width = request.tensor_parallel_size, stages = request.pipeline_parallel_size;
  if (stages > 0 && plan.stages.size() != stages) {
    return invalid_argument("the plan has {} stages, and --pipeline-parallel-size asks for {}; leave one of them out",
                            plan.stages.size(), stages);
  }
  for (size_t s = 0; s < plan.stages.size() && width > 0; ++s) {
    if (plan.stages[s].shards.size() == width) continue;
    return invalid_argument("stages[{}] has {} devices, and --tensor-parallel-size asks for {}; leave one of them out",
                            s, plan.stages[s].shards.size(), width);
  }
  return ok_status();
}

Status check_all_used(std::span<const LaneOfSet> lanes, const PlanInput& input, const PlanRequest& request) {
  const std::vector<size_t> used = devices_of(lanes);
  for (size_t d = 0; d < input.devices.size() && request.use_all_devices; ++d) {
    if (std::binary_search(used.begin(), used.end(), d)) continue;
    return invalid_argument(
        "the plan leaves out {}, and --use-all-devices asks for every device; leave one of them out",
        input.devices[d].name);
  }
  return ok_status();
}

struct LanesRead {
  std::vector<LaneOfSet> lanes;
  std::vector<PoolTokens> kv_tokens;                // [pool]
  std::vector<uint32_t> micro_batches, chunk_rows;  // [lane]
  std::vector<std::vector<PairRoute>> routes;       // [lane]

  // What a lane says of its pool: all of it, of which its further sections take theirs.
  Status set_pool(const JsonFields& fields, uint32_t index, uint32_t block_size, PoolTokens pool) {
    constexpr const char* kName = "kv_capacity_tokens";
    uint64_t all = 0;
    RETURN_IF_ERROR(PlanReader::read_tokens(fields, block_size, &all));
    const uint64_t further = pool.all();
    if (all > 0 && std::find(pool.further.begin(), pool.further.end(), 0u) != pool.further.end())
      return fields.wrong(kName, "is given, and not that of each of the sections");
    if (all > 0 && all < further + block_size)
      return fields.wrong(kName, fmt::format("is {}, and the sections have {} of them; a block at least is left to the "
                                             "shards' owners",
                                             all, further));
    if (all > 0) pool.first = all - further;
    if (index == kv_tokens.size()) kv_tokens.push_back(pool);
    if (kv_tokens[index].all() == 0) kv_tokens[index] = pool;
    if (pool.all() != 0 && (pool.first != kv_tokens[index].first || pool.further != kv_tokens[index].further))
      return fields.wrong(kName, fmt::format("is {}, and pool {} has {}", all, index, kv_tokens[index].all()));
    return ok_status();
  }

  // The next lane: a whole file of one, or one of its list.
  Status add(const ModelShape& shape, const PlanInput& input, const PlanRequest& request, const JsonFields& fields,
             bool of_list) {
    if (of_list)
      RETURN_IF_ERROR(fields.check_names({"pool", "role", "share", "kv_capacity_tokens", "stages", "sections",
                                          "micro_batches", "chunk_rows", "routes"}));
    LaneOfSet lane;
    lane.pool = static_cast<uint32_t>(kv_tokens.size());
    if (of_list) RETURN_IF_ERROR(fields.whole("pool", &lane.pool, 0, lane.pool, false));
    PlanReader reader(shape, input);
    PoolTokens pool;
    ASSIGN_OR_RETURN(pool.further, reader.read_sections(fields, request.kv.block_size));
    RETURN_IF_ERROR(reader.read_stages(fields));
    lane.plan = reader.plan();
    RETURN_IF_ERROR(check_sizes(lane.plan, request));
    RETURN_IF_ERROR(set_pool(fields, lane.pool, request.kv.block_size, std::move(pool)));
    std::string role = "both";
    if (of_list) RETURN_IF_ERROR(fields.text("role", &role, false));
    if (role != "both" && role != "prefill" && role != "decode")
      return fields.wrong("role", fmt::format(R"(is {}; "both", "prefill" or "decode")", in_quotes(role)));
    lane.prefills = role != "decode", lane.decodes = role != "prefill";
    if (of_list) RETURN_IF_ERROR(fields.number("share", &lane.share, kShareMin, 1, false));
    uint32_t steps = 0;
    RETURN_IF_ERROR(fields.whole("micro_batches", &steps, 1, kMicroBatchesMax, false));
    if (const size_t most = steps_at_once(lane.plan); lane.plan.stages.size() == 1 && steps > most)
      return fields.wrong("micro_batches", fmt::format("is {}, and a single stage has {}", steps,
                                                       most == 1 ? "one" : "two where a partner attends"));
    uint32_t rows = 0;
    RETURN_IF_ERROR(fields.whole("chunk_rows", &rows, 1, kChunkRowsMax, false));
    chunk_rows.push_back(rows);
    ASSIGN_OR_RETURN(std::vector<PairRoute> pairs, reader.read_routes(fields));
    lanes.push_back(std::move(lane)), micro_batches.push_back(steps), routes.push_back(std::move(pairs));
    return ok_status();
  }
};

// What stands beside several lanes is what their pools come to; 0 = nothing stands there.
Status check_sum(const JsonFields& file, uint64_t of_all, const std::vector<PoolTokens>& pools) {
  uint64_t sum = 0;
  for (const PoolTokens& pool : pools) {
    if (pool.all() == 0) return ok_status();  // as many as fit: that is not known here
    sum += pool.all();
  }
  if (of_all == 0 || of_all == sum) return ok_status();
  return file.wrong(
      "kv_capacity_tokens",
      fmt::format("is {}, and the pools of the lanes come to {}; change theirs, or leave it out", of_all, sum));
}

}  // namespace

std::string to_json(const PlanReport& report, const ModelShape& shape, const PlanIdentity& identity) {
  const std::vector<Lane>& lanes = report.placement.lanes;
  ordered_json json = {{"model", {{"name", shape.name}, {"digest", identity.model_digest}}},
                       {"machine", identity.machine}};
  if (lanes.size() == 1) json.update(lane_json(report, lanes[0]));
  for (size_t i = 0; i < lanes.size() && lanes.size() > 1; ++i) {
    ordered_json one = {{"pool", lanes[i].pool}, {"kv_capacity_tokens", report.lanes.at(i).kv_tokens}};
    if (!lanes[i].prefills || !lanes[i].decodes) one["role"] = lanes[i].prefills ? "prefill" : "decode";
    if (lanes[i].share > 0) one["share"] = lanes[i].share;
    one.update(lane_json(report, lanes[i]));
    json["lanes"].push_back(std::move(one));
  }
  if (!report.simulated.empty()) json["simulated"] = report.simulated;
  json["predicted"] = {{"tokens_per_s", report.predicted.tokens_per_s},
                       {"ttft_ms", report.predicted.ttft_ms},
                       {"tpot_ms", report.predicted.tpot_ms}};
  if (report.ttft_ms_max > 0 || report.tpot_ms_max > 0) json["predicted"]["keeps_slo"] = report.keeps_slo;
  json["bound_tokens_per_s"] = report.bound_tokens_per_s;
  json["gap"] = report.gap;
  json["kv_capacity_tokens"] = report.kv_capacity_tokens;
  if (!report.moved.empty()) json["moved"] = report.moved;
  json["left_out"] = ordered_json::array();
  for (const LeftOut& out : report.left_out)
    json["left_out"].push_back({{"device", out.device}, {"reason", out.reason}});
  json["alternatives"] = ordered_json::array();
  for (const Alternative& other : report.alternatives) {
    json["alternatives"].push_back({{"devices", other.devices}, {"tokens_per_s", other.tokens_per_s}});
  }
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

Result<Placement> read_plan(std::string_view text, const ModelShape& shape, const PlanInput& input,
                            const PlanRequest& request, const PlanIdentity& identity) {
  if (text.size() > kPlanFileBytesMax) {
    return invalid_argument("the plan has {} bytes; at most {}", text.size(), kPlanFileBytesMax);
  }
  RETURN_IF_ERROR(check_request(request));
  ASSIGN_OR_RETURN(const hf::JsonValue json, hf::parse_json(text));
  const JsonFields file(json, "");
  RETURN_IF_ERROR(file.check_names({"model", "machine", "stages", "sections", "simulated", "micro_batches",
                                    "chunk_rows", "routes", "predicted", "bound_tokens_per_s", "gap",
                                    "kv_capacity_tokens", "moved", "left_out", "alternatives", "lanes"}));
  RETURN_IF_ERROR(check_identity(file, shape, identity));
  LanesRead read;
  const hf::JsonValue::Array* lanes = nullptr;
  RETURN_IF_ERROR(file.list("lanes", &lanes, kLanesMax, false));
  uint64_t of_all = 0;  // where there are several, their sum: each has its own
  RETURN_IF_ERROR(file.whole("kv_capacity_tokens", &of_all, 0, INT64_MAX, false));
  if (lanes == nullptr) {
    RETURN_IF_ERROR(read.add(shape, input, request, file, false));
  } else if (lanes->empty()) {
    return file.wrong("lanes", "is empty");
  }
  for (const char* key : {"stages", "sections", "micro_batches", "chunk_rows", "routes"}) {
    if (lanes != nullptr && file.find(key) != nullptr) return file.wrong(key, "stands in each of the lanes");
  }
  for (size_t i = 0; lanes != nullptr && i < lanes->size(); ++i) {
    if ((*lanes)[i].object() == nullptr)
      return invalid_argument("lanes[{}] is {}, not an object", i, (*lanes)[i].kind_name());
    const Status status = read.add(shape, input, request, JsonFields((*lanes)[i], ""), true);
    if (!status.ok()) return invalid_argument("lanes[{}]: {}", i, status.message());
  }
  RETURN_IF_ERROR(check_pools(read.lanes));
  RETURN_IF_ERROR(check_sum(file, lanes != nullptr ? of_all : 0, read.kv_tokens));
  RETURN_IF_ERROR(check_all_used(read.lanes, input, request));
  Placement placement = to_placement(shape, input, request, read.lanes, read.kv_tokens, read.micro_batches);
  for (size_t i = 0; i < placement.lanes.size(); ++i) {
    placement.lanes[i].routes = std::move(read.routes[i]);
    placement.lanes[i].chunk_rows = read.chunk_rows[i];
  }
  return placement;
}

}  // namespace motley
