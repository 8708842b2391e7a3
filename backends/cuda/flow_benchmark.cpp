// What a decoder does besides its products, through the plugin's table: attention, what goes value by value, SAMPLE.
//   cuda_flow_benchmark PLUGIN.so [WORD]     WORD: only the cases whose names hold it
// Times are of programs enqueued one behind the other, each of several layers whose KV does not fit the cache.
// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "motley/backend.h"

namespace {

constexpr int32_t kHeads = 32, kKvHeads = 8, kDim = 128, kHidden = 4096, kFfn = 14336, kVocab = 128256;
constexpr uint32_t kBlock = 16;
constexpr int kRuns = 12, kWarm = 4;

const motley_backend* api = nullptr;
motley_device* device = nullptr;
motley_queue* queue = nullptr;
motley_error error{};
const char* word = "";

void need(motley_code code, const char* what) {
  if (code == MOTLEY_OK) return;
  std::fprintf(stderr, "%s: %s\n", what, error.text);
  std::exit(1);
}

struct Graph {
  std::vector<motley_value> values;
  std::vector<motley_op> ops;
  std::vector<int32_t> inputs, outputs;
  std::vector<motley_weight*> weights;
  int32_t value(int64_t width, int64_t rows = MOTLEY_DIM_ROWS, int32_t dtype = MOTLEY_F32) {
    values.push_back({dtype, 2, {rows, width, 0, 0}});
    return static_cast<int32_t>(values.size()) - 1;
  }
  int32_t input(int64_t width, int64_t rows = MOTLEY_DIM_ROWS) {
    inputs.push_back(value(width, rows));
    return inputs.back();
  }
  motley_op& op(int32_t kind, std::vector<int32_t> in, std::vector<int32_t> out, std::vector<int32_t> weight = {}) {
    motley_op o;
    std::memset(&o, 0xff, sizeof o);
    o.kind = kind;
    std::copy(in.begin(), in.end(), o.in);
    std::copy(out.begin(), out.end(), o.out);
    std::copy(weight.begin(), weight.end(), o.weight);
    ops.push_back(o);
    return ops.back();
  }
  int32_t vector(int64_t count) {
    const std::vector<float> ones(static_cast<size_t>(count), 1.0f);
    motley_weight_desc desc{};
    desc.struct_size = sizeof desc, desc.name = "w", desc.dtype = desc.format = MOTLEY_F32;
    desc.uses = MOTLEY_WEIGHT_VECTOR, desc.experts = 1, desc.rows = 1, desc.cols = count;
    desc.data = ones.data(), desc.bytes = ones.size() * 4;
    weights.push_back(nullptr);
    need(api->pack(device, &desc, &weights.back(), nullptr, &error), "pack");
    return static_cast<int32_t>(weights.size()) - 1;
  }
};

struct Batch {
  motley_batch b{};
  std::vector<int32_t> tokens, positions, kv_slots, context, blocks, head_rows;
  std::vector<uint8_t> generated;
  std::vector<uint32_t> row_begin, block_begin;
  std::vector<motley_sample_row> samples;
  // `seqs` sequences that have `context` positions, the last `rows` of each in the batch.
  Batch(uint32_t seqs, uint32_t rows, uint32_t positions_each, bool prompt) {
    row_begin = block_begin = {0};
    const uint32_t each = (positions_each + kBlock - 1) / kBlock;
    std::vector<int32_t> order(size_t{seqs} * each);
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    for (uint32_t s = 0; s < seqs; ++s) {
      const int32_t* mine = order.data() + size_t{s} * each;
      for (uint32_t r = 0; r < rows; ++r) {
        const uint32_t p = positions_each - rows + r;
        positions.push_back(static_cast<int32_t>(p));
        kv_slots.push_back(mine[p / kBlock] * static_cast<int32_t>(kBlock) + static_cast<int32_t>(p % kBlock));
      }
      blocks.insert(blocks.end(), mine, mine + each);
      row_begin.push_back(row_begin.back() + rows), block_begin.push_back(block_begin.back() + each);
      context.push_back(static_cast<int32_t>(positions_each));
    }
    const size_t n = positions.size();
    tokens.assign(n, 0), generated.assign(n, prompt ? 0 : 1);
    b.struct_size = sizeof b, b.rows = static_cast<uint32_t>(n), b.token_ids = tokens.data();
    b.positions = positions.data(), b.kv_slots = kv_slots.data(), b.generated = generated.data(), b.seqs = seqs;
    b.seq_row_begin = row_begin.data(), b.seq_context = context.data(), b.seq_block_begin = block_begin.data();
    b.blocks = blocks.data();
  }
  void sample(const motley_sample_row& row) {
    for (uint32_t i = 0; i < b.rows; ++i) head_rows.push_back(static_cast<int32_t>(i)), samples.push_back(row);
    b.head_row_count = b.rows, b.head_rows = head_rows.data(), b.samples = samples.data();
  }
};

motley_buffer* buffer(uint64_t bytes) {
  motley_buffer* made = nullptr;
  need(api->alloc(device, std::max<uint64_t>(bytes, 4), MOTLEY_USE_ACTIVATION, nullptr, &made, &error), "alloc");
  std::vector<float> noise(std::min<uint64_t>(bytes, 1 << 24) / 4);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& x : noise) x = normal(random);
  for (uint64_t at = 0; at < bytes; at += noise.size() * 4) {
    motley_event* event = nullptr;
    need(api->copy_from_host(queue, made, at, noise.data(), std::min<uint64_t>(noise.size() * 4, bytes - at), &event,
                             &error),
         "copy");
    need(api->event_wait(event, UINT64_MAX, &error), "copy");
    api->event_release(event);
  }
  return made;
}

