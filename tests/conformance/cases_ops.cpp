// Token-wise ops, weights in every format and cut, the description. Ops of experts: cases_experts.cpp.
#include <algorithm>

#include "harness.hpp"
#include "kit/kit.hpp"

namespace motley::conformance {

namespace {

constexpr uint32_t kRowCounts[] = {1, 2, 3, 5, 8, 17, 33, 70};
constexpr int64_t kR = MOTLEY_DIM_ROWS;

std::string label(const char* op, uint32_t rows, int64_t width) {
  return std::string(op) + " rows " + std::to_string(rows) + " width " + std::to_string(width);
}

// Plain rows, and rows of three choices each, as the ops of experts have them. `fill` sets attributes.
template <class Fill>
void element_wise(Judge& judge, int kind, const char* name, size_t inputs, Fill&& fill) {
  if (!judge.supports({kind})) return judge.skip(name);
  Random random(judge.options().seed + static_cast<uint64_t>(kind));
  for (const uint32_t rows : kRowCounts) {
    const int64_t width = 1 + random.below(200);
    for (const std::vector<int64_t>& dims : {std::vector<int64_t>{kR, width}, {kR, 3, width}}) {
      GraphBuilder g;
      std::map<int32_t, Bytes> given;
      std::vector<int32_t> in;
      for (size_t i = 0; i < inputs; ++i) {
        in.push_back(g.input(MOTLEY_F32, dims));
        given[in.back()] =
            to_bytes(random.normals(rows * static_cast<size_t>(dims.size() == 3 ? 3 * width : width), 3));
      }
      fill(g.op(kind, in, {g.output(MOTLEY_F32, dims)}));
      judge.compare(g, given, plain_batch(rows), kElementwise, label(name, rows, width));
    }
  }
}

// SIGMOID_MUL with one gate for the whole row.
void row_gates(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_SIGMOID_MUL})) return;
  Random random(judge.options().seed + 5);
  for (const uint32_t rows : kRowCounts) {
    const int64_t width = 1 + random.below(200);
    GraphBuilder g;
    const int32_t x = g.input(MOTLEY_F32, {kR, width}), gate = g.input(MOTLEY_F32, {kR, 1});
    g.op(MOTLEY_OP_SIGMOID_MUL, {x, gate}, {g.output(MOTLEY_F32, {kR, width})});
    judge.compare(
        g,
        {{x, to_bytes(random.normals(rows * static_cast<size_t>(width)))}, {gate, to_bytes(random.normals(rows, 4))}},
        plain_batch(rows), kElementwise, label("SIGMOID_MUL by row", rows, width));
  }
}

// The last axis is cut and joined, not the row.
void inner_shapes(Judge& judge) {
  Random random(judge.options().seed + 6);
  const auto x = to_bytes(random.normals(5 * 3 * 12)), y = to_bytes(random.normals(5 * 3 * 7));
  if (judge.supports({MOTLEY_OP_SPLIT})) {
    GraphBuilder g;
    const int32_t in = g.input(MOTLEY_F32, {kR, 3, 12});
    g.op(MOTLEY_OP_SPLIT, {in}, {g.output(MOTLEY_F32, {kR, 3, 8}), g.output(MOTLEY_F32, {kR, 3, 4})});
    judge.compare(g, {{in, x}}, plain_batch(5), {0, 0}, "SPLIT 3 x 12 = 3 x (8 + 4)");
  }
  if (judge.supports({MOTLEY_OP_CONCAT})) {
    GraphBuilder g;
    const int32_t a = g.input(MOTLEY_F32, {kR, 3, 12}), b = g.input(MOTLEY_F32, {kR, 3, 7});
    g.op(MOTLEY_OP_CONCAT, {a, b}, {g.output(MOTLEY_F32, {kR, 3, 19})});
    judge.compare(g, {{a, x}, {b, y}}, plain_batch(5), {0, 0}, "CONCAT 3 x (12 + 7)");
  }
}

