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

namespace {

int32_t window_of(const TinyShape& shape, int32_t layer) { return layer % 2 ? 0 : shape.window; }

class TinyBuilder {
 public:
  TinyBuilder(Random& random, const TinyShape& shape) : random_(random), s_(shape), g_(m_.graph) {}

  TinyModel build() {
    m_.slots = g_.input(MOTLEY_I32, {MOTLEY_DIM_SLOTS});
    g_.outputs.push_back(m_.slots);
    residual_ = value(s_.hidden);
    g_.op(MOTLEY_OP_EMBED, {m_.slots}, {residual_}, {matrix(s_.vocab, s_.hidden, MOTLEY_WEIGHT_GATHER)})
        .attr.embed.scale = s_.embed_scale;
    for (int32_t l = 0; l < s_.layers; ++l) {
      add_to_residual(attention(l, norm(residual_, s_.hidden)));
      const int32_t y = norm(residual_, s_.hidden);
      add_to_residual(s_.experts > 0 ? expert_layer(y) : feed_forward(y));
    }
    head();
    return std::move(m_);
  }

 private:
  int32_t weight(HostWeight w) { return g_.weight(std::move(w)); }
  int32_t matrix(int64_t rows, int64_t cols, uint32_t uses = MOTLEY_WEIGHT_MATMUL, int64_t experts = 1) {
    return weight(random_weight(random_, s_.dtype, uses, rows, cols, experts));
  }
  int32_t vector(int64_t count, float scale, float mean) {
    auto w = random_.normals(static_cast<size_t>(count), scale);
    for (float& x : w) x += mean;
    return weight(vector_weight(w));
  }
  int32_t value(int64_t width) { return g_.value(MOTLEY_F32, {kR, width}); }
  int32_t norm(int32_t x, int64_t width, int64_t group = 0) {
    const int32_t out = value(width), n = static_cast<int32_t>(group ? group : width);
    g_.op(MOTLEY_OP_RMSNORM, {x}, {out}, {vector(n, 0.1f, 1)}).attr.norm = {1e-5f, n};
    return out;
  }
  int32_t matmul(int32_t x, int64_t rows, int64_t cols, bool bias = false) {
    const int32_t out = value(rows), w = matrix(rows, cols);
    bias ? g_.op(MOTLEY_OP_MATMUL, {x}, {out}, {w, vector(rows, 0.1f, 0)}) : g_.op(MOTLEY_OP_MATMUL, {x}, {out}, {w});
    return out;
  }
  std::vector<int32_t> split(int32_t x, const std::vector<int64_t>& widths) {
    std::vector<int32_t> out;
    for (const int64_t width : widths) out.push_back(value(width));
    g_.op(MOTLEY_OP_SPLIT, {x}, out);
    return out;
  }
  void add_to_residual(int32_t x) {
    g_.op(MOTLEY_OP_ADD, {residual_, s_.post_norms ? norm(x, s_.hidden) : x}, {residual_});
  }
  int32_t rope(int32_t x, int32_t heads, int32_t divisors) {
    const int32_t out = value(int64_t{heads} * s_.head_dim), n_rot = s_.n_rot ? s_.n_rot : s_.head_dim;
    motley_op& op =
        divisors == MOTLEY_NONE ? g_.op(MOTLEY_OP_ROPE, {x}, {out}) : g_.op(MOTLEY_OP_ROPE, {x}, {out}, {divisors});
    op.attr.rope = {s_.neox ? MOTLEY_ROPE_NEOX : MOTLEY_ROPE_NORM,
                    heads,
                    s_.head_dim,
                    n_rot,
                    10000,
                    1,
                    s_.yarn ? 1.1f : 1.0f,
                    s_.yarn ? 4.0f : 1.0f,
                    s_.yarn ? 1.0f : 0.0f,
                    1,
                    4};
    return out;
  }

