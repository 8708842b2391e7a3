// The ops of expert layers: routing, products with the chosen experts, the sum of what they say.
#include <algorithm>

#include "harness.hpp"
#include "kit/kit.hpp"

namespace motley::conformance {

namespace {

constexpr int64_t kR = MOTLEY_DIM_ROWS;

void routers(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_TOPK_ROUTER})) return judge.skip("TOPK_ROUTER");
  Random random(judge.options().seed);
  for (const auto& [experts, top_k] : {std::pair{11, 3}, {1, 1}, {4, 4}, {128, 8}, {60, 4}}) {
    for (int32_t gating = 1; gating <= 3; ++gating) {
      for (const int32_t normalise : {0, 1}) {
        GraphBuilder g;
        const int32_t x = g.input(MOTLEY_F32, {kR, experts});
        g.op(MOTLEY_OP_TOPK_ROUTER, {x}, {g.output(MOTLEY_I32, {kR, top_k}), g.output(MOTLEY_F32, {kR, top_k})})
            .attr.router = {experts, top_k, gating, normalise, 1.5f};
        auto logits = random.normals(9 * static_cast<size_t>(experts), 2);
        std::fill(logits.begin(), logits.begin() + experts, 0.25f);  // all equal: the lowest ids
        judge.compare(g, {{x, to_bytes(logits)}}, plain_batch(9), kElementwise,
                      "TOPK_ROUTER " + std::to_string(top_k) + " of " + std::to_string(experts) + " gating " +
                          std::to_string(gating));
      }
    }
  }
}

void combinations(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_COMBINE_EXPERTS})) return judge.skip("COMBINE_EXPERTS");
  Random random(judge.options().seed);
  for (const int64_t width : {1, 16, 75, 200}) {
    for (const int64_t top_k : {1, 2, 8}) {
      for (const uint32_t rows : {1u, 3u, 20u}) {
        GraphBuilder g;
        const int32_t x = g.input(MOTLEY_F32, {kR, top_k, width}), w = g.input(MOTLEY_F32, {kR, top_k});
        g.op(MOTLEY_OP_COMBINE_EXPERTS, {x, w}, {g.output(MOTLEY_F32, {kR, width})});
        judge.compare(g,
                      {{x, to_bytes(random.normals(rows * static_cast<size_t>(top_k * width)))},
                       {w, to_bytes(random.normals(rows * static_cast<size_t>(top_k)))}},
                      plain_batch(rows), kElementwise,
                      "COMBINE_EXPERTS " + std::to_string(top_k) + " x " + std::to_string(width));
      }
    }
  }
}

// A product with the chosen experts, and what it is run with.
struct GroupedCase {
  int64_t experts = 5, top_k = 3, n = 35, k = 64;
  int32_t dtype = MOTLEY_F32;
  bool own_inputs = false, biases = false;
};

struct Grouped {
  GraphBuilder graph;
  int32_t x = 0, ids = 0, out = 0;
  GroupedCase c;
  size_t input_width() const { return static_cast<size_t>(c.own_inputs ? c.top_k * c.k : c.k); }
};

Grouped make_grouped(Random& random, const GroupedCase& c) {
  Grouped m;
  m.c = c;
  GraphBuilder& g = m.graph;
  m.x = c.own_inputs ? g.input(MOTLEY_F32, {kR, c.top_k, c.k}) : g.input(MOTLEY_F32, {kR, c.k});
  m.ids = g.input(MOTLEY_I32, {kR, c.top_k});
  m.out = g.output(MOTLEY_F32, {kR, c.top_k, c.n});
  std::vector<int32_t> weights = {g.weight(random_weight(random, c.dtype, MOTLEY_WEIGHT_MATMUL, c.n, c.k, c.experts))};
  if (c.biases) weights.push_back(g.weight(vector_weight(random.normals(static_cast<size_t>(c.experts * c.n), 0.3f))));
  g.op(MOTLEY_OP_GROUPED_MATMUL, {m.x, m.ids}, {m.out}, weights);
  return m;
}