// Seconds of a program, the median of kRuns that follow one another.
double seconds(Graph& g, Batch& batch, motley_kv* kv) {
  motley_segment segment{};
  segment.struct_size = sizeof segment, segment.cut = MOTLEY_CUT_STAGE, segment.values = g.values.data();
  segment.value_count = static_cast<uint32_t>(g.values.size()), segment.ops = g.ops.data();
  segment.op_count = static_cast<uint32_t>(g.ops.size()), segment.inputs = g.inputs.data();
  segment.input_count = static_cast<uint32_t>(g.inputs.size()), segment.outputs = g.outputs.data();
  segment.output_count = static_cast<uint32_t>(g.outputs.size());
  segment.weight_count = static_cast<uint32_t>(g.weights.size());
  motley_compile_options options{};
  options.struct_size = sizeof options, options.buckets = &batch.b.rows, options.bucket_count = 1;
  motley_programs* programs = nullptr;
  need(api->compile(device, &segment, g.weights.data(), &options, &programs, &error), "compile");
  std::vector<motley_binding> bindings;
  std::vector<motley_buffer*> buffers;
  std::vector<int32_t> all = g.inputs;
  for (const int32_t id : g.outputs)
    if (std::find(all.begin(), all.end(), id) == all.end()) all.push_back(id);
  for (const int32_t id : all) {
    const motley_value& v = g.values[static_cast<size_t>(id)];
    const uint64_t rows = v.dims[0] == MOTLEY_DIM_SLOTS ? 1 : batch.b.rows;
    buffers.push_back(buffer(rows * static_cast<uint64_t>(v.dims[1]) * 4));
    bindings.push_back({id, buffers.back(), 0});
  }
  motley_enqueue_args args{};
  args.struct_size = sizeof args, args.bindings = bindings.data(), args.kv = kv, args.batch = &batch.b;
  args.binding_count = static_cast<uint32_t>(bindings.size());
  std::vector<motley_event*> events(kWarm + kRuns);
  for (motley_event*& event : events) need(api->enqueue(queue, programs, &args, &event, &error), "enqueue");
  std::vector<int64_t> ends;
  for (motley_event* event : events) {
    need(api->event_wait(event, UINT64_MAX, &error), "a program");
    motley_event_times times{};
    times.struct_size = sizeof times;
    need(api->event_times(event, &times, &error), "times");
    ends.push_back(times.end_ns);
    api->event_release(event);
  }
  const double mean = static_cast<double>(ends.back() - ends[kWarm - 1]) * 1e-9 / kRuns;
  api->programs_free(programs);
  for (motley_buffer* made : buffers) api->free(made);
  for (motley_weight* weight : g.weights) api->weight_free(weight);
  return mean;
}

motley_kv* pool(int32_t dtype, uint32_t layers, uint32_t blocks) {
  const std::vector<int32_t> heads(layers, kKvHeads), dims(layers, kDim);
  motley_kv_desc desc{};
  desc.struct_size = sizeof desc, desc.dtype = dtype, desc.block_size = kBlock, desc.blocks = blocks;
  desc.layers = layers, desc.kv_heads = heads.data(), desc.head_dim = dims.data();
  motley_kv* made = nullptr;
  need(api->kv_create(device, &desc, &made, &error), "kv_create");
  return made;
}

