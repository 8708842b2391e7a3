#include "harness.hpp"

#include <algorithm>
#include <cstdio>

#include "kit/kit.hpp"
#include "kit/reference_backend.hpp"

namespace motley::conformance {

void require_ok(motley_code code, const motley_error& error, const char* what) {
  if (code != MOTLEY_OK) throw Stop{std::string(what) + ": code " + std::to_string(code) + ", " + error.text};
}

motley_weight_desc HostWeight::desc() const {
  motley_weight_desc d{};
  d.struct_size = sizeof d;
  d.name = "conformance.weight";
  d.dtype = dtype, d.format = format == MOTLEY_NONE ? dtype : format;
  d.uses = uses;
  d.experts = experts, d.rows = rows, d.cols = cols;
  d.data = data.data(), d.bytes = data.size();
  d.row_ranges = row_ranges.data(), d.row_range_count = static_cast<uint32_t>(row_ranges.size());
  d.col_ranges = col_ranges.data(), d.col_range_count = static_cast<uint32_t>(col_ranges.size());
  d.expert_ranges = expert_ranges.data(), d.expert_range_count = static_cast<uint32_t>(expert_ranges.size());
  return d;
}

HostWeight random_weight(Random& random, int32_t dtype, uint32_t uses, int64_t rows, int64_t cols, int64_t experts) {
  const kit::Format& format = *kit::find_format(dtype);
  HostWeight w;
  w.dtype = dtype, w.uses = uses, w.experts = experts, w.rows = rows, w.cols = cols;
  w.data.resize(static_cast<size_t>(experts * rows * format.row_bytes(cols)));
  std::byte* at = w.data.data();
  const auto put16 = [&](size_t offset, uint16_t bits) { std::memcpy(at + offset, &bits, 2); };
  const auto small = [&](double low, double high) {
    return kit::f32_to_f16(static_cast<float>(low + (high - low) * random.uniform()));
  };
  for (; at < w.data.data() + w.data.size(); at += format.bytes) {
    for (int i = 0; i < format.bytes; ++i) at[i] = static_cast<std::byte>(random.bits());
    const float x = random.normal() * 0.05f;
    switch (dtype) {
      case MOTLEY_F32: std::memcpy(at, &x, 4); break;
      case MOTLEY_F16: put16(0, kit::f32_to_f16(x)); break;
      case MOTLEY_BF16: put16(0, kit::f32_to_bf16(x)); break;
      case MOTLEY_Q8_0: put16(0, small(0.0003, 0.001)); break;
      case MOTLEY_Q4_0: put16(0, small(0.005, 0.02)); break;
      case MOTLEY_Q4_1: put16(0, small(0.005, 0.02)), put16(2, small(-0.2, 0.0)); break;
      case MOTLEY_Q5_0: put16(0, small(0.0025, 0.01)); break;
      case MOTLEY_Q5_1: put16(0, small(0.0025, 0.01)), put16(2, small(-0.2, 0.0)); break;
      case MOTLEY_Q2_K: put16(80, small(0.002, 0.006)), put16(82, small(0.002, 0.006)); break;
      case MOTLEY_Q3_K: put16(108, small(0.0005, 0.001)); break;
      case MOTLEY_Q4_K: put16(0, small(0.0002, 0.0006)), put16(2, small(0.001, 0.004)); break;
      case MOTLEY_Q5_K: put16(0, small(0.0001, 0.0003)), put16(2, small(0.001, 0.004)); break;
      case MOTLEY_Q6_K: put16(208, small(0.00001, 0.00003)); break;
      case MOTLEY_IQ4_NL: put16(0, small(0.0005, 0.001)); break;
      case MOTLEY_IQ4_XS: put16(0, small(0.00003, 0.00006)); break;
      case MOTLEY_MXFP4: at[0] = static_cast<std::byte>(119 + random.below(4)); break;
      case MOTLEY_F8_E4M3_S64: {
        const auto scale = static_cast<float>(0.0002 + 0.0004 * random.uniform());
        std::memcpy(at, &scale, 4);
        for (int i = 4; i < format.bytes; ++i)
          if ((at[i] & std::byte{0x7f}) == std::byte{0x7f}) at[i] ^= std::byte{1};  // is no number
        break;
      }
      default: throw Stop{"no generator for this format"};
    }
  }
  return w;
}

double dot_magnitude(const HostWeight& weight) {
  const motley_weight_desc desc = weight.desc();
  const kit::WeightSource source(desc);
  std::vector<float> row(static_cast<size_t>(source.cols()));
  double sum = 0;
  for (int64_t r = 0; r < source.rows(); ++r) {
    source.read_row(0, r, row.data());
    for (const float x : row) sum += static_cast<double>(x) * x;
  }
  return std::sqrt(sum / static_cast<double>(source.rows()));
}

HostWeight vector_weight(std::vector<float> values) {
  HostWeight w;
  w.uses = MOTLEY_WEIGHT_VECTOR;
  w.cols = static_cast<int64_t>(values.size());
  w.data = to_bytes(values);
  return w;
}

int32_t GraphBuilder::value(int32_t dtype, std::vector<int64_t> dims) {
  motley_value v{};
  v.dtype = dtype, v.rank = static_cast<int32_t>(dims.size());
  std::copy(dims.begin(), dims.end(), v.dims);
  values.push_back(v);
  return static_cast<int32_t>(values.size()) - 1;
}
int32_t GraphBuilder::input(int32_t dtype, std::vector<int64_t> dims) {
  inputs.push_back(value(dtype, std::move(dims)));
  return inputs.back();
}
int32_t GraphBuilder::output(int32_t dtype, std::vector<int64_t> dims) {
  outputs.push_back(value(dtype, std::move(dims)));
  return outputs.back();
}
int32_t GraphBuilder::weight(HostWeight w) {
  weights.push_back(std::move(w));
  return static_cast<int32_t>(weights.size()) - 1;
}
motley_op& GraphBuilder::op(int32_t kind, std::vector<int32_t> in, std::vector<int32_t> out,
                            std::vector<int32_t> weight) {
  motley_op op{};
  op.kind = kind;
  std::fill(std::begin(op.in), std::end(op.in), MOTLEY_NONE);
  std::fill(std::begin(op.out), std::end(op.out), MOTLEY_NONE);
  std::fill(std::begin(op.weight), std::end(op.weight), MOTLEY_NONE);
  std::copy(in.begin(), in.end(), op.in);
  std::copy(out.begin(), out.end(), op.out);
  std::copy(weight.begin(), weight.end(), op.weight);
  ops.push_back(op);
  return ops.back();
}
motley_segment GraphBuilder::segment() const {
  motley_segment s{};
  s.struct_size = sizeof s;
  s.cut = cut;
  s.layer_end = 1;
  s.values = values.data(), s.value_count = static_cast<uint32_t>(values.size());
  s.ops = ops.data(), s.op_count = static_cast<uint32_t>(ops.size());
  s.inputs = inputs.data(), s.input_count = static_cast<uint32_t>(inputs.size());
  s.outputs = outputs.data(), s.output_count = static_cast<uint32_t>(outputs.size());
  s.weight_count = static_cast<uint32_t>(weights.size());
  s.hash = 1;
  return s;
}

void BatchData::add(const SequenceRows& sequence, uint32_t block_size) {
  for (int32_t i = 0; i < sequence.rows; ++i) {
    const int32_t position = sequence.first_position + i;
    token_ids.push_back(0);
    token_slots.push_back(-1);
    positions.push_back(position);
    const auto block = static_cast<size_t>(position) / block_size;
    kv_slots.push_back(block < sequence.blocks.size() ? sequence.blocks[block] * static_cast<int32_t>(block_size) +
                                                            position % static_cast<int32_t>(block_size)
                                                      : -1);
    generated.push_back(sequence.generated);
  }
  seq_row_begin.push_back(rows());
  seq_context.push_back(sequence.first_position + sequence.rows);
  blocks.insert(blocks.end(), sequence.blocks.begin(), sequence.blocks.end());
  seq_block_begin.push_back(static_cast<uint32_t>(blocks.size()));
}

motley_batch BatchData::view() const {
  motley_batch b{};
  b.struct_size = sizeof b;
  b.rows = rows();
  b.token_ids = token_ids.data(), b.token_slots = token_slots.data(), b.positions = positions.data();
  b.kv_slots = kv_slots.data(), b.generated = generated.data();
  b.seqs = static_cast<uint32_t>(seq_context.size());
  b.seq_row_begin = seq_row_begin.data(), b.seq_context = seq_context.data();
  b.seq_block_begin = seq_block_begin.data(), b.blocks = blocks.data();
  b.head_row_count = static_cast<uint32_t>(head_rows.size());
  b.head_rows = head_rows.data(), b.samples = samples.data();
  b.counts = counts.data(), b.pending = pending.data(), b.biases = biases.data();
  b.slot_count = slot_count;
  return b;
}

BatchData plain_batch(uint32_t rows) {
  BatchData b;
  b.add({0, static_cast<int32_t>(rows), {}, false}, 16);
  return b;
}

motley_kv_desc KvShapeSpec::desc() const {
  motley_kv_desc d{};
  d.struct_size = sizeof d;
  d.dtype = dtype, d.block_size = block_size, d.blocks = blocks;
  d.layers = static_cast<uint32_t>(kv_heads.size());
  d.kv_heads = kv_heads.data(), d.head_dim = head_dim.data();
  d.windows = windows.empty() ? nullptr : windows.data();
  return d;
}

namespace {

motley_open_options with_threads(uint32_t threads) {
  motley_open_options open{};
  open.struct_size = sizeof open;
  open.threads = threads;
  return open;
}

motley_device_desc enumerated(const motley_backend& api, uint32_t index) {
  motley_error error{};
  uint32_t count = 0;
  std::vector<motley_device_desc> descs(index + 1);
  for (auto& d : descs) d.struct_size = sizeof d;
  require_ok(api.enumerate(descs.data(), index + 1, &count, &error), error, "enumerate");
  if (count <= index) throw Stop{std::string("the plugin has no such device: ") + error.text};
  return descs[index];
}

}  // namespace

Device::Device(const motley_backend& api, const Options& options, uint32_t threads)
    : Device(api, options, with_threads(threads)) {}

Device::Device(const motley_backend& api, const Options& options, motley_open_options open) : api_(api) {
  motley_error error{};
  desc_ = options.described ? *options.described : enumerated(api, options.device);
  open.variant = options.variant.empty() ? nullptr : options.variant.c_str();
  motley_device* device = nullptr;
  require_ok(api.open(desc_.index, &open, &device, &error), error, "open");
  device_ = {device, {api.close}};
  queue_ = make_queue();
}

Owned<motley_queue> Device::make_queue() const {
  motley_error error{};
  motley_queue* out = nullptr;
  require_ok(api_.queue_create(raw(), &out, &error), error, "queue_create");
  return {out, {api_.queue_destroy}};
}

Owned<motley_buffer> Device::buffer(uint64_t bytes) const {
  motley_error error{};
  motley_buffer* out = nullptr;
  require_ok(api_.alloc(raw(), std::max<uint64_t>(bytes, 4), MOTLEY_USE_ACTIVATION, nullptr, &out, &error), error,
             "alloc");
  return {out, {api_.free}};
}

Owned<motley_weight> Device::pack(const HostWeight& weight) const {
  motley_error error{};
  motley_weight* out = nullptr;
  motley_weight_info info{};
  info.struct_size = sizeof info;
  const motley_weight_desc desc = weight.desc();
  require_ok(api_.pack(raw(), &desc, &out, &info, &error), error, "pack");
  return {out, {api_.weight_free}};
}

Owned<motley_kv> Device::kv(const KvShapeSpec& spec) const {
  motley_error error{};
  motley_kv* out = nullptr;
  const motley_kv_desc desc = spec.desc();
  require_ok(api_.kv_create(raw(), &desc, &out, &error), error, "kv_create");
  return {out, {api_.kv_destroy}};
}

Program Device::compile(const GraphBuilder& graph, std::vector<uint32_t> buckets) const {
  Program p;
  std::vector<motley_weight*> weights;
  for (const HostWeight& w : graph.weights) {
    p.weights.push_back(pack(w));
    weights.push_back(p.weights.back().get());
  }
  const motley_segment segment = graph.segment();
  motley_error error{};
  motley_query_result query{};
  query.struct_size = sizeof query;
  require_ok(api_.query(raw(), &segment, buckets.data(), static_cast<uint32_t>(buckets.size()), &query, &error), error,
             "query");
  if (query.support != MOTLEY_SUPPORT_NATIVE) throw Stop{std::string("query refuses a segment: ") + query.reason};
  motley_compile_options options{};
  options.struct_size = sizeof options;
  options.buckets = buckets.data(), options.bucket_count = static_cast<uint32_t>(buckets.size());
  motley_programs* programs = nullptr;
  require_ok(api_.compile(raw(), &segment, weights.data(), &options, &programs, &error), error, "compile");
  p.programs = {programs, {api_.programs_free}};
  p.values = graph.values, p.inputs = graph.inputs, p.outputs = graph.outputs, p.buckets = std::move(buckets);
  return p;
}

motley_code Device::wait(motley_event* event, motley_error* error) const {
  const motley_code code = api_.event_wait(event, kPatience_ns, error);
  api_.event_release(event);
  return code;
}

void Device::finish(motley_event* event, const char* what) const {
  motley_error error{};
  require_ok(wait(event, &error), error, what);
}

void Device::write(motley_buffer* to, const Bytes& from, uint64_t offset) const {
  if (from.empty()) return;
  motley_error error{};
  motley_event* event = nullptr;
  require_ok(api_.copy_from_host(queue(), to, offset, from.data(), from.size(), &event, &error), error,
             "copy_from_host");
  finish(event, "copy_from_host");
}

Bytes Device::read(motley_buffer* from, uint64_t bytes, uint64_t offset) const {
  Bytes out(bytes);
  if (bytes == 0) return out;
  motley_error error{};
  motley_event* event = nullptr;
  require_ok(api_.copy_to_host(queue(), out.data(), from, offset, bytes, &event, &error), error, "copy_to_host");
  finish(event, "copy_to_host");
  return out;
}

void Device::kv_import(motley_kv* kv, std::span<const int32_t> blocks, uint32_t layers, const Bytes& from) const {
  motley_error error{};
  motley_event* event = nullptr;
  require_ok(api_.kv_import(queue(), kv, blocks.data(), static_cast<uint32_t>(blocks.size()), 0, layers, from.data(),
                            from.size(), &event, &error),
             error, "kv_import");
  finish(event, "kv_import");
}

Bytes Device::kv_export(motley_kv* kv, std::span<const int32_t> blocks, uint32_t layers, uint64_t bytes) const {
  Bytes out(bytes);
  motley_error error{};
  motley_event* event = nullptr;
  require_ok(api_.kv_export(queue(), kv, blocks.data(), static_cast<uint32_t>(blocks.size()), 0, layers, out.data(),
                            out.size(), &event, &error),
             error, "kv_export");
  finish(event, "kv_export");
  return out;
}

uint32_t Device::bucket_for(const Program& program, uint32_t rows) const {
  if (has(MOTLEY_CAP_DYNAMIC_ROWS)) return 0;
  for (uint32_t i = 0; i < program.buckets.size(); ++i)
    if (program.buckets[i] >= rows) return i;
  throw Stop{"no bucket holds the rows"};
}

std::map<int32_t, Bytes> Device::run(const Program& program, const std::map<int32_t, Bytes>& inputs,
                                     const BatchData& batch, motley_kv* kv, std::optional<uint32_t> bucket) const {
  const motley_batch view = batch.view();
  const uint32_t room = program.buckets.back();
  const auto row_bytes = [&](int32_t id) {
    const motley_value& v = program.values[static_cast<size_t>(id)];
    int64_t bytes = kit::element_bytes(v.dtype);
    for (int32_t i = 1; i < v.rank; ++i) bytes *= v.dims[i];
    return static_cast<uint64_t>(bytes);
  };
  const auto rows = [&](int32_t id, bool real) -> uint64_t {
    switch (program.values[static_cast<size_t>(id)].dims[0]) {
      case MOTLEY_DIM_ROWS: return real ? view.rows : room;
      case MOTLEY_DIM_HEAD_ROWS: return real ? view.head_row_count : room;
      case MOTLEY_DIM_SLOTS: return view.slot_count;
      default: return static_cast<uint64_t>(program.values[static_cast<size_t>(id)].dims[0]);
    }
  };
  std::map<int32_t, Owned<motley_buffer>> buffers;
  std::vector<motley_binding> bindings;
  const auto bind = [&](int32_t id) {
    if (buffers.count(id)) return;
    // All bits set: NaN in F32, F16 and BF16, and an impossible id in I32.
    Bytes content(rows(id, false) * row_bytes(id), std::byte{0xff});
    const auto given = inputs.find(id);
    if (given != inputs.end()) std::copy(given->second.begin(), given->second.end(), content.begin());
    buffers[id] = buffer(content.size());
    write(buffers[id].get(), content);
    bindings.push_back({id, buffers[id].get(), 0});
  };
  for (const int32_t id : program.inputs) bind(id);
  for (const int32_t id : program.outputs) bind(id);
  motley_enqueue_args args{};
  args.struct_size = sizeof args;
  args.bucket = bucket ? *bucket : bucket_for(program, std::max(view.rows, view.head_row_count));
  args.bindings = bindings.data(), args.binding_count = static_cast<uint32_t>(bindings.size());
  args.kv = kv, args.batch = &view;
  motley_error error{};
  motley_event* event = nullptr;
  require_ok(api_.enqueue(queue(), program.programs.get(), &args, &event, &error), error, "enqueue");
  finish(event, "the program");
  std::map<int32_t, Bytes> results;
  for (const int32_t id : program.outputs) results[id] = read(buffers[id].get(), rows(id, true) * row_bytes(id));
  return results;
}

// Integer kernels round activations to 8 bits per block of 32: about 0.5 % of the norm.
Tolerance matmul_tolerance(int32_t weight_dtype) {
  switch (weight_dtype) {
    case MOTLEY_F32: return {1e-4, 1e-3};
    case MOTLEY_F16: return {2e-3, 1e-2};
    case MOTLEY_BF16: return {6e-3, 3e-2};
    default: return {1.5e-2, 8e-2};
  }
}

Tolerance attention_tolerance(int32_t kv_dtype) {
  switch (kv_dtype) {
    case MOTLEY_F32: return {1e-4, 1e-3};
    case MOTLEY_F16: return {2e-3, 1e-2};
    case MOTLEY_BF16: return {6e-3, 3e-2};
    default: return {2e-2, 1e-1};
  }
}

Judge::Judge(const motley_backend& backend, const Options& options)
    : backend_(backend), options_(options), device_(std::make_unique<Device>(backend, options, 0)) {
  Options plain;
  reference_ =
      std::make_unique<Device>(*kit::backend_table<kit::RefBackend>(MOTLEY_BACKEND_ABI, "reference", "0"), plain, 0);
}

std::unique_ptr<Device> Judge::open(uint32_t threads, bool deterministic) const {
  motley_open_options open = with_threads(threads);
  open.deterministic = deterministic ? 1 : 0;
  return std::make_unique<Device>(backend_, options_, open);
}

bool Judge::supports(std::initializer_list<int> kinds) const {
  return std::all_of(kinds.begin(), kinds.end(), [&](int kind) { return device_->desc().ops >> kind & 1; });
}

int32_t Judge::plain_dtype() const {
  for (const int32_t dtype : {MOTLEY_F32, MOTLEY_F16, MOTLEY_BF16})
    if (packs(dtype)) return dtype;
  int32_t dtype = 0;
  while (dtype < MOTLEY_DTYPE_COUNT - 1 && !packs(dtype)) ++dtype;
  return dtype;
}

void Judge::check(bool holds, const std::string& what) {
  (holds ? report_.passed : report_.failed) += 1;
  if (holds) return;
  if (report_.failures.size() < kFailuresMax) report_.failures.push_back(what);
  if (options_.line) options_.line("FAILED " + what);
}

void Judge::skip(const std::string& what) {
  if (std::find(report_.skipped.begin(), report_.skipped.end(), what) != report_.skipped.end()) return;
  report_.skipped.push_back(what);
  if (options_.line) options_.line("skipped " + what);
}

void Judge::same(const Bytes& got, const Bytes& wanted, const std::string& what) {
  check(got == wanted, what + ": bits differ");
}

void Judge::near(const Bytes& got_bytes, const Bytes& wanted_bytes, Tolerance tolerance, const std::string& what,
                 double magnitude) {
  const auto got = from_bytes<float>(got_bytes), wanted = from_bytes<float>(wanted_bytes);
  if (got.size() != wanted.size()) return check(false, what + ": sizes differ");
  double difference = 0, norm = 0, largest = 0;
  size_t where = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    // Equal infinities are equal; a NaN is never near.
    const double d = got[i] == wanted[i] ? 0.0 : std::fabs(static_cast<double>(got[i]) - wanted[i]);
    if (!(d <= largest)) largest = std::isnan(d) ? INFINITY : d, where = i;
    difference += d * d;
    if (std::isfinite(wanted[i])) norm += static_cast<double>(wanted[i]) * wanted[i];
  }
  const double size = static_cast<double>(std::max<size_t>(got.size(), 1));
  const double rms = std::max(std::sqrt(norm / size), magnitude) + 1e-12;
  const double relative = std::sqrt(difference / size) / rms;
  char text[200] = "";
  if (!(relative <= tolerance.norm) || !(largest <= tolerance.largest * rms))
    std::snprintf(text, sizeof text, ": norm error %.3g (<= %.3g), element %zu is %.7g, wanted %.7g (rms %.3g)",
                  relative, tolerance.norm, where, got.empty() ? 0.0 : static_cast<double>(got[where]),
                  wanted.empty() ? 0.0 : static_cast<double>(wanted[where]), rms);
  check(!*text, what + text);
}