void in_place_add(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_ADD})) return;
  Random random(judge.options().seed);
  GraphBuilder g;
  const int32_t x = g.input(MOTLEY_F32, {kR, 37}), y = g.input(MOTLEY_F32, {kR, 37});
  g.outputs.push_back(x);
  g.op(MOTLEY_OP_ADD, {x, y}, {x});
  g.op(MOTLEY_OP_ADD, {x, y}, {x});
  judge.compare(g, {{x, to_bytes(random.normals(5 * 37))}, {y, to_bytes(random.normals(5 * 37))}}, plain_batch(5),
                kElementwise, "ADD twice in place");
}

void norms(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_RMSNORM})) return judge.skip("RMSNORM");
  Random random(judge.options().seed);
  for (const auto& [width, group] : {std::pair{64, 64}, {576, 576}, {7, 7}, {192, 64}, {48, 16}, {640, 128}, {30, 5}}) {
    for (const uint32_t rows : {1u, 4u, 33u}) {
      GraphBuilder g;
      const int32_t x = g.input(MOTLEY_F32, {kR, width});
      auto& op = g.op(MOTLEY_OP_RMSNORM, {x}, {g.output(MOTLEY_F32, {kR, width})},
                      {g.weight(vector_weight(random.normals(static_cast<size_t>(group))))});
      op.attr.norm = {1e-5f, group};
      judge.compare(g, {{x, to_bytes(random.normals(rows * static_cast<size_t>(width), 4))}}, plain_batch(rows),
                    kElementwise, label("RMSNORM", rows, width) + " group " + std::to_string(group));
    }
  }
  if (!judge.supports({MOTLEY_OP_SELECT_ROWS})) return;
  for (const int32_t width : {7, 64, 768}) {  // of selected rows, which a device may take at once
    GraphBuilder g;
    const int32_t x = g.input(MOTLEY_F32, {kR, width}), chosen = g.value(MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, width});
    g.op(MOTLEY_OP_SELECT_ROWS, {x}, {chosen});
    auto& op = g.op(MOTLEY_OP_RMSNORM, {chosen}, {g.output(MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, width})},
                    {g.weight(vector_weight(random.normals(static_cast<size_t>(width))))});
    op.attr.norm = {1e-5f, width};
    BatchData b = plain_batch(6);
    b.head_rows = {1, 4, 5};
    judge.compare(g, {{x, to_bytes(random.normals(6 * static_cast<size_t>(width), 4))}}, b, kElementwise,
                  label("RMSNORM", 3, width) + " of selected rows");
  }
}

struct RopeCase {
  int32_t style, heads, head_dim, n_rot;
  float position_scale, magnitude;
  bool divisors, yarn;
};

void ropes(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_ROPE})) return judge.skip("ROPE");
  Random random(judge.options().seed);
  const RopeCase cases[] = {{0, 1, 16, 16, 1, 1, false, false},     {1, 3, 64, 64, 1, 1, false, false},
                            {0, 9, 64, 64, 0.125f, 1, true, false}, {1, 5, 24, 16, 1, 1, true, false},
                            {1, 2, 128, 128, 1, 1.2f, false, true}, {0, 7, 80, 20, 1, 1.1f, true, true}};
  for (const RopeCase& c : cases) {
    for (const int32_t first : {0, 1, 500, 8000}) {
      GraphBuilder g;
      const int64_t width = int64_t{c.heads} * c.head_dim;
      const int32_t x = g.input(MOTLEY_F32, {kR, width}), out = g.output(MOTLEY_F32, {kR, width});
      std::vector<float> divisors;
      for (int32_t i = 0; i < c.n_rot / 2; ++i) divisors.push_back(1 + static_cast<float>(i));
      auto& op = c.divisors ? g.op(MOTLEY_OP_ROPE, {x}, {out}, {g.weight(vector_weight(divisors))})
                            : g.op(MOTLEY_OP_ROPE, {x}, {out});
      op.attr.rope = {c.style,
                      c.heads,
                      c.head_dim,
                      c.n_rot,
                      10000.0f,
                      c.position_scale,
                      c.magnitude,
                      c.yarn ? 4.0f : 1.0f,
                      c.yarn ? 1.0f : 0.0f,
                      2.0f,
                      static_cast<float>(c.n_rot) / 3};
      BatchData b;
      b.add({first, 6, {}, false}, 16);
      b.add({3, 1, {}, true}, 16);
      judge.compare(g, {{x, to_bytes(random.normals(7 * static_cast<size_t>(width)))}}, b, {1e-4, 1e-3},
                    label("ROPE", static_cast<uint32_t>(first), width) + " style " + std::to_string(c.style));
    }
  }
}