void attention_op(Graph& g, int32_t layer, int32_t q, int32_t out) {
  g.op(MOTLEY_OP_PAGED_ATTENTION, {q}, {out}).attr.attention = {layer, kHeads, kKvHeads, kDim, 0.0883883f, 0, 0};
}

// ROPE of q and k, and KV_WRITE; the turned q.
int32_t heads(Graph& g, int32_t layer, int32_t q, int32_t k, int32_t v) {
  const int32_t tq = g.value(kHeads * kDim), tk = g.value(kKvHeads * kDim);
  g.op(MOTLEY_OP_ROPE, {q}, {tq}).attr.rope = {MOTLEY_ROPE_NORM, kHeads, kDim, kDim, 500000, 1, 1, 1, 0, 0, 0};
  g.op(MOTLEY_OP_ROPE, {k}, {tk}).attr.rope = {MOTLEY_ROPE_NORM, kKvHeads, kDim, kDim, 500000, 1, 1, 1, 0, 0, 0};
  g.op(MOTLEY_OP_KV_WRITE, {tk, v}, {}).attr.kv = {layer, kKvHeads, kDim};
  return tq;
}

// with_heads: behind ROPE and KV_WRITE, as in a step.
void attention(const char* name, int32_t dtype, uint32_t seqs, uint32_t rows, uint32_t context, bool prompt,
               bool with_heads = false) {
  if (!std::strstr(name, word)) return;
  const uint32_t layers = prompt ? 4 : 32;
  Batch batch(seqs, rows, context, prompt);
  motley_kv* kv = pool(dtype, layers, seqs * ((context + kBlock - 1) / kBlock));
  Graph g;
  {  // the pool's content: random, by writes of a program of its own
    Graph w;
    const int32_t k = w.input(kKvHeads * kDim), v = w.input(kKvHeads * kDim);
    for (uint32_t l = 0; l < layers; ++l)
      w.op(MOTLEY_OP_KV_WRITE, {k, v}, {}).attr.kv = {static_cast<int32_t>(l), kKvHeads, kDim};
    const int32_t in = w.input(8), out = w.value(8);
    w.outputs.push_back(out);
    w.op(MOTLEY_OP_SCALE, {in}, {out}).attr.scale.factor = 1;
    Batch all(seqs, context, context, true);
    seconds(w, all, kv);
  }
  const int32_t q = g.input(kHeads * kDim), k = with_heads ? g.input(kKvHeads * kDim) : MOTLEY_NONE,
                v = with_heads ? g.input(kKvHeads * kDim) : MOTLEY_NONE;
  for (uint32_t l = 0; l < layers; ++l) {
    const int32_t out = g.value(kHeads * kDim), layer = static_cast<int32_t>(l);
    attention_op(g, layer, with_heads ? heads(g, layer, q, k, v) : q, out);
    if (l + 1 == layers) g.outputs.push_back(out);
  }
  const double each = seconds(g, batch, kv) / layers;
  const double bytes = 2.0 * seqs * context * kKvHeads * kDim * (dtype == MOTLEY_I8 ? 1 : dtype == MOTLEY_F32 ? 4 : 2);
  double pairs = 0;
  for (const int32_t p : batch.positions) pairs += p + 1;
  std::printf("attention %-22s %9.1f us a layer  %7.1f GB/s of KV  %6.1f TFLOP/s\n", name, each * 1e6,
              bytes / each * 1e-9, 4 * pairs * kHeads * kDim / each * 1e-12);
  api->kv_destroy(kv);
}

// A decoder's layers without products and attention.
void elements(uint32_t rows, bool prompt) {
  if (!std::strstr("elements", word)) return;
  constexpr int32_t kLayers = 16;
  Batch batch(prompt ? 1 : rows, prompt ? rows : 1, prompt ? rows : 64, prompt);
  motley_kv* kv = pool(MOTLEY_F16, kLayers, 4 * rows);
  Graph g;
  const int32_t x = g.input(kHidden), q = g.input(kHeads * kDim), k = g.input(kKvHeads * kDim),
                v = g.input(kKvHeads * kDim), gate = g.input(kFfn), up = g.input(kFfn), more = g.input(kHidden);
  const int32_t norm = g.vector(kHidden);
  g.outputs.push_back(x);  // in place
  for (int32_t l = 0; l < kLayers; ++l) {
    for (int half = 0; half < 2; ++half) {
      const int32_t normed = g.value(kHidden);
      g.op(MOTLEY_OP_RMSNORM, {x}, {normed}, {norm}).attr.norm = {1e-5f, kHidden};
      if (half == 0) {
        heads(g, l, q, k, v);
      } else {
        g.op(MOTLEY_OP_SILU_MUL, {gate, up}, {g.value(kFfn)});
      }
      g.op(MOTLEY_OP_ADD, {x, more}, {x});
    }
  }
  std::printf("elements, %5u rows %22.1f us a layer\n", rows, seconds(g, batch, kv) / kLayers * 1e6);
  api->kv_destroy(kv);
}