void Judge::compare(const GraphBuilder& graph, const std::map<int32_t, Bytes>& inputs, const BatchData& batch,
                    Tolerance tolerance, const std::string& what, double magnitude) {
  const uint32_t rows = batch.rows();
  const std::vector<uint32_t> buckets = {rows, rows + 1, rows + 64};
  const auto wanted = reference().run(reference().compile(graph, buckets), inputs, batch);
  const Program program = device().compile(graph, buckets);
  const auto first = device().run(program, inputs, batch);
  tolerance = widened(graph, tolerance);
  for (const int32_t id : graph.outputs) {
    const bool floats = graph.values[static_cast<size_t>(id)].dtype == MOTLEY_F32;
    floats ? near(first.at(id), wanted.at(id), tolerance, what, magnitude) : same(first.at(id), wanted.at(id), what);
  }
  for (uint32_t b = 1; fixed_rows() && b < buckets.size(); ++b) {
    const auto other = device().run(program, inputs, batch, nullptr, b);
    const std::string where = what + " in bucket " + std::to_string(buckets[b]);
    for (const int32_t id : graph.outputs) {
      const bool floats = graph.values[static_cast<size_t>(id)].dtype == MOTLEY_F32;
      if (device().has(MOTLEY_CAP_ROW_INVARIANT) || !floats)
        same(other.at(id), first.at(id), where);
      else
        near(other.at(id), wanted.at(id), tolerance, where, magnitude);
    }
  }
}

// Where an op rounds; moves and ADD are exact.
Tolerance Judge::widened(const GraphBuilder& graph, Tolerance tolerance) const {
  const bool rounds = tolerance.norm > 0 && std::any_of(graph.ops.begin(), graph.ops.end(),
                                                        [](const motley_op& op) { return op.kind != MOTLEY_OP_ADD; });
  return rounds ? rounded(tolerance) : tolerance;
}

Tolerance Judge::rounded(Tolerance tolerance) const {
  if (device_->desc().result_dtype != MOTLEY_F16) return tolerance;
  return {std::max(tolerance.norm, kRoundedToF16.norm), std::max(tolerance.largest, kRoundedToF16.largest)};
}

}  // namespace motley::conformance