std::vector<int32_t> random_ids(Random& random, size_t count, int64_t experts) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(static_cast<uint32_t>(experts)));
  return ids;
}

std::string name_of(const GroupedCase& c, uint32_t rows) {
  return std::string("GROUPED_MATMUL ") + kit::find_format(c.dtype)->name + " rows " + std::to_string(rows) +
         (c.own_inputs ? " own inputs" : "") + (c.biases ? " biases" : "");
}

void grouped(Judge& judge, const GroupedCase& c) {
  Random random(judge.options().seed + static_cast<uint64_t>(c.dtype));
  const Grouped m = make_grouped(random, c);
  for (const uint32_t rows : {1u, 2u, 9u, 40u}) {
    const size_t pairs = rows * static_cast<size_t>(c.top_k);
    judge.compare(m.graph,
                  {{m.x, to_bytes(random.normals(rows * m.input_width()))},
                   {m.ids, to_bytes(random_ids(random, pairs, c.experts))}},
                  plain_batch(rows), matmul_tolerance(c.dtype), name_of(c, rows));
  }
}

// A row's bits do not depend on the rows beside it, on their order, or on who computes them.
void grouped_invariant(Judge& judge, const GroupedCase& c) {
  if (!judge.device().has(MOTLEY_CAP_ROW_INVARIANT)) return judge.skip("row invariance of GROUPED_MATMUL");
  constexpr uint32_t kRows = 23;
  Random random(judge.options().seed + 60 + static_cast<uint64_t>(c.dtype));
  const Grouped m = make_grouped(random, c);
  const auto x = random.normals(kRows * m.input_width());
  const auto ids = random_ids(random, kRows * static_cast<size_t>(c.top_k), c.experts);
  const auto run = [&](Device& device, const std::vector<uint32_t>& rows) {
    std::vector<float> some_x;
    std::vector<int32_t> some_ids;
    for (const uint32_t r : rows) {
      const auto width = static_cast<long>(m.input_width()), at = static_cast<long>(r);
      some_x.insert(some_x.end(), x.begin() + at * width, x.begin() + (at + 1) * width);
      some_ids.insert(some_ids.end(), ids.begin() + at * c.top_k, ids.begin() + (at + 1) * c.top_k);
    }
    const auto count = static_cast<uint32_t>(rows.size());
    return from_bytes<float>(device
                                 .run(device.compile(m.graph, {kRows}),
                                      {{m.x, to_bytes(some_x)}, {m.ids, to_bytes(some_ids)}}, plain_batch(count))
                                 .at(m.out));
  };
  std::vector<float> alone;
  for (uint32_t r = 0; r < kRows; ++r) {
    const auto row = run(judge.device(), {r});
    alone.insert(alone.end(), row.begin(), row.end());
  }
  std::vector<uint32_t> order;
  for (uint32_t r = 0; r < kRows; ++r) order.push_back(r);
  const auto width = static_cast<long>(c.top_k * c.n);
  const auto wanted = [&] {
    std::vector<float> out;
    for (const uint32_t r : order) out.insert(out.end(), alone.begin() + r * width, alone.begin() + (r + 1) * width);
    return to_bytes(out);
  };
  judge.same(to_bytes(run(judge.device(), order)), wanted(), name_of(c, kRows) + " among others");
  random.shuffle(order);
  order.resize(14);
  for (const uint32_t threads : {1u, 2u, 3u, 7u}) {
    const auto device = judge.open(threads);
    judge.same(to_bytes(run(*device, order)), wanted(), name_of(c, 14) + " with other threads");
  }
}

