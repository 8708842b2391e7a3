// The C border: handles of this plugin in, handles of the cpu plugin behind them.
#include "sim/abi.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kit/border.hpp"
#include "kit/kv.hpp"
#include "sim/catalogue.hpp"
#include "sim/handles.hpp"
#include "sim/sums.hpp"
#include "sim/work.hpp"

namespace motley::sim {
namespace {

using kit::fail;
using kit::guard;
using kit::need;
using kit::put;
using kit::sized;

// ---- devices ----

motley_code enumerate(motley_device_desc* out, uint32_t capacity, uint32_t* count, motley_error* error) {
  return guard(error, [&] {
    need(count);
    if (capacity && !out) fail(MOTLEY_INVALID_ARGUMENT, "enumerate: no room given");
    const auto total = static_cast<uint32_t>(presets().size());
    for (uint32_t i = 0; i < std::min(total, capacity); ++i) put(&out[i], Catalogue::instance().describe(i));
    *count = total;
  });
}

motley_code describe(const char* spec, motley_device_desc* out, motley_error* error) {
  return guard(error, [&] {
    need(spec, out);
    put(out, Catalogue::instance().describe(std::string(spec)));
  });
}

motley_code open(uint32_t index, const motley_open_options* options, motley_device** out, motley_error* error) {
  return guard(error, [&] {
    need(out);
    motley_open_options given{};
    if (options) {
      sized(*options, "motley_open_options");
      given = *options;
    }
    *out = handle(new Device(Catalogue::instance().spec(index), given));
  });
}

void close(motley_device* device) { delete of(device); }

motley_code stats(motley_device* raw, motley_device_stats* out, motley_error* error) {
  return guard(error, [&] {
    need(raw, out);
    Device& device = *of(raw);
    motley_device_stats s{};
    s.programs = device.programs, s.rows = device.rows, s.padded_rows = device.padded_rows;
    s.bytes_copied = device.bytes_copied, s.busy_ns = device.busy_ns, s.bytes_resident = device.budget.used();
    s.compile_ns = device.compile_ns, s.blob_hits = device.blob_hits, s.reloads = device.reloads;
    s.flops = device.flops, s.padded_flops = device.padded_flops;
    s.lost = device.lost();  // the one answer that a lost device still gives
    put(out, s);
  });
}

motley_code queue_create(motley_device* device, motley_queue** out, motley_error* error) {
  return guard(error, [&] {
    need(device, out);
    of(device)->require_alive();
    *out = handle(new Queue(of(device)));
  });
}

void queue_destroy(motley_queue* queue) { delete of(queue); }

// ---- memory ----

void check_allocation(const Device& device, uint64_t bytes, const char* what) {
  const uint64_t most = device.spec.rules.allocation_bytes;
  if (most == 0 || bytes <= most) return;
  fail(MOTLEY_RESOURCE_EXHAUSTED, "%s of %llu bytes: this device maps no more than %llu at once", what,
       static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(most));
}

motley_code alloc(motley_device* raw, uint64_t bytes, int32_t use, void* import, motley_buffer** out,
                  motley_error* error) {
  return guard(error, [&] {
    need(raw, out);
    Device& device = *of(raw);
    device.require_alive();
    auto buffer = std::make_unique<Buffer>();
    buffer->device = &device;
    buffer->imported = import != nullptr;
    buffer->staging = !import && use == MOTLEY_USE_STAGING;
    // Staging is the host's memory, not the device's, and so is what is imported, by whole pages.
    if (!buffer->of_host()) {
      check_allocation(device, bytes, "a buffer");
      buffer->share = kit::Share(device.budget, kit::page_up(bytes), "a buffer");
    }
    motley_buffer* inner_buffer = nullptr;
    call([&](motley_error* e) {
      return inner().alloc(device.inner_device.get(), bytes, use, import, &inner_buffer, e);
    });
    buffer->inner = {inner_buffer, inner().free};
    buffer->data = static_cast<std::byte*>(inner().map(inner_buffer));
    buffer->bytes = bytes;
    buffer->id = device.next_buffer();
    *out = handle(buffer.release());
  });
}

void free_buffer(motley_buffer* buffer) { delete of(buffer); }
void* map(motley_buffer* buffer) { return buffer && of(buffer)->staging ? of(buffer)->data : nullptr; }

motley_code copy(motley_queue* queue, motley_buffer* dst, motley_buffer* src, const motley_region* regions,
                 uint32_t count, motley_event** event, motley_error* error) {
  return guard(error, [&] {
    need(queue, dst, src);
    if (count > kit::kRegionsMax || (count && !regions)) fail(MOTLEY_INVALID_ARGUMENT, "copy: %u regions", count);
    submit(*of(queue), copy_work(*of(queue), *of(dst), *of(src), {regions, regions + count}), event);
  });
}

motley_code copy_to_host(motley_queue* queue, void* dst, motley_buffer* src, uint64_t offset, uint64_t bytes,
                         motley_event** event, motley_error* error) {
  return guard(error, [&] {
    need(queue, dst, src);
    submit(*of(queue), to_host_work(*of(queue), dst, *of(src), offset, bytes), event);
  });
}

motley_code copy_from_host(motley_queue* queue, motley_buffer* dst, uint64_t offset, const void* src, uint64_t bytes,
                           motley_event** event, motley_error* error) {
  return guard(error, [&] {
    need(queue, dst, src);
    submit(*of(queue), from_host_work(*of(queue), *of(dst), offset, src, bytes), event);
  });
}

// ---- weights ----

// A part of all, by ranges; 1 without ranges.
double kept_part(const motley_range* ranges, uint32_t count, int64_t all) {
  if (count == 0 || all <= 0) return 1;
  int64_t kept = 0;
  for (uint32_t i = 0; i < count; ++i) kept += ranges[i].end - ranges[i].begin;
  return static_cast<double>(kept) / static_cast<double>(all);
}

// Of a matrix by whose products a device sums in F16; beside the whole one, which is what it is said to hold.
void pack_parts(const Device& device, motley_weight_desc desc, Weight* weight) {
  for (const std::vector<motley_range>& columns : column_parts(desc)) {
    desc.col_ranges = columns.data(), desc.col_range_count = static_cast<uint32_t>(columns.size());
    motley_weight* part = nullptr;
    motley_weight_info info{};
    info.struct_size = sizeof info;
    call([&](motley_error* e) { return inner().pack(device.inner_device.get(), &desc, &part, &info, e); });
    weight->parts.push_back({part, inner().weight_free});
  }
}

motley_code pack(motley_device* raw, const motley_weight_desc* desc, motley_weight** out, motley_weight_info* info,
                 motley_error* error) {
  return guard(error, [&] {
    need(raw, desc, out);
    sized(*desc, "motley_weight_desc");
    Device& device = *of(raw);
    device.packing();
    auto weight = std::make_unique<Weight>();
    weight->device = &device;
    motley_weight_info packed{};
    const auto pack_inner = [&](const motley_weight_desc& from) {
      motley_weight* inner_weight = nullptr;
      packed = {};
      packed.struct_size = sizeof packed;
      call([&](motley_error* e) { return inner().pack(device.inner_device.get(), &from, &inner_weight, &packed, e); });
      weight->inner = {inner_weight, inner().weight_free};
    };
    check_format(device.spec, *desc);
    motley_weight_desc own = *desc;
    if (device.spec.rules.weight_formats != 0 && desc->format != desc->dtype && desc->uses != MOTLEY_WEIGHT_VECTOR) {
      weight->source = converted(*desc);
      own.dtype = own.format, own.data = weight->source.data(), own.bytes = weight->source.size();
    }
    pack_inner(own);
    if (packed.aliases_source && weight->source.empty()) {  // separate memory: the host may let go of the source
      const auto* data = static_cast<const std::byte*>(desc->data);
      weight->source.assign(data, data + desc->bytes);
      own.data = weight->source.data();
      pack_inner(own);
    }
    if (device.spec.rules.f16_sums && (desc->uses & MOTLEY_WEIGHT_MATMUL) && desc->experts == 1) {
      if (weight->source.empty()) {  // parts may use it
        const auto* data = static_cast<const std::byte*>(desc->data);
        weight->source.assign(data, data + desc->bytes);
        own.data = weight->source.data();
      }
      pack_parts(device, own, weight.get());
    } else if (!packed.aliases_source) {
      weight->source = {};
    }
    check_allocation(device, packed.bytes, "a weight");
    weight->share = kit::Share(device.budget, packed.bytes, "a weight");
    const double kept = kept_part(desc->expert_ranges, desc->expert_range_count, desc->experts);
    weight->facts = {packed.bytes, packed.format,
                     std::max<int64_t>(1, std::llround(static_cast<double>(desc->experts) * kept)), kept};
    packed.aliases_source = 0;
    if (info) put(info, packed);
    *out = handle(weight.release());
  });
}

void weight_free(motley_weight* weight) { delete of(weight); }

// ---- KV ----

motley_code kv_create(motley_device* raw, const motley_kv_desc* desc, motley_kv** out, motley_error* error) {
  return guard(error, [&] {
    need(raw, desc, out);
    sized(*desc, "motley_kv_desc");
    Device& device = *of(raw);
    device.require_alive();
    if (!device.spec.rules.paged_attention) fail(MOTLEY_UNIMPLEMENTED, "this device keeps no KV");
    auto kv = std::make_unique<Kv>(&device, kit::check_kv(*desc));
    check_allocation(device, kv->shape.bytes_total, "a KV pool");
    kv->share = kit::Share(device.budget, kv->shape.bytes_total, "a KV pool");
    motley_kv* inner_kv = nullptr;
    call([&](motley_error* e) { return inner().kv_create(device.inner_device.get(), desc, &inner_kv, e); });
    kv->inner = {inner_kv, inner().kv_destroy};
    *out = handle(kv.release());
  });
}

void kv_destroy(motley_kv* kv) { delete of(kv); }

motley_code kv_layout(motley_device* device, const motley_kv_desc* desc, motley_kv_layout* out, motley_error* error) {
  return guard(error, [&] {
    need(device, out);
    of(device)->require_alive();
    if (!of(device)->spec.rules.paged_attention) fail(MOTLEY_UNIMPLEMENTED, "this device keeps no KV");
    call([&](motley_error* e) { return inner().kv_layout(of(device)->inner_device.get(), desc, out, e); });
  });
}

motley_code kv_export(motley_queue* queue, motley_kv* kv, const int32_t* blocks, uint32_t count, uint32_t begin,
                      uint32_t end, void* dst, uint64_t bytes, motley_event** event, motley_error* error) {
  return guard(error, [&] {
    need(queue, kv, dst);
    submit(*of(queue), kv_export_work(*of(queue), *of(kv), {blocks, count, begin, end}, dst, bytes), event);
  });
}

motley_code kv_import(motley_queue* queue, motley_kv* kv, const int32_t* blocks, uint32_t count, uint32_t begin,
                      uint32_t end, const void* src, uint64_t bytes, motley_event** event, motley_error* error) {
  return guard(error, [&] {
    need(queue, kv, src);
    submit(*of(queue), kv_import_work(*of(queue), *of(kv), {blocks, count, begin, end}, src, bytes), event);
  });
}

// ---- programs ----

// The segment that the cpu plugin is to run.
class InnerSegment {
 public:
  InnerSegment(const Rules& rules, const motley_segment& segment) : view_(&segment) {
    if (rules.f16_sums) view_ = &summed_.emplace(segment).view();
    if (rules.f16_results) view_ = &rounded_.emplace(*view_).view();
  }
  const motley_segment& view() const { return *view_; }
  // The cpu plugin's weights behind those of the segment itself.
  void add_parts(motley_weight* const* weights, std::vector<motley_weight*>* to) const {
    if (!summed_) return;
    for (const SummedSegment::Piece& piece : summed_->pieces()) {
      motley_weight* whole = weights[piece.weight];
      if (!whole || piece.part >= of(whole)->parts.size())
        fail(MOTLEY_INVALID_ARGUMENT, "weight %d is none of a product of these columns", piece.weight);
      to->push_back(of(whole)->parts[piece.part].get());
    }
  }