  int32_t attention(int32_t l, int32_t x) {
    const int64_t q_width = int64_t{s_.heads} * s_.head_dim, kv_width = int64_t{s_.kv_heads} * s_.head_dim;
    int32_t q, k, v;
    if (s_.fused) {
      const auto parts = split(matmul(x, q_width + 2 * kv_width, s_.hidden, s_.biases), {q_width, kv_width, kv_width});
      q = parts[0], k = parts[1], v = parts[2];
    } else {
      q = matmul(x, q_width, s_.hidden, s_.biases), k = matmul(x, kv_width, s_.hidden, s_.biases);
      v = matmul(x, kv_width, s_.hidden, s_.biases);
    }
    if (s_.head_norms) q = norm(q, q_width, s_.head_dim), k = norm(k, kv_width, s_.head_dim);
    const int32_t divisors = s_.divisors ? vector((s_.n_rot ? s_.n_rot : s_.head_dim) / 2, 0.2f, 2) : MOTLEY_NONE;
    q = rope(q, s_.heads, divisors), k = rope(k, s_.kv_heads, divisors);
    g_.op(MOTLEY_OP_KV_WRITE, {k, v}, {}).attr.kv = {l, s_.kv_heads, s_.head_dim};
    const int32_t out = value(q_width);
    const std::vector<int32_t> sinks = s_.sinks ? std::vector<int32_t>{vector(s_.heads, 1, 0)} : std::vector<int32_t>();
    g_.op(MOTLEY_OP_PAGED_ATTENTION, {q}, {out}, sinks).attr.attention = {
        l,         s_.heads, s_.kv_heads, s_.head_dim, 1 / std::sqrt(static_cast<float>(s_.head_dim)), window_of(s_, l),
        s_.softcap};
    return matmul(out, s_.hidden, q_width, s_.biases);
  }

  void activate(int32_t gate, int32_t up, int32_t out) {
    motley_op& op = g_.op(s_.activation, {gate, up}, {out});
    if (s_.activation == MOTLEY_OP_CLAMPED_SWIGLU) op.attr.glu = {1.702f, 7.0f};
  }
  int32_t feed_forward(int32_t x) {
    int32_t gate, up;
    if (s_.fused) {
      const auto parts = split(matmul(x, 2 * s_.ffn, s_.hidden), {s_.ffn, s_.ffn});
      gate = parts[0], up = parts[1];
    } else {
      gate = matmul(x, s_.ffn, s_.hidden), up = matmul(x, s_.ffn, s_.hidden);
    }
    const int32_t both = value(s_.ffn);
    activate(gate, up, both);
    return matmul(both, s_.hidden, s_.ffn);
  }

  int32_t grouped(int32_t x, int32_t ids, int64_t rows, int64_t cols) {
    const int32_t out = g_.value(MOTLEY_F32, {kR, s_.top_k, rows});
    std::vector<int32_t> weights = {matrix(rows, cols, MOTLEY_WEIGHT_MATMUL, s_.experts)};
    if (s_.biases) weights.push_back(vector(s_.experts * rows, 0.1f, 0));
    g_.op(MOTLEY_OP_GROUPED_MATMUL, {x, ids}, {out}, weights);
    return out;
  }
  int32_t expert_layer(int32_t x) {
    const int32_t logits = value(s_.experts),
                  router = weight(random_weight(random_, MOTLEY_F32, MOTLEY_WEIGHT_MATMUL, s_.experts, s_.hidden));
    g_.op(MOTLEY_OP_MATMUL, {x}, {logits}, {router});
    const int32_t ids = g_.value(MOTLEY_I32, {kR, s_.top_k}), weights = value(s_.top_k);
    g_.op(MOTLEY_OP_TOPK_ROUTER, {logits}, {ids, weights}).attr.router = {s_.experts, s_.top_k, s_.gating, 0, 1};
    const int32_t gate = grouped(x, ids, s_.ffn, s_.hidden), up = grouped(x, ids, s_.ffn, s_.hidden);
    const int32_t both = g_.value(MOTLEY_F32, {kR, s_.top_k, s_.ffn});
    activate(gate, up, both);
    const int32_t down = grouped(both, ids, s_.hidden, s_.ffn), sum = value(s_.hidden);
    g_.op(MOTLEY_OP_COMBINE_EXPERTS, {down, weights}, {sum});
    if (!s_.shared_expert) return sum;
    const int32_t shared = feed_forward(x), gated = value(s_.hidden), all = value(s_.hidden);
    g_.op(MOTLEY_OP_SIGMOID_MUL, {shared, matmul(x, 1, s_.hidden)}, {gated});
    g_.op(MOTLEY_OP_ADD, {sum, gated}, {all});
    return all;
  }