void sample(const char* name, uint32_t rows, float temperature, int32_t top_k, float top_p) {
  if (!std::strstr("sample", word)) return;
  Batch batch(rows, 1, 1, false);
  motley_sample_row row{};
  row.temperature = temperature, row.top_k = top_k, row.top_p = top_p, row.repetition_penalty = 1;
  row.top_logprobs = -1, row.out_slot = MOTLEY_NONE;
  batch.sample(row);
  Graph g;
  const int32_t logits = g.input(kVocab, MOTLEY_DIM_HEAD_ROWS);
  constexpr int kTimes = 8;
  for (int i = 0; i < kTimes; ++i) {
    const int32_t id = g.value(1, MOTLEY_DIM_HEAD_ROWS, MOTLEY_I32);
    g.values.back().rank = 1;
    g.op(MOTLEY_OP_SAMPLE, {logits}, {id});
    if (i + 1 == kTimes) g.outputs.push_back(id);
  }
  std::printf("sample %-14s %3u rows %18.1f us\n", name, rows, seconds(g, batch, nullptr) / kTimes * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: cuda_flow_benchmark PLUGIN.so [WORD]\n"), 2;
  if (argc > 2) word = argv[2];
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  const auto entry = reinterpret_cast<motley_backend_entry_fn>(dlsym(library, MOTLEY_BACKEND_ENTRY));
  api = entry ? entry(MOTLEY_BACKEND_ABI) : nullptr;
  if (!api) return std::fprintf(stderr, "no table\n"), 1;
  motley_device_desc desc{};
  desc.struct_size = sizeof desc;
  uint32_t count = 0;
  need(api->enumerate(&desc, 1, &count, &error), "enumerate");
  if (count == 0) return std::fprintf(stderr, "%s\n", error.text), 1;
  std::printf("%s\n", desc.model);
  need(api->open(0, nullptr, &device, &error), "open");
  need(api->queue_create(device, &queue, &error), "queue_create");
  for (const uint32_t rows : {1u, 64u}) elements(rows, false);
  elements(4096, true);
  for (const uint32_t rows : {1u, 64u}) {
    sample("greedy", rows, 0, 0, 1);
    sample("temperature", rows, 1, 0, 1);
    sample("top-k", rows, 1, 50, 1);
    sample("top-p", rows, 1, 0, 0.9f);
    sample("top-k, top-p", rows, 1, 50, 0.9f);
  }
  attention("1 x 64", MOTLEY_F16, 1, 1, 64, false);
  attention("1 x 576", MOTLEY_F16, 1, 1, 576, false);
  attention("1 x 4096", MOTLEY_F16, 1, 1, 4096, false);
  attention("1 x 32768", MOTLEY_F16, 1, 1, 32768, false);
  attention("8 x 4096", MOTLEY_F16, 8, 1, 4096, false);
  attention("32 x 576", MOTLEY_F16, 32, 1, 576, false);
  attention("64 x 576", MOTLEY_F16, 64, 1, 576, false);
  attention("64 x 576 bf16", MOTLEY_BF16, 64, 1, 576, false);
  attention("64 x 576 int8", MOTLEY_I8, 64, 1, 576, false);
  attention("64 x 4096", MOTLEY_F16, 64, 1, 4096, false);
  attention("prompt 512", MOTLEY_F16, 1, 512, 512, true);
  attention("prompts 8 x 512", MOTLEY_F16, 8, 512, 512, true);
  attention("prompt 4096", MOTLEY_F16, 1, 4096, 4096, true);
  attention("prompt 4096 bf16", MOTLEY_BF16, 1, 4096, 4096, true);
  attention("prompt 4096 int8", MOTLEY_I8, 1, 4096, 4096, true);
  attention("512 more on 4096", MOTLEY_F16, 1, 512, 4608, true);
  attention("prompt 8192", MOTLEY_F16, 1, 8192, 8192, true);
  attention("heads, 8 x 512", MOTLEY_F16, 8, 512, 512, true, true);
  attention("heads, 1 x 4096", MOTLEY_F16, 1, 4096, 4096, true, true);
  attention("heads, 512 on 4096", MOTLEY_F16, 1, 512, 4608, true, true);
  api->queue_destroy(queue);
  api->close(device);
  return 0;
}