void shapes(Judge& judge) {
  Random random(judge.options().seed);
  const auto x9 = to_bytes(random.normals(6 * 9)), x20 = to_bytes(random.normals(6 * 20));
  if (judge.supports({MOTLEY_OP_SPLIT})) {
    GraphBuilder g;
    const int32_t x = g.input(MOTLEY_F32, {kR, 20});
    g.op(MOTLEY_OP_SPLIT, {x},
         {g.output(MOTLEY_F32, {kR, 1}), g.output(MOTLEY_F32, {kR, 12}), g.output(MOTLEY_F32, {kR, 7})});
    judge.compare(g, {{x, x20}}, plain_batch(6), {0, 0}, "SPLIT 20 = 1 + 12 + 7");
  }
  if (judge.supports({MOTLEY_OP_CONCAT})) {
    GraphBuilder g;
    const int32_t x = g.input(MOTLEY_F32, {kR, 9}), y = g.input(MOTLEY_F32, {kR, 20});
    g.op(MOTLEY_OP_CONCAT, {x, y}, {g.output(MOTLEY_F32, {kR, 29})});
    judge.compare(g, {{x, x9}, {y, x20}}, plain_batch(6), {0, 0}, "CONCAT 9 + 20");
  }
  if (judge.supports({MOTLEY_OP_CAST})) {
    for (const int32_t dtype : {MOTLEY_F16, MOTLEY_BF16}) {
      GraphBuilder g;
      const int32_t x = g.input(MOTLEY_F32, {kR, 9}), middle = g.value(dtype, {kR, 9});
      g.op(MOTLEY_OP_CAST, {x}, {middle});
      g.op(MOTLEY_OP_CAST, {middle}, {g.output(MOTLEY_F32, {kR, 9})});
      judge.compare(g, {{x, x9}}, plain_batch(6), {0, 0}, "CAST to dtype " + std::to_string(dtype) + " and back");
    }
  }
  if (judge.supports({MOTLEY_OP_SELECT_ROWS})) {
    for (const std::vector<int32_t>& heads : {std::vector<int32_t>{5}, {0, 2, 3}, {0, 1, 2, 3, 4, 5}, {}}) {
      GraphBuilder g;
      const int32_t x = g.input(MOTLEY_F32, {kR, 9});
      g.op(MOTLEY_OP_SELECT_ROWS, {x}, {g.output(MOTLEY_F32, {MOTLEY_DIM_HEAD_ROWS, 9})});
      BatchData b = plain_batch(6);
      b.head_rows = heads;
      judge.compare(g, {{x, x9}}, b, {0, 0}, "SELECT_ROWS of " + std::to_string(heads.size()));
    }
  }
}

bool packs(Judge& judge, const kit::Format* format) { return format && judge.packs(format->dtype); }

template <class F>
void each_format(Judge& judge, F&& f) {
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
    const kit::Format* format = kit::find_format(dtype);
    if (packs(judge, format))
      f(*format);
    else if (format)
      judge.skip(std::string("weights in ") + format->name);
  }
}