  void head() {
    const int64_t h = MOTLEY_DIM_HEAD_ROWS;
    const int32_t last = norm(residual_, s_.hidden), chosen = g_.value(MOTLEY_F32, {h, s_.hidden});
    g_.op(MOTLEY_OP_SELECT_ROWS, {last}, {chosen});
    m_.logits = g_.output(MOTLEY_F32, {h, s_.vocab});
    const int32_t raw = s_.logit_cap > 0 ? g_.value(MOTLEY_F32, {h, s_.vocab}) : m_.logits;
    g_.op(MOTLEY_OP_MATMUL, {chosen}, {raw}, {matrix(s_.vocab, s_.hidden)});
    if (s_.logit_cap > 0) g_.op(MOTLEY_OP_SOFTCAP, {raw}, {m_.logits}).attr.scale.factor = s_.logit_cap;
    m_.ids = g_.output(MOTLEY_I32, {h}), m_.logprobs = g_.output(MOTLEY_F32, {h});
    m_.top_ids = g_.output(MOTLEY_I32, {h, MOTLEY_TOP_MAX}),
    m_.top_logprobs = g_.output(MOTLEY_F32, {h, MOTLEY_TOP_MAX});
    g_.op(MOTLEY_OP_SAMPLE, {m_.logits, m_.slots}, {m_.ids, m_.logprobs, m_.top_ids, m_.top_logprobs});
  }

  Random& random_;
  const TinyShape& s_;
  TinyModel m_;
  GraphBuilder& g_;
  int32_t residual_ = 0;
};

}  // namespace

TinyModel make_tiny(Random& random, const TinyShape& shape) { return TinyBuilder(random, shape).build(); }

