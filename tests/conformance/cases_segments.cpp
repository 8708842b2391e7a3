// Whole segments, and what must not change a row: batch, chunk, bucket, threads.
#include <algorithm>

#include "kit/kit.hpp"
#include "tiny_model.hpp"

namespace motley::conformance {

namespace {
constexpr int64_t kR = MOTLEY_DIM_ROWS;
}

motley_sample_row greedy_row(int32_t out_slot) {
  motley_sample_row row{};
  row.top_p = 1, row.repetition_penalty = 1, row.top_logprobs = -1, row.out_slot = out_slot;
  return row;
}

TinyModel make_tiny(Random& random, const TinyShape& s) {
  TinyModel m;
  GraphBuilder& g = m.graph;
  const auto matrix = [&](int64_t rows, int64_t cols, uint32_t uses = MOTLEY_WEIGHT_MATMUL) {
    return g.weight(random_weight(random, s.dtype, uses, rows, cols));
  };
  const auto ones = [&](int64_t count) {
    auto w = random.normals(static_cast<size_t>(count), 0.1f);
    for (float& x : w) x += 1;
    return g.weight(vector_weight(w));
  };
  const auto bias = [&](int64_t count) {
    return g.weight(vector_weight(random.normals(static_cast<size_t>(count), 0.1f)));
  };
  const auto value = [&](int64_t width) { return g.value(MOTLEY_F32, {kR, width}); };
  const auto norm = [&](int32_t x, int64_t width, int32_t group) {
    const int32_t out = value(width);
    g.op(MOTLEY_OP_RMSNORM, {x}, {out}, {ones(group)}).attr.norm = {1e-5f, group};
    return out;
  };
  const auto matmul = [&](int32_t x, int64_t rows, int64_t cols, bool with_bias = false) {
    const int32_t out = value(rows), w = matrix(rows, cols);
    with_bias ? g.op(MOTLEY_OP_MATMUL, {x}, {out}, {w, bias(rows)}) : g.op(MOTLEY_OP_MATMUL, {x}, {out}, {w});
    return out;
  };
  const auto rope = [&](int32_t x, int32_t heads) {
    const int32_t out = value(int64_t{heads} * s.head_dim);
    g.op(MOTLEY_OP_ROPE, {x}, {out}).attr.rope = {
        s.head_norms ? MOTLEY_ROPE_NEOX : MOTLEY_ROPE_NORM, heads, s.head_dim, s.head_dim, 10000, 1, 1, 1, 0, 0, 0};
    return out;
  };
  const int64_t q_width = int64_t{s.heads} * s.head_dim, kv_width = int64_t{s.kv_heads} * s.head_dim;
  m.slots = g.input(MOTLEY_I32, {MOTLEY_DIM_SLOTS});
  g.outputs.push_back(m.slots);
  const int32_t residual = value(s.hidden);
  g.op(MOTLEY_OP_EMBED, {m.slots}, {residual}, {matrix(s.vocab, s.hidden, MOTLEY_WEIGHT_GATHER)}).attr.embed.scale = 1;
  for (int32_t l = 0; l < s.layers; ++l) {
    const int32_t x = norm(residual, s.hidden, static_cast<int32_t>(s.hidden));
    int32_t q = matmul(x, q_width, s.hidden, s.head_norms), k = matmul(x, kv_width, s.hidden, s.head_norms);
    const int32_t v = matmul(x, kv_width, s.hidden, s.head_norms);
    if (s.head_norms) q = norm(q, q_width, s.head_dim), k = norm(k, kv_width, s.head_dim);
    q = rope(q, s.heads), k = rope(k, s.kv_heads);
    g.op(MOTLEY_OP_KV_WRITE, {k, v}, {}).attr.kv = {l, s.kv_heads, s.head_dim};
    const int32_t attended = value(q_width);
    g.op(MOTLEY_OP_PAGED_ATTENTION, {q}, {attended}).attr.attention = {
        l, s.heads, s.kv_heads, s.head_dim, 1 / std::sqrt(static_cast<float>(s.head_dim)), 0, 0};
    g.op(MOTLEY_OP_ADD, {residual, matmul(attended, s.hidden, q_width)}, {residual});
    const int32_t y = norm(residual, s.hidden, static_cast<int32_t>(s.hidden));
    const int32_t gate = matmul(y, s.ffn, s.hidden), up = matmul(y, s.ffn, s.hidden), both = value(s.ffn);
    g.op(MOTLEY_OP_SILU_MUL, {gate, up}, {both});
    g.op(MOTLEY_OP_ADD, {residual, matmul(both, s.hidden, s.ffn)}, {residual});
  }
  const int64_t h = MOTLEY_DIM_HEAD_ROWS;
  const int32_t last = norm(residual, s.hidden, static_cast<int32_t>(s.hidden)),
                chosen = g.value(MOTLEY_F32, {h, s.hidden});
  g.op(MOTLEY_OP_SELECT_ROWS, {last}, {chosen});
  m.logits = g.output(MOTLEY_F32, {h, s.vocab});
  g.op(MOTLEY_OP_MATMUL, {chosen}, {m.logits}, {matrix(s.vocab, s.hidden)});
  m.ids = g.output(MOTLEY_I32, {h}), m.logprobs = g.output(MOTLEY_F32, {h});
  m.top_ids = g.output(MOTLEY_I32, {h, MOTLEY_TOP_MAX}), m.top_logprobs = g.output(MOTLEY_F32, {h, MOTLEY_TOP_MAX});
  g.op(MOTLEY_OP_SAMPLE, {m.logits, m.slots}, {m.ids, m.logprobs, m.top_ids, m.top_logprobs});
  return m;
}

namespace {

constexpr uint32_t kBlock = 8;

bool skip_model(Judge& judge, int32_t dtype) {
  const bool can = judge.device().has(MOTLEY_CAP_PAGED_ATTENTION) &&
                   (judge.device().desc().weight_dtypes >> dtype & 1) && (judge.device().desc().kv_dtypes & 1) &&
                   judge.supports({MOTLEY_OP_EMBED, MOTLEY_OP_MATMUL, MOTLEY_OP_ADD, MOTLEY_OP_RMSNORM, MOTLEY_OP_ROPE,
                                   MOTLEY_OP_SILU_MUL, MOTLEY_OP_SELECT_ROWS, MOTLEY_OP_SAMPLE});
  if (!can) judge.skip("the tiny model in dtype " + std::to_string(dtype));
  return !can;
}

std::vector<int32_t> iota(int32_t begin, int32_t count) {
  std::vector<int32_t> out;
  for (int32_t i = 0; i < count; ++i) out.push_back(begin + i);
  return out;
}

// Runs token lists through a model on one device; keeps the pool.
class Session {
 public:
  Session(Device& device, const TinyModel& model, const TinyShape& shape, std::vector<uint32_t> buckets)
      : device_(device),
        model_(model),
        program_(device.compile(model.graph, std::move(buckets))),
        kv_(device.kv({MOTLEY_F32,
                       kBlock,
                       64,
                       std::vector<int32_t>(static_cast<size_t>(shape.layers), shape.kv_heads),
                       std::vector<int32_t>(static_cast<size_t>(shape.layers), shape.head_dim),
                       {}})) {}