void matmuls(Judge& judge, const kit::Format& format) {
  Random random(judge.options().seed + static_cast<uint64_t>(format.dtype));
  const int64_t unit = std::max(format.block, 8);
  for (const int64_t n : {1, 7, 33, 96}) {
    for (const int64_t k : {unit, 3 * unit}) {
      for (const uint32_t rows : {1u, 2u, 5u, 8u, 31u, 70u}) {
        GraphBuilder g;
        const int32_t x = g.input(MOTLEY_F32, {kR, k}), out = g.output(MOTLEY_F32, {kR, n});
        const int32_t w = g.weight(random_weight(random, format.dtype, MOTLEY_WEIGHT_MATMUL, n, k));
        if (rows % 2)
          g.op(MOTLEY_OP_MATMUL, {x}, {out}, {w});
        else
          g.op(MOTLEY_OP_MATMUL, {x}, {out},
               {w, g.weight(vector_weight(random.normals(static_cast<size_t>(n), 0.1f)))});
        judge.compare(g, {{x, to_bytes(random.normals(rows * static_cast<size_t>(k)))}}, plain_batch(rows),
                      matmul_tolerance(format.dtype),
                      label("MATMUL", rows, k) + " n " + std::to_string(n) + " " + format.name,
                      dot_magnitude(g.weights[static_cast<size_t>(w)]));
      }
    }
  }
}

// The packed table of EMBED holds the file's numbers: only a device's own format may round them.
void embeds(Judge& judge, const kit::Format& format) {
  if (!judge.supports({MOTLEY_OP_EMBED})) return judge.skip("EMBED");
  Random random(judge.options().seed + 7);
  const int64_t k = 2 * std::max(format.block, 24);
  for (const uint32_t uses : {uint32_t{MOTLEY_WEIGHT_GATHER}, uint32_t{MOTLEY_WEIGHT_GATHER | MOTLEY_WEIGHT_MATMUL}}) {
    GraphBuilder g;
    const int32_t slots = g.input(MOTLEY_I32, {MOTLEY_DIM_SLOTS});
    g.op(MOTLEY_OP_EMBED, {slots}, {g.output(MOTLEY_F32, {kR, k})},
         {g.weight(random_weight(random, format.dtype, uses, 37, k))})
        .attr.embed.scale = 1.5f;
    BatchData b = plain_batch(9);
    for (auto& id : b.token_ids) id = static_cast<int32_t>(random.below(37));
    b.slot_count = 4;
    b.token_slots[2] = 3, b.token_slots[8] = 0;
    b.token_ids[2] = -5;  // not looked at
    judge.compare(g, {{slots, to_bytes(std::vector<int32_t>{11, -1, -1, 36})}}, b, {1e-3, 5e-3},
                  std::string("EMBED ") + format.name + " uses " + std::to_string(uses));
  }
}

// Rows and columns taken by ranges are the cut of the whole.
void cuts(Judge& judge, const kit::Format& format) {
  Random random(judge.options().seed + 9);
  const int64_t unit = format.sub_block == 1 ? 8 : format.sub_block, k = 8 * std::max<int64_t>(format.block, unit),
                n = 40;
  const uint32_t rows = 6;
  HostWeight whole = random_weight(random, format.dtype, MOTLEY_WEIGHT_MATMUL, n, k);
  const auto x = random.normals(rows * static_cast<size_t>(k));
  HostWeight some_rows = whole;
  some_rows.row_ranges = {{3, 4}, {9, 30}, {0, 2}};
  HostWeight some_cols = whole;
  some_cols.col_ranges = {{k - 3 * unit, k - unit}, {unit, 2 * unit}, {0, unit}};
  const auto rows_of = [&](const std::vector<motley_range>& r) {
    int64_t count = 0;
    for (const auto& range : r) count += range.end - range.begin;
    return count;
  };
  const auto product = [&](Device& device, const HostWeight& w, const std::vector<float>& in, int64_t out_width) {
    GraphBuilder g;
    const int64_t width = static_cast<int64_t>(in.size()) / rows;
    const int32_t a = g.input(MOTLEY_F32, {kR, width}), y = g.output(MOTLEY_F32, {kR, out_width});
    g.op(MOTLEY_OP_MATMUL, {a}, {y}, {g.weight(w)});
    return from_bytes<float>(device.run(device.compile(g, {rows}), {{a, to_bytes(in)}}, plain_batch(rows)).at(y));
  };
  const auto all = product(judge.device(), whole, x, n);
  const int64_t kept = rows_of(some_rows.row_ranges);
  std::vector<float> wanted;
  for (uint32_t r = 0; r < rows; ++r)
    for (const auto& range : some_rows.row_ranges)
      for (int64_t i = range.begin; i < range.end; ++i) wanted.push_back(all[static_cast<size_t>(r * n + i)]);
  judge.near(to_bytes(product(judge.device(), some_rows, x, kept)), to_bytes(wanted), {1e-6, 1e-5},
             std::string("row ranges ") + format.name);
  // Columns: the product of the cut equals the whole's product with zeros elsewhere, on the reference.
  std::vector<float> cut_x, zeroed(x.size(), 0.0f);
  for (uint32_t r = 0; r < rows; ++r)
    for (const auto& range : some_cols.col_ranges)
      for (int64_t i = range.begin; i < range.end; ++i) {
        cut_x.push_back(x[static_cast<size_t>(r * k + i)]);
        zeroed[static_cast<size_t>(r * k + i)] = x[static_cast<size_t>(r * k + i)];
      }
  judge.near(to_bytes(product(judge.device(), some_cols, cut_x, n)),
             to_bytes(product(judge.reference(), whole, zeroed, n)), matmul_tolerance(format.dtype),
             std::string("column ranges ") + format.name, dot_magnitude(some_cols));
}