// Ids come out of a program: a wrong one shows itself only at run time, and fails the run.
void wild_ids(Judge& judge, int32_t id) {
  Random random(judge.options().seed + 61);
  const Grouped m = make_grouped(random, {.dtype = judge.plain_dtype()});
  auto ids = random_ids(random, 4 * static_cast<size_t>(m.c.top_k), m.c.experts);
  ids[5] = id;
  std::string said;
  try {
    judge.device().run(judge.device().compile(m.graph, {4}),
                       {{m.x, to_bytes(random.normals(4 * m.input_width()))}, {m.ids, to_bytes(ids)}}, plain_batch(4));
  } catch (const Stop& stop) {
    said = stop.text;
  }
  judge.check(said.find("code 11") != std::string::npos, "expert id " + std::to_string(id) + " is out of range");
}

// Both products and their activation, then the way back: what a device may join must give what the parts give.
void expert_layer(Judge& judge, int32_t dtype, int activation, bool cut) {
  const int64_t hidden = 64, ffn = dtype == MOTLEY_F32 ? 40 : 96, experts = 6, top_k = 2;
  Random random(judge.options().seed + 62);
  GraphBuilder g;
  const int32_t x = g.input(MOTLEY_F32, {kR, hidden}), residual = g.input(MOTLEY_F32, {kR, hidden});
  const int32_t ids = g.value(MOTLEY_I32, {kR, top_k}), weights = g.value(MOTLEY_F32, {kR, top_k});
  const int32_t logits = g.value(MOTLEY_F32, {kR, experts});
  const auto matrix = [&](int64_t rows, int64_t cols) {
    return g.weight(random_weight(random, dtype, MOTLEY_WEIGHT_MATMUL, rows, cols, experts));
  };
  const auto biases = [&](int64_t rows) {
    return g.weight(vector_weight(random.normals(static_cast<size_t>(experts * rows), 0.1f)));
  };
  const auto value = [&](int64_t n) { return g.value(MOTLEY_F32, {kR, top_k, n}); };
  g.op(MOTLEY_OP_MATMUL, {x}, {logits},
       {g.weight(random_weight(random, judge.plain_dtype(), MOTLEY_WEIGHT_MATMUL, experts, hidden))});
  g.op(MOTLEY_OP_TOPK_ROUTER, {logits}, {ids, weights}).attr.router = {experts, top_k, 3, 0, 1};
  const int32_t gate = value(ffn), up = value(ffn), both = value(ffn), down = value(hidden);
  if (cut) {
    const int32_t joined = value(2 * ffn);
    g.op(MOTLEY_OP_GROUPED_MATMUL, {x, ids}, {joined}, {matrix(2 * ffn, hidden), biases(2 * ffn)});
    g.op(MOTLEY_OP_SPLIT, {joined}, {gate, up});
  } else {
    g.op(MOTLEY_OP_GROUPED_MATMUL, {x, ids}, {up}, {matrix(ffn, hidden), biases(ffn)});
    g.op(MOTLEY_OP_GROUPED_MATMUL, {x, ids}, {gate}, {matrix(ffn, hidden)});
  }
  motley_op& join = g.op(activation, {gate, up}, {both});
  if (activation == MOTLEY_OP_CLAMPED_SWIGLU) join.attr.glu = {1.702f, 7.0f};
  g.op(MOTLEY_OP_GROUPED_MATMUL, {both, ids}, {down}, {matrix(hidden, ffn), biases(hidden)});
  const int32_t sum = g.value(MOTLEY_F32, {kR, hidden});
  g.op(MOTLEY_OP_COMBINE_EXPERTS, {down, weights}, {sum});
  g.op(MOTLEY_OP_ADD, {residual, sum}, {g.output(MOTLEY_F32, {kR, hidden})});
  const Tolerance one = matmul_tolerance(dtype);
  for (const uint32_t rows : {1u, 6u, 33u}) {
    judge.compare(g,
                  {{x, to_bytes(random.normals(rows * static_cast<size_t>(hidden)))},
                   {residual, to_bytes(random.normals(rows * static_cast<size_t>(hidden)))}},
                  plain_batch(rows), {2 * one.norm, 2 * one.largest},
                  std::string("an expert layer in ") + kit::find_format(dtype)->name + ", activation " +
                      std::to_string(activation) + (cut ? ", joined gate and up" : ""));
  }
}