namespace {

constexpr uint32_t kBlock = 8;

bool skip_model(Judge& judge, const TinyShape& shape) {
  const bool experts = shape.experts > 0;
  const bool can = judge.device().has(MOTLEY_CAP_PAGED_ATTENTION) && judge.packs(shape.dtype) &&
                   (judge.device().desc().kv_dtypes & 1) &&
                   judge.supports({MOTLEY_OP_EMBED, MOTLEY_OP_MATMUL, MOTLEY_OP_ADD, MOTLEY_OP_RMSNORM, MOTLEY_OP_ROPE,
                                   MOTLEY_OP_SELECT_ROWS, MOTLEY_OP_SAMPLE, shape.activation}) &&
                   (!experts || judge.packs(MOTLEY_F32)) &&  // the router
                   (!experts || judge.supports({MOTLEY_OP_TOPK_ROUTER, MOTLEY_OP_GROUPED_MATMUL,
                                                MOTLEY_OP_COMBINE_EXPERTS, MOTLEY_OP_SIGMOID_MUL})) &&
                   (!shape.fused || judge.supports({MOTLEY_OP_SPLIT})) &&
                   (shape.logit_cap == 0 || judge.supports({MOTLEY_OP_SOFTCAP}));
  if (!can) judge.skip(std::string("the tiny model ") + shape.name + " in dtype " + std::to_string(shape.dtype));
  return !can;
}

std::vector<int32_t> iota(int32_t begin, int32_t count) {
  std::vector<int32_t> out;
  for (int32_t i = 0; i < count; ++i) out.push_back(begin + i);
  return out;
}

std::vector<int32_t> windows_of(const TinyShape& shape) {
  std::vector<int32_t> out;
  for (int32_t l = 0; l < shape.layers; ++l) out.push_back(window_of(shape, l));
  return out;
}

// Runs token lists through a model on one device; keeps the pool.
class Session {
 public:
  Session(Device& device, const TinyModel& model, const TinyShape& shape, std::vector<uint32_t> buckets)
      : device_(device),
        model_(model),
        program_(device.compile(model.graph, std::move(buckets))),
        kv_(device.kv({MOTLEY_F32, kBlock, 64, std::vector<int32_t>(static_cast<size_t>(shape.layers), shape.kv_heads),
                       std::vector<int32_t>(static_cast<size_t>(shape.layers), shape.head_dim), windows_of(shape)})) {}

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

// What the architectures that people use are made of.
std::vector<TinyShape> shapes_for(int32_t dtype) {
  std::vector<TinyShape> shapes = {
      {.name = "llama"},
      {.name = "qwen3", .head_norms = true, .neox = true},
      {.name = "qwen2", .neox = true, .biases = true},
      {.name = "gemma2",
       .neox = true,
       .post_norms = true,
       .window = 9,
       .softcap = 5,
       .logit_cap = 3,
       .embed_scale = 8,
       .activation = MOTLEY_OP_GELU_MUL},
      {.name = "phi3", .neox = true, .fused = true, .divisors = true, .n_rot = 8},
      {.name = "qwen2moe", .neox = true, .biases = true, .experts = 6, .top_k = 3, .shared_expert = true},
      {.name = "gpt-oss",
       .neox = true,
       .biases = true,
       .sinks = true,
       .yarn = true,
       .window = 5,
       .activation = MOTLEY_OP_CLAMPED_SWIGLU,
       .experts = 4,
       .top_k = 2,
       .gating = 3},
  };
  const int64_t block = kit::find_format(dtype)->block;
  for (TinyShape& s : shapes) {
    s.dtype = dtype;
    if (block == 256)
      s.hidden = 256, s.ffn = 512, s.heads = 8, s.head_dim = 32;
    else if (block == 64)
      s.hidden = 192, s.ffn = 320, s.heads = 6, s.kv_heads = 3, s.head_dim = 32;
    else if (s.head_norms)
      s.hidden = 96, s.ffn = 160, s.heads = 6, s.kv_heads = 3, s.head_dim = 32;
  }
  return shapes;
}

// Rounding of quantised activations adds up over layers.
Tolerance segment_tolerance(int32_t dtype) {
  const Tolerance one = matmul_tolerance(dtype);
  return {one.norm * 5, one.largest * 5};
}

// A mixed batch: a prompt, the tail of one, single generated rows.
void mixed(Judge& judge, TinyShape shape) {
  // Two devices may choose differently where rounding decides; with every expert chosen there is nothing to decide.
  if (shape.dtype != MOTLEY_F32) shape.top_k = shape.experts;
  Random random(judge.options().seed + static_cast<uint64_t>(shape.dtype));
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
    judge.near(to_bytes(y), to_bytes(x), segment_tolerance(shape.dtype),
               std::string("a model like ") + shape.name + " in " + kit::find_format(shape.dtype)->name);
  }
}

void compare_rows(Judge& judge, const std::vector<float>& got, const std::vector<float>& wanted, const char* what) {
  judge.same(to_bytes(got), to_bytes(wanted), what);
}

// One prompt of 37 and 3 generated tokens: the rows of the run alone are the measure of all others.
void invariant(Judge& judge, const TinyShape& shape) {
  Random random(judge.options().seed + 50 + static_cast<uint64_t>(shape.dtype));
  const TinyModel model = make_tiny(random, shape);
  const auto t = random_tokens(random, shape, 40), other = random_tokens(random, shape, 40);
  const std::vector<int32_t> blocks = iota(10, 5), far = {50, 3, 44, 20, 8}, others = iota(30, 5);
  const std::string name = std::string(shape.name) + " in " + kit::find_format(shape.dtype)->name;
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
  // Many steps of a few rows: what differs in a sum's last bit is mostly rounded off on its way here.
  for (const auto& [first, rows] :
       {std::pair{0, 5}, {5, 1}, {6, 3}, {9, 4}, {13, 1}, {14, 2}, {16, 16}, {32, 1}, {33, 3}, {36, 1}}) {
    const auto part = chunked.logits({{&t, first, rows, blocks}});
    joined.insert(joined.end(), part.begin(), part.end());
  }
  compare_rows(judge, joined, prompt, say("a prompt in chunks").c_str());

  if (one_class) {
    const auto device = judge.open(0, true);
    Session as_prompt(*device, model, shape, {128}), as_generated(*device, model, shape, {128});
    compare_rows(judge, as_generated.logits({{&t, 0, 37, blocks, true}}), as_prompt.logits({{&t, 0, 37, blocks}}),
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

namespace {

// Every format as one model; two formats, a float and a quantised one, as all of them.
template <class F>
void each_model(Judge& judge, F&& f) {
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
    if (!kit::find_format(dtype)) continue;
    for (const TinyShape& shape : shapes_for(dtype)) {
      const bool all = dtype == MOTLEY_F32 || dtype == MOTLEY_Q8_0;
      if ((all || shape.head_norms) && !skip_model(judge, shape)) f(shape);
    }
  }
}

}  // namespace

void judge_segments(Judge& judge) {
  each_model(judge, [&](const TinyShape& shape) { mixed(judge, shape); });
  if (!skip_model(judge, {})) slots(judge);
}

void judge_invariance(Judge& judge) {
  if (!judge.device().has(MOTLEY_CAP_ROW_INVARIANT)) return judge.skip("row invariance");
  each_model(judge, [&](const TinyShape& shape) { invariant(judge, shape); });
}

}  // namespace motley::conformance
