// KV pools and attention over them.
#include <algorithm>

#include "harness.hpp"
#include "kit/kit.hpp"

namespace motley::conformance {

namespace {

constexpr int64_t kR = MOTLEY_DIM_ROWS;
constexpr int32_t kKvDtypes[] = {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16, MOTLEY_F8_E4M3, MOTLEY_I8};
const char* dtype_name(int32_t dtype) {
  switch (dtype) {
    case MOTLEY_F32: return "F32";
    case MOTLEY_F16: return "F16";
    case MOTLEY_BF16: return "BF16";
    case MOTLEY_F8_E4M3: return "F8_E4M3";
    default: return "I8";
  }
}

bool skip_kv(Judge& judge, int32_t dtype) {
  if (!judge.device().has(MOTLEY_CAP_PAGED_ATTENTION)) return judge.skip("paged attention"), true;
  if (!(judge.device().desc().kv_dtypes >> dtype & 1))
    return judge.skip(std::string("KV in ") + dtype_name(dtype)), true;
  return false;
}

uint64_t plane_elements(const KvShapeSpec& s, size_t layer) {
  return uint64_t{s.block_size} * static_cast<uint64_t>(s.kv_heads[layer]) * static_cast<uint64_t>(s.head_dim[layer]);
}

// Canonical bytes of `blocks` blocks, by docs/formats/kv.md: layers, in each k then v, data then scales.
Bytes random_canonical(Random& random, const KvShapeSpec& s, uint32_t blocks) {
  Bytes out;
  const auto append = [&](const void* from, size_t bytes) {
    const auto* p = static_cast<const std::byte*>(from);
    out.insert(out.end(), p, p + bytes);
  };
  for (size_t l = 0; l < s.kv_heads.size(); ++l) {
    for (int plane = 0; plane < 2; ++plane) {
      for (uint64_t i = 0; i < plane_elements(s, l) * blocks; ++i) {
        const float x = random.normal();
        const uint16_t half = kit::f32_to_f16(x), brain = kit::f32_to_bf16(x);
        const uint8_t eighth = kit::f32_to_f8_e4m3(x);
        const auto byte = static_cast<int8_t>(static_cast<int>(random.below(255)) - 127);
        switch (s.dtype) {
          case MOTLEY_F32: append(&x, 4); break;
          case MOTLEY_F16: append(&half, 2); break;
          case MOTLEY_BF16: append(&brain, 2); break;
          case MOTLEY_F8_E4M3: append(&eighth, 1); break;
          default: append(&byte, 1);
        }
      }
      if (s.dtype != MOTLEY_I8) continue;
      for (uint64_t i = 0; i < uint64_t{s.block_size} * static_cast<uint64_t>(s.kv_heads[l]) * blocks; ++i) {
        const auto scale = static_cast<float>(0.005 + 0.02 * random.uniform());
        append(&scale, 4);
      }
    }
  }
  return out;
}

std::vector<int32_t> scattered(Random& random, uint32_t count, uint32_t of) {
  std::vector<int32_t> ids;
  for (uint32_t i = 0; i < of; ++i) ids.push_back(static_cast<int32_t>(i));
  random.shuffle(ids);
  ids.resize(count);
  return ids;
}

void round_trip(Judge& judge, int32_t dtype) {
  Random random(judge.options().seed + 3);
  KvShapeSpec spec{dtype, 16, 9, {3, 1}, {24, 64}, {}};
  Owned<motley_kv> kv = judge.device().kv(spec);
  const std::vector<int32_t> blocks = {7, 0, 4};
  const Bytes content = random_canonical(random, spec, 3);
  motley_kv_layout layout{};
  layout.struct_size = sizeof layout;
  motley_error error{};
  const motley_kv_desc desc = spec.desc();
  require_ok(judge.api().kv_layout(judge.device().raw(), &desc, &layout, &error), error, "kv_layout");
  judge.check(layout.canonical_bytes_per_block * 3 == content.size(), "kv_layout's canonical bytes are the format's");
  judge.check(layout.bytes_per_block > 0 && layout.bytes_total >= layout.bytes_per_block * spec.blocks,
              "kv_layout's totals");
  judge.device().kv_import(kv.get(), blocks, 2, content);
  judge.same(judge.device().kv_export(kv.get(), blocks, 2, content.size()), content,
             std::string("KV round trip ") + dtype_name(dtype));
  // A single block is a piece of the run: layer by layer, k then v.
  const Bytes one = judge.device().kv_export(kv.get(), std::vector<int32_t>{7}, 2, content.size() / 3);
  const size_t first = plane_elements(spec, 0) * static_cast<size_t>(kit::element_bytes(dtype));
  judge.check(std::equal(one.begin(), one.begin() + static_cast<long>(first), content.begin()),
              "the first plane of a block");
}

// What KV_WRITE stores is what the rule of docs/formats/kv.md says, to the bit where rounding is fixed.
void writes(Judge& judge, int32_t dtype) {
  Random random(judge.options().seed + 4);
  KvShapeSpec spec{dtype, 8, 6, {3}, {20}, {}};
  GraphBuilder g;
  const int32_t k = g.input(MOTLEY_F32, {kR, 60}), v = g.input(MOTLEY_F32, {kR, 60});
  g.op(MOTLEY_OP_KV_WRITE, {k, v}, {}).attr.kv = {0, 3, 20};
  BatchData b;
  b.add({5, 9, {4, 1}, false}, 8);
  b.add({0, 1, {3}, true}, 8);
  b.kv_slots[2] = -1;
  auto kx = random.normals(600), vx = random.normals(600);
  const std::map<int32_t, Bytes> given = {{k, to_bytes(kx)}, {v, to_bytes(vx)}};
  Bytes pools[2];
  Device* devices[2] = {&judge.reference(), &judge.device()};
  const std::vector<int32_t> all = {0, 1, 2, 3, 4, 5};
  const size_t bytes =
      2 * 6 * (8 * 60 * static_cast<size_t>(kit::element_bytes(dtype)) + (dtype == MOTLEY_I8 ? 8 * 3 * 4 : 0));
  for (int i = 0; i < 2; ++i) {
    Owned<motley_kv> kv = devices[i]->kv(spec);
    devices[i]->run(devices[i]->compile(g, {12}), given, b, kv.get());
    pools[i] = devices[i]->kv_export(kv.get(), all, 1, bytes);
  }
  judge.same(pools[1], pools[0], std::string("KV_WRITE ") + dtype_name(dtype));
}

struct AttentionCase {
  int32_t heads, kv_heads, head_dim, window;
  float softcap;
  bool sinks, lse;
  uint32_t block_size;
};

// Everything of position `position` of block `block` of a one-layer run of blocks becomes NaN (I8: its scales).
void poison(Bytes& content, const KvShapeSpec& s, size_t blocks, size_t block, size_t position) {
  const auto heads = static_cast<size_t>(s.kv_heads[0]), dim = static_cast<size_t>(s.head_dim[0]);
  const size_t scales = s.dtype == MOTLEY_I8 ? blocks * s.block_size * heads * 4 : 0;
  const size_t data = blocks * s.block_size * heads * dim * static_cast<size_t>(kit::element_bytes(s.dtype));
  const size_t bytes = (scales ? scales : data) / (blocks * s.block_size),
               at = (block * s.block_size + position) * bytes;
  for (size_t plane = 0; plane < 2; ++plane) {
    const auto begin = content.begin() + static_cast<long>(plane * (data + scales) + (scales ? data : 0) + at);
    std::fill(begin, begin + static_cast<long>(bytes), std::byte{0xff});
  }
}

// Attends on both devices over the same random pool. What no row may see holds NaN.
void attention_case(Judge& judge, int32_t dtype, const AttentionCase& c,
                    const std::vector<std::pair<int32_t, int32_t>>& parts) {
  Random random(judge.options().seed + static_cast<uint64_t>(c.heads * 1000 + c.head_dim));
  uint32_t total = 0;
  for (const auto& [first, rows] : parts)
    total += (static_cast<uint32_t>(first + rows) + c.block_size - 1) / c.block_size;
  KvShapeSpec spec{dtype, c.block_size, total + 2, {c.kv_heads}, {c.head_dim}, {c.window}};
  const std::vector<int32_t> order = scattered(random, total, total + 2);
  BatchData b;
  size_t used = 0;
  for (const auto& [first, rows] : parts) {
    const size_t count = (static_cast<uint32_t>(first + rows) + c.block_size - 1) / c.block_size;
    b.add({first,
           rows,
           {order.begin() + static_cast<long>(used), order.begin() + static_cast<long>(used + count)},
           rows == 1},
          c.block_size);
    used += count;
  }
  const int64_t width = int64_t{c.heads} * c.head_dim;
  GraphBuilder g;
  const int32_t q = g.input(MOTLEY_F32, {kR, width});
  std::vector<int32_t> out = {g.output(MOTLEY_F32, {kR, width})}, weight;
  if (c.lse) out.push_back(g.output(MOTLEY_F32, {kR, c.heads}));
  if (c.sinks) weight.push_back(g.weight(vector_weight(random.normals(static_cast<size_t>(c.heads)))));
  g.op(MOTLEY_OP_PAGED_ATTENTION, {q}, out, weight).attr.attention = {
      0, c.heads, c.kv_heads, c.head_dim, 1 / std::sqrt(static_cast<float>(c.head_dim)), c.window, c.softcap};
  Bytes content = random_canonical(random, spec, total);
  size_t first_block = 0;
  for (const auto& [first, rows] : parts) {
    const int32_t unseen = c.window ? std::max(0, first - c.window + 1) : 0, context = first + rows;
    const size_t count = (static_cast<uint32_t>(context) + c.block_size - 1) / c.block_size;
    for (int32_t p = 0; p < static_cast<int32_t>(count * c.block_size); ++p) {
      if (p < unseen || p >= context)
        poison(content, spec, total, first_block + static_cast<size_t>(p) / c.block_size,
               static_cast<size_t>(p) % c.block_size);
    }
    first_block += count;
  }
  const std::map<int32_t, Bytes> given = {{q, to_bytes(random.normals(b.rows() * static_cast<size_t>(width)))}};
  std::map<int32_t, Bytes> results[2];
  Device* devices[2] = {&judge.reference(), &judge.device()};
  for (int i = 0; i < 2; ++i) {
    Owned<motley_kv> kv = devices[i]->kv(spec);
    devices[i]->kv_import(kv.get(), order, 1, content);
    results[i] = devices[i]->run(devices[i]->compile(g, {b.rows() + 2}), given, b, kv.get());
  }
  const std::string what = std::string("PAGED_ATTENTION ") + dtype_name(dtype) + " heads " + std::to_string(c.heads) +
                           "/" + std::to_string(c.kv_heads) + " dim " + std::to_string(c.head_dim) + " window " +
                           std::to_string(c.window) + " block " + std::to_string(c.block_size);
  for (const int32_t id : out)
    judge.near(results[1].at(id), results[0].at(id), judge.rounded(attention_tolerance(dtype)), what);
}

// One sequence of 300 positions from where it begins: in one piece, in chunks, row by row, and beside another
// sequence. The bits are the same.
void attention_chunks(Judge& judge, int32_t dtype, const AttentionCase& c) {
  constexpr int32_t kRows = 300;
  if (!judge.device().has(MOTLEY_CAP_ROW_INVARIANT) || !judge.device().has(MOTLEY_CAP_ONE_CLASS)) return;
  Random random(judge.options().seed + 9);
  const uint32_t blocks = (kRows + c.block_size - 1) / c.block_size;
  const KvShapeSpec spec{dtype, c.block_size, 2 * blocks, {c.kv_heads}, {c.head_dim}, {c.window}};
  const std::vector<int32_t> order = scattered(random, 2 * blocks, 2 * blocks);
  const std::vector<int32_t> mine(order.begin(), order.begin() + blocks), other(order.begin() + blocks, order.end());
  const int64_t width = int64_t{c.heads} * c.head_dim;
  GraphBuilder g;
  const int32_t q = g.input(MOTLEY_F32, {kR, width}), out = g.output(MOTLEY_F32, {kR, width});
  std::vector<int32_t> weight;
  if (c.sinks) weight.push_back(g.weight(vector_weight(random.normals(static_cast<size_t>(c.heads)))));
  g.op(MOTLEY_OP_PAGED_ATTENTION, {q}, {out}, weight).attr.attention = {
      0, c.heads, c.kv_heads, c.head_dim, 1 / std::sqrt(static_cast<float>(c.head_dim)), c.window, c.softcap};
  const auto x = random.normals(static_cast<size_t>(kRows * width));
  const Bytes content = random_canonical(random, spec, 2 * blocks);
  const auto run = [&](Device& device, const std::vector<int32_t>& ends, bool beside) {
    Owned<motley_kv> kv = device.kv(spec);
    device.kv_import(kv.get(), order, 1, content);
    const Program program = device.compile(g, {2 * kRows});
    Bytes all;
    int32_t begin = 0;
    for (const int32_t end : ends) {
      BatchData b;
      std::vector<float> rows;
      if (beside) b.add({100, 3, other, false}, c.block_size), rows = random.normals(static_cast<size_t>(3 * width));
      b.add({begin, end - begin, mine, end - begin == 1}, c.block_size);
      rows.insert(rows.end(), x.begin() + begin * width, x.begin() + end * width);
      const Bytes part = device.run(program, {{q, to_bytes(rows)}}, b, kv.get()).at(out);
      all.insert(all.end(), part.begin() + (beside ? 3 * width * 4 : 0), part.end());
      begin = end;
    }
    return all;
  };
  std::vector<int32_t> each;
  for (int32_t i = 220; i <= kRows; ++i) each.push_back(i);
  const std::string what = std::string("attention ") + dtype_name(dtype) + " window " + std::to_string(c.window) + " ";
  const auto device = judge.open(0, true), several = judge.open(3, true);
  const Bytes whole = run(*device, {kRows}, false);
  judge.same(run(*device, {1, 30, 31, 200, 257, kRows}, false), whole, what + "in chunks");
  judge.same(run(*device, {64, 128, kRows}, true), whole, what + "in chunks beside another sequence");
  judge.same(run(*several, each, false), whole, what + "row by row, other threads");
  const auto quick = judge.open(0, false);  // a prompt's rows may be of a class of their own there
  judge.same(run(*quick, {64, 128, 250, kRows}, true), run(*quick, {kRows}, false), what + "a prompt in chunks");
}

// Blocks that lie elsewhere are not seen, whichever they are. A device that does not claim to skip them refuses.
void attention_with_holes(Judge& judge, int32_t dtype, const AttentionCase& c) {
  Random random(judge.options().seed + static_cast<uint64_t>(c.heads * 100 + c.window));
  const auto size = static_cast<int32_t>(c.block_size);
  struct Holes {
    int32_t first, rows;
    bool (*elsewhere)(int32_t block, int32_t of);
  };
  const Holes sequences[] = {{299, 1, [](int32_t b, int32_t) { return b % 3 == 1; }},
                             {210, 90, [](int32_t b, int32_t) { return b % 2 == 0; }},
                             {40, 60, [](int32_t b, int32_t of) { return b < of / 2; }},
                             {0, 70, [](int32_t b, int32_t of) { return b >= of / 2; }},
                             {512, 1, [](int32_t b, int32_t of) { return b + 1 < of; }},
                             {300, 7, [](int32_t, int32_t) { return true; }},
                             {20, 1, [](int32_t, int32_t) { return true; }},
                             {0, 33, [](int32_t, int32_t) { return false; }}};
  BatchData b;
  int32_t held = 0;
  for (const Holes& s : sequences) {
    const int32_t count = (s.first + s.rows + size - 1) / size;
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < count; ++i) blocks.push_back(s.elsewhere(i, count) ? MOTLEY_NONE : held++);
    b.add({s.first, s.rows, blocks, s.rows == 1}, c.block_size);
  }
  const KvShapeSpec spec{dtype, c.block_size, static_cast<uint32_t>(held), {c.kv_heads}, {c.head_dim}, {c.window}};
  std::vector<int32_t> all;
  for (int32_t i = 0; i < held; ++i) all.push_back(i);
  const int64_t width = int64_t{c.heads} * c.head_dim;
  GraphBuilder g;
  const int32_t q = g.input(MOTLEY_F32, {kR, width});
  const std::vector<int32_t> out = {g.output(MOTLEY_F32, {kR, width}), g.output(MOTLEY_F32, {kR, c.heads})};
  std::vector<int32_t> weight;
  if (c.sinks) weight.push_back(g.weight(vector_weight(random.normals(static_cast<size_t>(c.heads)))));
  g.op(MOTLEY_OP_PAGED_ATTENTION, {q}, out, weight).attr.attention = {
      0, c.heads, c.kv_heads, c.head_dim, 1 / std::sqrt(static_cast<float>(c.head_dim)), c.window, c.softcap};
  const Bytes content = random_canonical(random, spec, spec.blocks);
  const std::map<int32_t, Bytes> given = {{q, to_bytes(random.normals(b.rows() * static_cast<size_t>(width)))}};
  const auto run = [&](Device& device) {
    Owned<motley_kv> kv = device.kv(spec);
    device.kv_import(kv.get(), all, 1, content);
    return device.run(device.compile(g, {b.rows() + 2}), given, b, kv.get());
  };
  const std::string what = std::string("attention with holes ") + dtype_name(dtype) + " window " +
                           std::to_string(c.window) + " block " + std::to_string(c.block_size);
  if (!judge.device().has(MOTLEY_CAP_PARTIAL_ATTENTION)) {
    bool thrown = false;
    try {
      run(judge.device());
    } catch (const Stop&) {
      thrown = true;
    }
    return judge.check(thrown, what + " is refused by a device that does not claim it");
  }
  const auto wanted = run(judge.reference()), got = run(judge.device());
  for (const int32_t id : out) judge.near(got.at(id), wanted.at(id), judge.rounded(attention_tolerance(dtype)), what);
  const auto lse = from_bytes<float>(got.at(out[1]));
  const auto seen = [&](size_t row) { return std::isfinite(lse[row * static_cast<size_t>(c.heads)]); };
  const size_t nothing = 1 + 90 + 60 + 70 + 1;  // the rows before the sequence that lies elsewhere altogether
  for (size_t row = nothing; row < nothing + 8; ++row)
    judge.check(seen(row) == c.sinks, what + ": of a row that sees nothing the log-sum-exp is -infinity, or the sink");
}

// The parts of a context, merged, are the whole: what one owner of blocks attends to and what another does.
void parts_of_a_context(Judge& judge, int32_t dtype, int32_t window) {
  if (!judge.device().has(MOTLEY_CAP_PARTIAL_ATTENTION) || !judge.supports({MOTLEY_OP_ATTN_MERGE})) return;
  constexpr int32_t kHeads = 4, kDim = 32, kRows = 150;
  Random random(judge.options().seed + 11);
  const KvShapeSpec spec{dtype, 16, (kRows + 15) / 16, {2}, {kDim}, {window}};
  const Bytes content = random_canonical(random, spec, spec.blocks);
  std::vector<int32_t> all;
  for (uint32_t i = 0; i < spec.blocks; ++i) all.push_back(static_cast<int32_t>(i));
  const Bytes sinks = to_bytes(random.normals(kHeads));
  const auto q = to_bytes(random.normals(static_cast<size_t>(kRows * kHeads * kDim)));
  const auto attend = [&](const std::vector<int32_t>& blocks, bool with_sinks) {
    GraphBuilder g;
    const int32_t in = g.input(MOTLEY_F32, {kR, kHeads * kDim});
    const std::vector<int32_t> out = {g.output(MOTLEY_F32, {kR, kHeads * kDim}), g.output(MOTLEY_F32, {kR, kHeads})};
    std::vector<int32_t> weight;
    if (with_sinks) weight.push_back(g.weight(vector_weight(from_bytes<float>(sinks))));
    g.op(MOTLEY_OP_PAGED_ATTENTION, {in}, out, weight).attr.attention = {0, kHeads, 2, kDim, 0.176f, window, 0};
    BatchData b;
    b.add({0, kRows, blocks, false}, 16);
    Owned<motley_kv> kv = judge.device().kv(spec);
    judge.device().kv_import(kv.get(), all, 1, content);
    const auto result = judge.device().run(judge.device().compile(g, {kRows}), {{in, q}}, b, kv.get());
    return std::pair{result.at(out[0]), result.at(out[1])};
  };
  std::vector<int32_t> ours = all, theirs = all;
  for (size_t i = 0; i < all.size(); ++i) (i % 4 < 2 ? theirs : ours)[i] = MOTLEY_NONE;
  const auto whole = attend(all, true), a = attend(ours, true), b = attend(theirs, false);
  GraphBuilder g;
  const int32_t oa = g.input(MOTLEY_F32, {kR, kHeads * kDim}), ob = g.input(MOTLEY_F32, {kR, kHeads * kDim});
  const int32_t la = g.input(MOTLEY_F32, {kR, kHeads}), lb = g.input(MOTLEY_F32, {kR, kHeads});
  const int32_t out = g.output(MOTLEY_F32, {kR, kHeads * kDim}), lse = g.output(MOTLEY_F32, {kR, kHeads});
  g.op(MOTLEY_OP_ATTN_MERGE, {oa, ob, la, lb}, {out, lse});
  const auto merged =
      judge.device().run(judge.device().compile(g, {kRows}),
                         {{oa, a.first}, {ob, b.first}, {la, a.second}, {lb, b.second}}, plain_batch(kRows), nullptr);
  const std::string what = std::string("parts of a context, merged, ") + dtype_name(dtype);
  judge.near(merged.at(out), whole.first, judge.rounded(attention_tolerance(dtype)), what);
  judge.near(merged.at(lse), whole.second, judge.rounded(attention_tolerance(dtype)), what + ": log-sum-exp");
}

void merges(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_ATTN_MERGE})) return judge.skip("ATTN_MERGE");
  Random random(judge.options().seed);
  GraphBuilder g;
  const int32_t a = g.input(MOTLEY_F32, {kR, 48}), b = g.input(MOTLEY_F32, {kR, 48});
  const int32_t la = g.input(MOTLEY_F32, {kR, 3}), lb = g.input(MOTLEY_F32, {kR, 3});
  g.op(MOTLEY_OP_ATTN_MERGE, {a, b, la, lb}, {g.output(MOTLEY_F32, {kR, 48}), g.output(MOTLEY_F32, {kR, 3})});
  auto x = random.normals(5 * 48), y = random.normals(5 * 48), lx = random.normals(15, 3), ly = random.normals(15, 3);
  lx[0] = -INFINITY;  // a part that saw nothing, whose output is then not looked at
  for (int i = 0; i < 16; ++i) x[static_cast<size_t>(i)] = NAN;
  ly[5] = -INFINITY;
  for (size_t i = 5 * 16; i < 6 * 16; ++i) y[i] = NAN;
  lx[4] = ly[4] = -INFINITY;
  judge.compare(g, {{a, to_bytes(x)}, {b, to_bytes(y)}, {la, to_bytes(lx)}, {lb, to_bytes(ly)}}, plain_batch(5),
                kElementwise, "ATTN_MERGE");
}

}  // namespace