// A weight of a type that the device does not hold, packed to one that it does.
void conversion(Judge& judge, const kit::Format& from, int32_t to) {
  Random random(judge.options().seed + 13);
  const int64_t k = 2 * std::max(from.block, 32), n = 40;
  GraphBuilder g;
  const int32_t x = g.input(MOTLEY_F32, {kR, k}), y = g.output(MOTLEY_F32, {kR, n});
  const int32_t w = g.weight(random_weight(random, from.dtype, MOTLEY_WEIGHT_MATMUL, 48, k));
  g.weights[0].row_ranges = {{8, 48}};
  g.op(MOTLEY_OP_MATMUL, {x}, {y}, {w});
  const std::map<int32_t, Bytes> given = {{x, to_bytes(random.normals(6 * static_cast<size_t>(k)))}};
  const auto wanted = judge.reference().run(judge.reference().compile(g, {6}), given, plain_batch(6));
  g.weights[0].format = to;
  const std::string what = std::string("weights in ") + from.name + " packed as " + kit::find_format(to)->name;
  try {
    const auto got = judge.device().run(judge.device().compile(g, {6}), given, plain_batch(6));
    judge.near(got.at(y), wanted.at(y), matmul_tolerance(to), what, dot_magnitude(g.weights[0]));
  } catch (const Stop& stop) {
    if (stop.text.find("code 12") == std::string::npos) throw;
    judge.skip(what);
  }
}

// A token whose row another shard holds gives zeros.
void embed_parts(Judge& judge) {
  Random random(judge.options().seed + 12);
  const int32_t dtype = judge.plain_dtype();
  if (kit::find_format(dtype)->block > 1) return judge.skip("EMBED of some rows");
  HostWeight table = random_weight(random, dtype, MOTLEY_WEIGHT_GATHER, 37, 24);
  const auto embed = [&](const HostWeight& w) {
    GraphBuilder g;
    const int32_t slots = g.input(MOTLEY_I32, {MOTLEY_DIM_SLOTS}), y = g.output(MOTLEY_F32, {kR, 24});
    g.op(MOTLEY_OP_EMBED, {slots}, {y}, {g.weight(w)}).attr.embed.scale = 2;
    BatchData b = plain_batch(37);
    for (int32_t i = 0; i < 37; ++i) b.token_ids[static_cast<size_t>(i)] = i;
    b.slot_count = 2;
    b.token_slots[5] = 1;
    const auto run =
        judge.device().run(judge.device().compile(g, {37}), {{slots, to_bytes(std::vector<int32_t>{-1, 36})}}, b);
    return from_bytes<float>(run.at(y));
  };
  const auto all = embed(table);
  table.row_ranges = {{30, 37}, {3, 9}};
  const auto part = embed(table);
  std::vector<float> wanted(all.size(), 0.0f);
  for (size_t r = 0; r < 37; ++r) {
    const size_t token = r == 5 ? 36 : r;
    if (token >= 30 || (token >= 3 && token < 9))
      std::copy_n(all.begin() + static_cast<long>(r * 24), 24, wanted.begin() + static_cast<long>(r * 24));
  }
  judge.same(to_bytes(part), to_bytes(wanted), "EMBED of some rows");
}

}  // namespace