// Choices of experts that another shard holds give zeros; of those held, what the whole gives.
void expert_parts(Judge& judge, const GroupedCase& c) {
  constexpr uint32_t kRows = 9;
  Random random(judge.options().seed + 90 + static_cast<uint64_t>(c.dtype));
  const Grouped whole = make_grouped(random, c);
  Grouped part = whole;
  part.graph.weights[0].expert_ranges = {{3, 5}, {0, 1}};
  if (c.biases) part.graph.weights[1].col_ranges = {{3 * c.n, 5 * c.n}, {0, c.n}};
  const auto x = random.normals(kRows * whole.input_width());
  const auto ids = random_ids(random, kRows * static_cast<size_t>(c.top_k), c.experts);
  const auto run = [&](const Grouped& m) {
    Device& device = judge.device();
    return from_bytes<float>(
        device.run(device.compile(m.graph, {kRows}), {{m.x, to_bytes(x)}, {m.ids, to_bytes(ids)}}, plain_batch(kRows))
            .at(m.out));
  };
  std::vector<float> wanted = run(whole);
  for (size_t pair = 0; pair < ids.size(); ++pair) {
    if (ids[pair] == 1 || ids[pair] == 2) std::fill_n(wanted.begin() + static_cast<long>(pair) * c.n, c.n, 0.0f);
  }
  judge.near(to_bytes(run(part)), to_bytes(wanted), {1e-6, 1e-5}, name_of(c, kRows) + " of some experts");
}

}  // namespace

void judge_experts(Judge& judge) {
  routers(judge);
  combinations(judge);
  if (!judge.supports({MOTLEY_OP_GROUPED_MATMUL})) return judge.skip("GROUPED_MATMUL");
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
    const kit::Format* format = kit::find_format(dtype);
    if (!format || !(judge.device().desc().weight_dtypes >> dtype & 1)) continue;
    GroupedCase c;
    c.dtype = dtype;
    c.k = std::max<int64_t>(format->block, 64);
    for (const bool own : {false, true}) {
      for (const bool biases : {false, true}) {
        c.own_inputs = own, c.biases = biases;
        grouped(judge, c);
        expert_parts(judge, c);
      }
      grouped_invariant(judge, c);
    }
  }
  const int32_t plain = judge.plain_dtype();
  if (kit::find_format(plain)->block > 1) return judge.skip("experts of any width");
  grouped(judge, {.experts = 1, .top_k = 1, .n = 16, .k = 33, .dtype = plain, .own_inputs = true, .biases = true});
  grouped(judge, {.experts = 3, .top_k = 3, .n = 20, .k = 7, .dtype = plain});
  grouped(judge, {.experts = 64, .top_k = 8, .n = 48, .k = 96, .dtype = plain});
  for (const int32_t id : {-1, 5, INT32_MAX, INT32_MIN}) wild_ids(judge, id);
  const bool layer =
      judge.supports({MOTLEY_OP_MATMUL, MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_COMBINE_EXPERTS, MOTLEY_OP_ADD,
                      MOTLEY_OP_SPLIT, MOTLEY_OP_SILU_MUL, MOTLEY_OP_GELU_MUL, MOTLEY_OP_CLAMPED_SWIGLU});
  if (!layer) return judge.skip("a whole expert layer");
  for (const int32_t dtype : {MOTLEY_F32, MOTLEY_F16, MOTLEY_Q8_0}) {
    if (!(judge.device().desc().weight_dtypes >> dtype & 1)) continue;
    for (const int activation : {MOTLEY_OP_SILU_MUL, MOTLEY_OP_GELU_MUL, MOTLEY_OP_CLAMPED_SWIGLU}) {
      for (const bool cut : {false, true}) expert_layer(judge, dtype, activation, cut);
    }
  }
}

}  // namespace motley::conformance