void judge_kv(Judge& judge) {
  for (const int32_t dtype : kKvDtypes) {
    if (skip_kv(judge, dtype)) continue;
    round_trip(judge, dtype);
    writes(judge, dtype);
  }
}

void judge_attention(Judge& judge) {
  merges(judge);
  const AttentionCase cases[] = {{1, 1, 16, 0, 0, false, false, 16},   {9, 3, 64, 0, 0, false, true, 16},
                                 {4, 4, 32, 0, 0, false, false, 1},    {8, 2, 128, 0, 0, true, true, 32},
                                 {6, 1, 40, 7, 0, false, false, 16},   {5, 5, 24, 0, 20.0f, false, false, 8},
                                 {9, 9, 16, 33, 30.0f, true, true, 3}, {7, 7, 72, 0, 0, false, false, 16},
                                 {4, 1, 256, 0, 0, false, true, 16},   {4, 1, 256, 64, 50.0f, false, false, 16},
                                 {8, 2, 96, 50, 0, false, false, 32},  {16, 2, 64, 40, 0, true, true, 16},
                                 {2, 1, 33, 1, 0, false, false, 8},    {3, 1, 80, 65, 0, false, false, 16}};
  for (const int32_t dtype : kKvDtypes) {
    if (skip_kv(judge, dtype)) continue;
    for (const AttentionCase& c : cases)
      attention_case(judge, dtype, c, {{0, 1}, {0, 70}, {33, 5}, {130, 1}, {0, 16}, {15, 1}, {16, 1}, {64, 17}});
    attention_case(judge, dtype, {9, 3, 64, 0, 0, false, true, 16}, {{2999, 1}, {1500, 4}});
    attention_case(judge, dtype, {4, 2, 32, 100, 0, false, false, 16}, {{2500, 1}, {1000, 33}});
    attention_case(judge, dtype, {8, 1, 64, 128, 0, true, true, 16}, {{2500, 1}, {127, 3}, {383, 1}, {700, 90}});
    attention_case(judge, dtype, {2, 2, 96, 600, 0, false, true, 8}, {{1300, 1}, {1299, 40}});
    // More (head, 128 rows) than a GPU has multiprocessors, over several hundred positions.
    const std::vector<std::pair<int32_t, int32_t>> many = {{500, 260}, {0, 150}, {700, 130},
                                                           {20, 9},    {0, 40},  {311, 3}};
    if (dtype == MOTLEY_F16) attention_case(judge, dtype, {16, 4, 128, 0, 0, false, true, 16}, many);
    if (dtype == MOTLEY_BF16) attention_case(judge, dtype, {16, 4, 64, 400, 0, true, false, 8}, many);
    for (const AttentionCase& c : {AttentionCase{9, 3, 64, 0, 0, false, true, 16},
                                   {8, 2, 40, 37, 20.0f, true, true, 16},
                                   {4, 1, 256, 128, 0, true, true, 32},
                                   {3, 3, 24, 0, 30.0f, false, true, 3}})
      attention_with_holes(judge, dtype, c);
    for (const int32_t window : {0, 50}) parts_of_a_context(judge, dtype, window);
    attention_chunks(judge, dtype, {4, 1, 64, 0, 0, false, false, 16});
    attention_chunks(judge, dtype, {8, 2, 40, 37, 20.0f, true, false, 16});
    attention_chunks(judge, dtype, {2, 2, 64, 128, 0, true, false, 8});
    attention_chunks(judge, dtype, {2, 1, 128, 0, 0, false, false, 16});
  }
}

}  // namespace motley::conformance