void judge_description(Judge& judge) {
  const motley_backend& api = judge.api();
  const motley_device_desc& d = judge.device().desc();
  judge.check(api.struct_size >= sizeof(motley_backend) && api.abi == MOTLEY_BACKEND_ABI && api.name && api.version,
              "the table's head");
  judge.check(api.enumerate && api.open && api.close && api.stats && api.queue_create && api.queue_destroy &&
                  api.alloc && api.free && api.map && api.copy && api.copy_to_host && api.copy_from_host && api.pack &&
                  api.weight_free && api.query && api.compile && api.programs_free && api.enqueue && api.event_status &&
                  api.event_wait && api.event_notify && api.event_release && api.fence,
              "an entry that every device needs is null");
  judge.check(d.family[0] && d.model[0], "the device has a family and a model");
  judge.check(d.ops != 0 && (d.ops >> MOTLEY_OP_KIND_COUNT) == 0, "the ops are a set of known kinds");
  judge.check(d.weight_dtypes != 0, "the device packs some weight format");
  judge.check(d.alignment > 0 && (d.alignment & (d.alignment - 1)) == 0, "the alignment is a power of two");
  judge.check(d.queues_max > 0 && d.queue_depth > 0, "queues and depth");
  judge.check(!judge.device().has(MOTLEY_CAP_PAGED_ATTENTION) ||
                  (d.kv_dtypes && api.kv_create && api.kv_destroy && api.kv_layout && api.kv_export && api.kv_import &&
                   judge.supports({MOTLEY_OP_KV_WRITE, MOTLEY_OP_PAGED_ATTENTION})),
              "paged attention is claimed with its KV entries, ops and dtypes");
}

void judge_ops(Judge& judge) {
  const auto nothing = [](motley_op&) {};
  element_wise(judge, MOTLEY_OP_ADD, "ADD", 2, nothing);
  element_wise(judge, MOTLEY_OP_MUL, "MUL", 2, nothing);
  element_wise(judge, MOTLEY_OP_SILU_MUL, "SILU_MUL", 2, nothing);
  element_wise(judge, MOTLEY_OP_GELU_MUL, "GELU_MUL", 2, nothing);
  element_wise(judge, MOTLEY_OP_SIGMOID_MUL, "SIGMOID_MUL", 2, nothing);
  element_wise(judge, MOTLEY_OP_CLAMPED_SWIGLU, "CLAMPED_SWIGLU", 2, [](motley_op& op) {
    op.attr.glu = {1.702f, 2.0f};
  });
  element_wise(judge, MOTLEY_OP_SCALE, "SCALE", 1, [](motley_op& op) { op.attr.scale.factor = 0.37f; });
  element_wise(judge, MOTLEY_OP_SOFTCAP, "SOFTCAP", 1, [](motley_op& op) { op.attr.scale.factor = 2.5f; });
  in_place_add(judge);
  norms(judge);
  ropes(judge);
  row_gates(judge);
  shapes(judge);
  inner_shapes(judge);
}

void judge_weights(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_MATMUL})) return judge.skip("MATMUL");
  each_format(judge, [&](const kit::Format& format) {
    matmuls(judge, format);
    embeds(judge, format);
    cuts(judge, format);
  });
  for (const int32_t from : {MOTLEY_F32, MOTLEY_BF16, MOTLEY_Q8_0, MOTLEY_Q4_K})
    if (!judge.packs(from)) conversion(judge, *kit::find_format(from), judge.plain_dtype());
  if (judge.supports({MOTLEY_OP_EMBED})) embed_parts(judge);
}

}  // namespace motley::conformance