 private:
  std::optional<SummedSegment> summed_;
  std::optional<RoundedSegment> rounded_;
  const motley_segment* view_;
};

motley_code query(motley_device* raw, const motley_segment* segment, const uint32_t* buckets, uint32_t count,
                  motley_query_result* out, motley_error* error) {
  return guard(error, [&] {
    need(raw, segment, out);
    const Device& device = *of(raw);
    of(raw)->require_alive();
    const Rules& rules = device.spec.rules;
    motley_query_result result{};
    result.struct_size = sizeof result;
    const auto ask = [&](const motley_segment& about) {
      call([&](motley_error* e) {
        return inner().query(device.inner_device.get(), &about, buckets, count, &result, e);
      });
    };
    kit::CheckedSegment checked;
    uint32_t bad_op = 0;
    try {
      checked = kit::check_segment(*segment, &bad_op);
    } catch (const kit::Error&) {  // broken, which the cpu plugin says as well
      ask(*segment);
      return put(out, result);
    }
    ask(InnerSegment(rules, *segment).view());
    try {
      check_ops(rules, checked.plan, &bad_op);
      result.compile_ns = static_cast<uint64_t>(compile_seconds(rules, checked.plan) * 1e9 * count);
      result.program_bytes = rules.program_bytes * count;
    } catch (const kit::Error& e) {
      result.support = bad_op > 0 ? MOTLEY_SUPPORT_CUT : MOTLEY_SUPPORT_NO;
      result.cut_before = bad_op;
      std::snprintf(result.reason, sizeof result.reason, "%s", e.what());
    }
    put(out, result);
  });
}

// How long compiling takes, or loading a blob that is checked here.
double compile_seconds_of(Device& device, const kit::Plan& plan, const motley_segment& segment,
                          const motley_compile_options& options) {
  const Rules& rules = device.spec.rules;
  const double seconds = compile_seconds(rules, plan) * options.bucket_count;
  if (!options.blob) return seconds;
  check_blob({static_cast<const std::byte*>(options.blob), options.blob_bytes}, device.spec, segment,
             {options.buckets, options.bucket_count});
  device.blob_hits += options.bucket_count;
  return seconds * rules.blob_part;
}

// What its programs need for themselves, whichever runs: as query() says of the largest bucket.
void take_workspace(Device& device, const motley_segment& run, const motley_compile_options& options) {
  motley_query_result asked{};
  asked.struct_size = sizeof asked;
  call([&](motley_error* e) {
    return inner().query(device.inner_device.get(), &run, options.buckets, options.bucket_count, &asked, e);
  });
  device.take_workspace(asked.workspace_bytes);
}

motley_code compile(motley_device* raw, const motley_segment* segment, motley_weight* const* weights,
                    const motley_compile_options* options, motley_programs** out, motley_error* error) {
  return guard(error, [&] {
    need(raw, segment, options, out);
    sized(*options, "motley_compile_options");
    Device& device = *of(raw);
    device.require_alive();
    uint32_t bad_op = 0;
    kit::CheckedSegment checked = kit::check_segment(*segment, &bad_op);
    check_ops(device.spec.rules, checked.plan, &bad_op);
    if (segment->weight_count && !weights) fail(MOTLEY_INVALID_ARGUMENT, "the weights are null");
    std::vector<motley_weight*> inner_weights(segment->weight_count, nullptr);
    std::vector<WeightFacts> facts(segment->weight_count);
    for (uint32_t i = 0; i < segment->weight_count; ++i) {
      if (!weights[i]) continue;
      const Weight& weight = *of(weights[i]);
      if (weight.device != &device) fail(MOTLEY_INVALID_ARGUMENT, "weight %u is of another device", i);
      inner_weights[i] = weight.inner.get(), facts[i] = weight.facts;
    }
    motley_programs* compiled = nullptr;
    const InnerSegment computed(device.spec.rules, *segment);
    const motley_segment& run = computed.view();
    computed.add_parts(weights, &inner_weights);
    motley_compile_options without_blob = *options;
    without_blob.blob = nullptr, without_blob.blob_bytes = 0;
    call([&](motley_error* e) {
      return inner().compile(device.inner_device.get(), &run, inner_weights.data(), &without_blob, &compiled, e);
    });
    Owned<motley_programs> owned{compiled, inner().programs_free};
    take_workspace(device, run, *options);
    const std::span buckets(options->buckets, options->bucket_count);
    kit::Share share(device.budget, device.spec.rules.program_bytes * buckets.size(), "programs");
    const double seconds = compile_seconds_of(device, checked.plan, *segment, *options);
    const int64_t ready_ns = device.compile(seconds, buckets);
    auto programs = std::make_unique<Programs>(&device, std::move(owned), std::move(checked), facts,
                                               std::vector<uint32_t>(buckets.begin(), buckets.end()));
    programs->ready_ns = ready_ns;
    programs->share = std::move(share);
    programs->blob = make_blob(device.spec, *segment, buckets);
    *out = handle(programs.release());
  });
}

motley_code export_programs(motley_programs* programs, void* dst, uint64_t* bytes, motley_error* error) {
  return guard(error, [&] {
    need(programs, bytes);
    of(programs)->device->require_alive();
    const std::vector<std::byte>& blob = of(programs)->blob;
    if (dst && *bytes < blob.size())
      fail(MOTLEY_OUT_OF_RANGE, "export_programs: a blob of %zu bytes into %llu", blob.size(),
           static_cast<unsigned long long>(*bytes));
    if (dst) std::memcpy(dst, blob.data(), blob.size());
    *bytes = blob.size();
  });
}

void programs_free(motley_programs* programs) { delete of(programs); }

motley_code enqueue(motley_queue* queue, motley_programs* programs, const motley_enqueue_args* args,
                    motley_event** event, motley_error* error) {
  return guard(error, [&] {
    need(queue, programs, args);
    sized(*args, "motley_enqueue_args");
    need(args->batch);
    submit(*of(queue), program_work(*of(queue), *of(programs), *args), event);
  });
}

// ---- events ----

// The entries that kit has for events.
const motley_backend& kit_events() {
  static const motley_backend entries = [] {
    motley_backend t{};
    kit::set_event_entries(&t);
    return t;
  }();
  return entries;
}

const Event& state_of(motley_event* event) { return static_cast<const Event&>(*event->state); }

void note_seen(motley_event* event) {
  if (event->state->fired()) state_of(event).progress->see(state_of(event).sequence);
}

motley_code event_status(motley_event* event, int32_t* fired, motley_error* error) {
  const motley_code code = kit_events().event_status(event, fired, error);
  if (event && fired && *fired) note_seen(event);
  return code;
}

motley_code event_wait(motley_event* event, uint64_t timeout_ns, motley_error* error) {
  const motley_code code = kit_events().event_wait(event, timeout_ns, error);
  if (event) note_seen(event);
  return code;
}

motley_code fence(motley_queue* queue, motley_event* event, motley_error* error) {
  return guard(error, [&] {
    need(queue, event);
    of(queue)->fence(std::static_pointer_cast<const Event>(event->state));
  });
}

motley_backend make_table() {
  motley_backend t{};
  t.struct_size = sizeof t, t.abi = MOTLEY_BACKEND_ABI, t.name = "sim", t.version = "0.1.0";
  t.enumerate = enumerate, t.describe = describe, t.open = open, t.close = close, t.stats = stats;
  t.queue_create = queue_create, t.queue_destroy = queue_destroy;
  t.alloc = alloc, t.free = free_buffer, t.map = map;
  t.copy = copy, t.copy_to_host = copy_to_host, t.copy_from_host = copy_from_host;
  t.pack = pack, t.weight_free = weight_free;
  t.kv_create = kv_create, t.kv_destroy = kv_destroy, t.kv_layout = kv_layout;
  t.kv_export = kv_export, t.kv_import = kv_import;
  t.query = query, t.compile = compile, t.programs_free = programs_free, t.export_programs = export_programs;
  t.enqueue = enqueue;
  kit::set_event_entries(&t);
  t.event_status = event_status, t.event_wait = event_wait, t.fence = fence;
  return t;  // no peers: the collectives stay null
}

}  // namespace

const motley_backend& table() {
  static const motley_backend t = make_table();
  return t;
}

}  // namespace motley::sim