  struct Part {
    const std::vector<int32_t>* tokens;
    int32_t first, rows;
    std::vector<int32_t> blocks;
    bool generated = false;
  };
  // Logits of every row.
  std::vector<float> logits(const std::vector<Part>& parts) {
    BatchData b;
    for (const Part& p : parts) {
      b.add({p.first, p.rows, p.blocks, p.generated}, kBlock);
      for (int32_t i = 0; i < p.rows; ++i)
        b.token_ids[b.token_ids.size() - static_cast<size_t>(p.rows - i)] =
            (*p.tokens)[static_cast<size_t>(p.first + i)];
    }
    b.head_rows = iota(0, static_cast<int32_t>(b.rows()));
    b.samples.assign(b.rows(), greedy_row());
    b.slot_count = 1;
    results_ = device_.run(program_, {{model_.slots, to_bytes(std::vector<int32_t>{0})}}, b, kv_.get());
    return from_bytes<float>(results_.at(model_.logits));
  }
  const std::map<int32_t, Bytes>& results() const { return results_; }

 private:
  Device& device_;
  const TinyModel& model_;
  Program program_;
  Owned<motley_kv> kv_;
  std::map<int32_t, Bytes> results_;
};

std::vector<int32_t> random_tokens(Random& random, const TinyShape& shape, int32_t count) {
  std::vector<int32_t> out;
  for (int32_t i = 0; i < count; ++i)
    out.push_back(static_cast<int32_t>(random.below(static_cast<uint32_t>(shape.vocab))));
  return out;
}

std::vector<float> rows_of(const std::vector<float>& logits, int64_t vocab, int64_t begin, int64_t count) {
  return {logits.begin() + begin * vocab, logits.begin() + (begin + count) * vocab};
}

TinyShape shape_for(int32_t dtype, bool head_norms) {
  TinyShape shape;
  shape.dtype = dtype;
  shape.head_norms = head_norms;
  const int64_t block = kit::find_format(dtype)->block;
  if (block == 256)
    shape.hidden = 256, shape.ffn = 512, shape.heads = 8, shape.head_dim = 32;
  else if (head_norms)
    shape.hidden = 96, shape.ffn = 160, shape.heads = 6, shape.kv_heads = 3, shape.head_dim = 32;
  return shape;
}

// Rounding of quantised activations adds up over layers.
Tolerance segment_tolerance(int32_t dtype) {
  const Tolerance one = matmul_tolerance(dtype);
  return {one.norm * 5, one.largest * 5};
}

// A mixed batch: a prompt, the tail of one, single generated rows.
void mixed(Judge& judge, int32_t dtype, bool head_norms) {
  Random random(judge.options().seed + static_cast<uint64_t>(dtype) + 100 * head_norms);
  const TinyShape shape = shape_for(dtype, head_norms);
  const TinyModel model = make_tiny(random, shape);
  const auto a = random_tokens(random, shape, 40), b = random_tokens(random, shape, 40),
             c = random_tokens(random, shape, 40);
  Session wanted(judge.reference(), model, shape, {80}), got(judge.device(), model, shape, {80});
  const std::vector<int32_t> ba = {9, 2, 31, 4, 20}, bb = {5, 8, 1, 60, 61}, bc = {63, 0, 7, 3, 6};
  const std::vector<std::vector<Session::Part>> steps = {
      {{&a, 0, 20, ba}, {&b, 0, 7, bb}},
      {{&a, 20, 1, ba, true}, {&b, 7, 12, bb}, {&c, 0, 33, bc}},
      {{&a, 21, 1, ba, true}, {&b, 19, 1, bb, true}, {&c, 33, 1, bc, true}},
  };
  for (const auto& step : steps) {
    const auto x = wanted.logits(step), y = got.logits(step);
    judge.near(to_bytes(y), to_bytes(x), segment_tolerance(dtype),
               std::string("a model in ") + kit::find_format(dtype)->name + (head_norms ? ", head norms" : ""));
  }
}

void compare_rows(Judge& judge, const std::vector<float>& got, const std::vector<float>& wanted, const char* what) {
  judge.same(to_bytes(got), to_bytes(wanted), what);
}

// One prompt of 37 and 3 generated tokens: the rows of the run alone are the measure of all others.
void invariant(Judge& judge, int32_t dtype) {
  Random random(judge.options().seed + 50 + static_cast<uint64_t>(dtype));
  const TinyShape shape = shape_for(dtype, true);
  const TinyModel model = make_tiny(random, shape);
  const auto t = random_tokens(random, shape, 40), other = random_tokens(random, shape, 40);
  const std::vector<int32_t> blocks = iota(10, 5), far = {50, 3, 44, 20, 8}, others = iota(30, 5);
  const std::string name = kit::find_format(dtype)->name;
  const auto say = [&](const char* what) { return name + ": " + what; };
  const bool one_class = judge.device().has(MOTLEY_CAP_ONE_CLASS);
  Session alone(judge.device(), model, shape, {128});
  const auto prompt = alone.logits({{&t, 0, 37, blocks}});
  const auto next = alone.logits({{&t, 37, 1, blocks, true}});
  judge.check(std::none_of(prompt.begin(), prompt.end(), [](float x) { return std::isnan(x); }), say("no NaN"));

  Session crowd(judge.device(), model, shape, {128});
  const auto with_others = crowd.logits({{&other, 0, 9, others}, {&t, 0, 37, far}, {&other, 0, 1, iota(60, 1)}});
  compare_rows(judge, rows_of(with_others, shape.vocab, 9, 37), prompt, say("a prompt among others").c_str());
  const auto next_among =
      crowd.logits({{&other, 9, 1, others, true}, {&t, 37, 1, far, true}, {&other, 1, 20, iota(60, 3)}});
  compare_rows(judge, rows_of(next_among, shape.vocab, 1, 1), next, say("a generated row among others").c_str());

  Session chunked(judge.device(), model, shape, {8, 128});
  std::vector<float> joined;
  for (const auto& [first, rows] : {std::pair{0, 5}, {5, 1}, {6, 30}, {36, 1}}) {
    const auto part = chunked.logits({{&t, first, rows, blocks}});
    joined.insert(joined.end(), part.begin(), part.end());
  }
  compare_rows(judge, joined, prompt, say("a prompt in chunks").c_str());

  if (one_class) {
    Session generated(judge.device(), model, shape, {128});
    compare_rows(judge, generated.logits({{&t, 0, 37, blocks, true}}), prompt,
                 say("generated rows as prompt rows").c_str());
  }
  for (const uint32_t threads : {1u, 2u, 3u}) {
    const auto device = judge.open(threads);
    Session session(*device, model, shape, {37, 64});
    compare_rows(judge, session.logits({{&t, 0, 37, blocks}}), prompt, say("with other threads").c_str());
    compare_rows(judge, session.logits({{&t, 37, 1, blocks, true}}), next, say("decode with other threads").c_str());
  }
  for (const std::vector<uint32_t>& buckets : {std::vector<uint32_t>{37}, {64}, {1, 40, 300}}) {
    Session session(judge.device(), model, shape, buckets);
    compare_rows(judge, session.logits({{&t, 0, 37, blocks}}), prompt, say("in another bucket").c_str());
  }
}

// A token drawn in one step feeds the next through its slot.
void slots(Judge& judge) {
  Random random(judge.options().seed + 77);
  const TinyShape shape;
  const TinyModel model = make_tiny(random, shape);
  Device& device = judge.device();
  const Program program = device.compile(model.graph, {16});
  const KvShapeSpec spec{MOTLEY_F32, kBlock, 8, {2, 2}, {16, 16}, {}};
  Owned<motley_kv> kv = device.kv(spec);
  BatchData first;
  first.add({0, 5, {0}, false}, kBlock);
  first.token_ids = {1, 2, 3, 4, 5};
  first.head_rows = {4};
  first.samples = {greedy_row(1)};
  first.slot_count = 3;
  const auto a = device.run(program, {{model.slots, to_bytes(std::vector<int32_t>{90, 91, 92})}}, first, kv.get());
  const auto slots = from_bytes<int32_t>(a.at(model.slots));
  const int32_t id = from_bytes<int32_t>(a.at(model.ids))[0];
  judge.check(slots == std::vector<int32_t>{90, id, 92}, "SAMPLE writes its slot alone");
  BatchData by_slot, by_id;
  for (BatchData* b : {&by_slot, &by_id}) {
    b->add({5, 1, {0}, true}, kBlock);
    b->head_rows = {0};
    b->samples = {greedy_row()};
    b->slot_count = 3;
  }
  by_slot.token_slots = {1};
  by_id.token_ids = {id};
  const auto x = device.run(program, {{model.slots, a.at(model.slots)}}, by_slot, kv.get());
  const auto y = device.run(program, {{model.slots, a.at(model.slots)}}, by_id, kv.get());
  judge.same(x.at(model.logits), y.at(model.logits), "a token from its slot is the token");
}

}  // namespace

void judge_segments(Judge& judge) {
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
    if (!kit::find_format(dtype) || skip_model(judge, dtype)) continue;
    mixed(judge, dtype, false);
    mixed(judge, dtype, true);
  }
  if (!skip_model(judge, MOTLEY_F32)) slots(judge);
}

void judge_invariance(Judge& judge) {
  if (!judge.device().has(MOTLEY_CAP_ROW_INVARIANT)) return judge.skip("row invariance");
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype)
    if (kit::find_format(dtype) && !skip_model(judge, dtype)) invariant(judge, dtype);
}

}  // namespace motley::conformance
