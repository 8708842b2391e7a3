// Queues, events, copies, and refusals.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <functional>

#include "harness.hpp"
#include "kit/kit.hpp"

namespace motley::conformance {

namespace {

constexpr int64_t kR = MOTLEY_DIM_ROWS;

// x += y, in place: a chain whose result shows how often and in which order it ran.
struct Adder {
  explicit Adder(Device& device, uint32_t rows_in = 64, int64_t width_in = 256) : rows(rows_in), width(width_in) {
    x = graph.input(MOTLEY_F32, {kR, width}), y = graph.input(MOTLEY_F32, {kR, width});
    graph.outputs.push_back(x);
    graph.op(MOTLEY_OP_ADD, {x, y}, {x});
    program = device.compile(graph, {rows});
    batch = plain_batch(rows);
    view = batch.view();
  }
  uint64_t bytes() const { return uint64_t{rows} * static_cast<uint64_t>(width) * 4; }
  motley_enqueue_args args(motley_buffer* a, motley_buffer* b) {
    bindings = {{x, a, 0}, {y, b, 0}};
    motley_enqueue_args args{};
    args.struct_size = sizeof args;
    args.bindings = bindings.data(), args.binding_count = 2, args.batch = &view;
    return args;
  }
  uint32_t rows;
  int64_t width;
  GraphBuilder graph;
  int32_t x, y;
  Program program;
  BatchData batch;
  motley_batch view;
  std::vector<motley_binding> bindings;
};

Bytes filled(uint64_t bytes, float value) { return to_bytes(std::vector<float>(bytes / 4, value)); }

void in_order(Judge& judge) {
  Device& d = judge.device();
  Adder adder(d);
  auto a = d.buffer(adder.bytes()), b = d.buffer(adder.bytes());
  judge.check(d.read(a.get(), adder.bytes()) == Bytes(adder.bytes(), std::byte{0}), "new memory is zero");
  d.write(b.get(), filled(adder.bytes(), 1));
  const auto args = adder.args(a.get(), b.get());
  motley_error error{};
  motley_event* last = nullptr;
  for (int i = 0; i < 200; ++i) {  // doubles as a test of depth: a full queue is said so, not blocked on
    motley_event* event = nullptr;
    const motley_code code = d.api().enqueue(d.queue(), adder.program.programs.get(), &args, &event, &error);
    if (code == MOTLEY_RESOURCE_EXHAUSTED && last) {
      d.finish(last, "the program");
      last = nullptr;
      --i;
      continue;
    }
    require_ok(code, error, "enqueue");
    if (last) d.api().event_release(last);  // pending or not
    last = event;
  }
  d.finish(last, "the last program");
  judge.same(d.read(a.get(), adder.bytes()), filled(adder.bytes(), 200), "200 programs in order");
}

void full_queue(Judge& judge) {
  Device& d = judge.device();
  Adder adder(d, 128, 256);
  auto a = d.buffer(adder.bytes()), b = d.buffer(adder.bytes());
  const auto args = adder.args(a.get(), b.get());
  motley_error error{};
  motley_code code = MOTLEY_OK;
  // 16 queues' worth: a queue that takes more than it says is never full.
  for (uint32_t i = 0; i < 16 * d.desc().queue_depth && code == MOTLEY_OK; ++i)
    code = d.api().enqueue(d.queue(), adder.program.programs.get(), &args, nullptr, &error);
  judge.check(code == MOTLEY_OK || code == MOTLEY_RESOURCE_EXHAUSTED, "a full queue answers RESOURCE_EXHAUSTED");
  d.read(a.get(), 4);  // everything has run
  code = d.api().enqueue(d.queue(), adder.program.programs.get(), &args, nullptr, &error);
  judge.check(code == MOTLEY_OK, "a drained queue takes work again");
  d.read(a.get(), 4);
}

void fenced(Judge& judge) {
  Device& d = judge.device();
  if (d.desc().queues_max < 2) return judge.skip("two queues");
  Adder adder(d);
  auto a = d.buffer(adder.bytes()), b = d.buffer(adder.bytes()), c = d.buffer(adder.bytes());
  auto second = d.make_queue();
  motley_error error{};
  bool right = true;
  const uint32_t count = std::min(5u, d.desc().queue_depth);
  for (int round = 0; round < 20; ++round) {
    d.write(a.get(), filled(adder.bytes(), 1));
    d.write(b.get(), filled(adder.bytes(), 2));
    d.write(c.get(), filled(adder.bytes(), 0));
    const auto args = adder.args(a.get(), b.get());
    motley_event *first = nullptr, *done = nullptr;
    for (uint32_t i = 0; i < count; ++i)
      require_ok(
          d.api().enqueue(d.queue(), adder.program.programs.get(), &args, i + 1 == count ? &first : nullptr, &error),
          error, "enqueue");
    require_ok(d.api().fence(second.get(), first, &error), error, "fence");
    d.api().event_release(first);
    const motley_region all{0, 0, adder.bytes()};
    require_ok(d.api().copy(second.get(), c.get(), a.get(), &all, 1, &done, &error), error, "copy");
    d.finish(done, "the copy behind the fence");
    right = right && d.read(c.get(), adder.bytes()) == filled(adder.bytes(), static_cast<float>(1 + 2 * count));
  }
  judge.check(right, "a fence orders two queues");
}

void events(Judge& judge) {
  Device& d = judge.device();
  Adder adder(d, 512, 1024);
  auto a = d.buffer(adder.bytes()), b = d.buffer(adder.bytes());
  const auto args = adder.args(a.get(), b.get());
  motley_error error{};
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  motley_event* event = nullptr;
  const uint32_t count = std::min(8u, d.desc().queue_depth);
  for (uint32_t i = 0; i < count; ++i)
    require_ok(
        d.api().enqueue(d.queue(), adder.program.programs.get(), &args, i + 1 == count ? &event : nullptr, &error),
        error, "enqueue");
  const motley_code early = d.api().event_wait(event, 0, &error);
  judge.check(early == MOTLEY_OK || early == MOTLEY_DEADLINE_EXCEEDED, "event_wait with no patience answers at once");
  require_ok(d.api().event_notify(event, fd, &error), error, "event_notify");
  pollfd waiting{fd, POLLIN, 0};
  judge.check(poll(&waiting, 1, static_cast<int>(kPatience_ns / 1'000'000)) == 1, "the eventfd rings");
  uint64_t rings = 0;
  judge.check(read(fd, &rings, sizeof rings) == sizeof rings && rings == 1, "it rings once");
  int32_t fired = 0;
  judge.check(d.api().event_status(event, &fired, &error) == MOTLEY_OK && fired == 1, "event_status after the ring");
  judge.check(d.api().event_wait(event, 0, &error) == MOTLEY_OK, "a fired event waits no more");
  require_ok(d.api().event_notify(event, fd, &error), error, "event_notify");
  judge.check(read(fd, &rings, sizeof rings) == sizeof rings && rings == 1, "a late notify rings at once");
  d.api().event_release(event);
  close(fd);
}

void copies(Judge& judge) {
  Device& d = judge.device();
  Random random(judge.options().seed);
  auto a = d.buffer(4096), b = d.buffer(8192);
  Bytes content(4096);
  for (auto& byte : content) byte = static_cast<std::byte>(random.bits());
  d.write(a.get(), content);
  const std::vector<motley_region> regions = {{100, 0, 50}, {8000, 4000, 96}, {0, 33, 1}, {500, 0, 4000}, {4600, 9, 0}};
  motley_error error{};
  motley_event* event = nullptr;
  require_ok(
      d.api().copy(d.queue(), b.get(), a.get(), regions.data(), static_cast<uint32_t>(regions.size()), &event, &error),
      error, "copy");
  d.finish(event, "copy");
  Bytes wanted(8192, std::byte{0});
  for (const auto& r : regions)
    std::copy_n(content.begin() + static_cast<long>(r.src_offset), r.bytes,
                wanted.begin() + static_cast<long>(r.dst_offset));
  judge.same(d.read(b.get(), 8192), wanted, "copy of regions");
  judge.same(d.read(b.get(), 7, 101), Bytes(wanted.begin() + 101, wanted.begin() + 108), "a read inside");
  if (d.has(MOTLEY_CAP_HOST_MEMORY)) {
    const auto* mapped = static_cast<const std::byte*>(d.api().map(b.get()));
    judge.check(mapped && std::equal(wanted.begin(), wanted.end(), mapped), "map shows the memory");
  }
}

void statistics(Judge& judge) {
  Device& d = judge.device();
  motley_error error{};
  motley_device_stats before{}, after{};
  before.struct_size = after.struct_size = sizeof before;
  require_ok(d.api().stats(d.raw(), &before, &error), error, "stats");
  Adder adder(d, 7, 16);
  auto a = d.buffer(1 << 20), b = d.buffer(1 << 20);
  const auto args = adder.args(a.get(), b.get());
  motley_event* event = nullptr;
  require_ok(d.api().enqueue(d.queue(), adder.program.programs.get(), &args, &event, &error), error, "enqueue");
  d.finish(event, "the program");
  require_ok(d.api().stats(d.raw(), &after, &error), error, "stats");
  judge.check(after.programs == before.programs + 1 && after.rows == before.rows + 7 &&
                  after.padded_rows >= before.padded_rows + 7,
              "stats count programs and rows");
  judge.check(after.busy_ns > before.busy_ns && after.lost == 0, "stats count busy time");
  judge.check(after.bytes_resident >= before.bytes_resident + (2 << 20), "stats count memory");
  // A device of fixed rows runs the padding, and counts it.
  BatchData three = plain_batch(3);
  motley_batch view = three.view();
  auto padded = adder.args(a.get(), b.get());
  padded.batch = &view;
  require_ok(d.api().enqueue(d.queue(), adder.program.programs.get(), &padded, &event, &error), error, "enqueue");
  d.finish(event, "the program");
  before = after;
  require_ok(d.api().stats(d.raw(), &after, &error), error, "stats");
  const uint64_t run = after.padded_rows - before.padded_rows;
  judge.check(after.rows == before.rows + 3 && run == (judge.fixed_rows() ? 7u : 3u),
              "stats count padding that is run");
}

void counts_of_arithmetic(Judge& judge) {
  Device& d = judge.device();
  Random random(judge.options().seed);
  constexpr int64_t kIn = 64, kOut = 24;
  GraphBuilder g;
  const int32_t x = g.input(MOTLEY_F32, {kR, kIn}), y = g.output(MOTLEY_F32, {kR, kOut});
  g.op(MOTLEY_OP_MATMUL, {x}, {y},
       {g.weight(random_weight(random, judge.plain_dtype(), MOTLEY_WEIGHT_MATMUL, kOut, kIn))});
  const Program program = d.compile(g, {8});
  motley_error error{};
  motley_device_stats before{}, after{};
  before.struct_size = after.struct_size = sizeof before;
  require_ok(d.api().stats(d.raw(), &before, &error), error, "stats");
  d.run(program, {{x, to_bytes(random.normals(3 * kIn))}}, plain_batch(3));
  require_ok(d.api().stats(d.raw(), &after, &error), error, "stats");
  const double row = 2.0 * kIn * kOut;
  judge.check(after.flops - before.flops == 3 * row, "stats count the arithmetic of real rows");
  judge.check(after.padded_flops - before.padded_flops == (judge.fixed_rows() ? 8 : 3) * row,
              "stats count the arithmetic that is run");
}

int64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// Enqueues `count` of the adder's programs and answers their times; waits only for the last one.
std::vector<motley_event_times> timed_run(Device& d, Adder& adder, size_t count) {
  auto a = d.buffer(adder.bytes()), b = d.buffer(adder.bytes());
  const auto args = adder.args(a.get(), b.get());
  motley_error error{};
  std::vector<Owned<motley_event>> events;
  for (size_t i = 0; i < count; ++i) {
    motley_event* event = nullptr;
    require_ok(d.api().enqueue(d.queue(), adder.program.programs.get(), &args, &event, &error), error, "enqueue");
    events.push_back({event, {d.api().event_release}});
  }
  require_ok(d.api().event_wait(events.back().get(), kPatience_ns, &error), error, "the last program");
  std::vector<motley_event_times> times(count);
  for (size_t i = 0; i < count; ++i) {
    times[i].struct_size = sizeof times[i];
    require_ok(d.api().event_times(events[i].get(), &times[i], &error), error, "event_times");
  }
  return times;
}

bool in_order(const std::vector<motley_event_times>& times) {
  for (size_t i = 0; i < times.size(); ++i)
    if (times[i].end_ns < times[i].start_ns || (i && times[i].start_ns < times[i - 1].end_ns)) return false;
  return true;
}

void event_times(Judge& judge) {
  Device& d = judge.device();
  if (!d.api().event_times) return judge.skip("times of events");
  Adder adder(d);
  const int64_t before = monotonic_ns();
  const auto times = timed_run(d, adder, std::min<uint32_t>(4, d.desc().queue_depth));
  const int64_t after = monotonic_ns();
  judge.check(in_order(times), "work of one queue runs in order and one at a time");
  judge.check(times.front().start_ns >= before && times.back().end_ns <= after,
              "times are of the monotonic clock, between the enqueue and the wait's end");
}

void virtual_time(Judge& judge) {
  static constexpr int64_t kNow_ns = 123'456'789'000;
  motley_open_options options{};
  options.struct_size = sizeof options;
  options.virtual_now = [](void*) { return kNow_ns; };
  Device& d = judge.device();
  if (!d.desc().simulated) {
    motley_device* device = nullptr;
    motley_error error{};
    const motley_code code = d.api().open(judge.device().desc().index, &options, &device, &error);
    const Owned<motley_device> opened{device, {d.api().close}};
    judge.check(code == MOTLEY_UNIMPLEMENTED && error.text[0], "virtual time of a device that is not simulated");
    return;
  }
  if (!judge.api().event_times) return judge.check(false, "a simulated device has no times of events");
  std::vector<std::vector<motley_event_times>> runs;
  for (int run = 0; run < 2; ++run) {
    Device simulated(judge.api(), judge.options(), options);
    Adder adder(simulated);
    runs.push_back(timed_run(simulated, adder, std::min<uint32_t>(4, d.desc().queue_depth)));
  }
  judge.check(in_order(runs[0]) && runs[0].front().start_ns >= kNow_ns, "virtual time runs in order from its now");
  judge.check(runs[0].front().end_ns > runs[0].front().start_ns, "work takes virtual time");
  bool equal = true;
  for (size_t i = 0; i < runs[0].size(); ++i)
    equal = equal && runs[0][i].start_ns == runs[1][i].start_ns && runs[0][i].end_ns == runs[1][i].end_ns;
  judge.check(equal, "virtual time replays to the nanosecond");
}

// ---- refusals ----

void refused(Judge& judge, motley_code code, const motley_error& error, const std::string& what) {
  judge.check(code != MOTLEY_OK && error.code == code && error.text[0] != 0, what + " is refused with a reason");
}

void bad_segment(Judge& judge, const std::string& what, const std::function<void(GraphBuilder&)>& break_it) {
  Device& d = judge.device();
  GraphBuilder g;
  const int32_t x = g.input(MOTLEY_F32, {kR, 64}), middle = g.value(MOTLEY_F32, {kR, 64}),
                out = g.output(MOTLEY_F32, {kR, 64});
  g.op(MOTLEY_OP_ADD, {x, x}, {middle});
  g.op(MOTLEY_OP_MUL, {middle, x}, {out});
  break_it(g);
  const motley_segment segment = g.segment();
  const uint32_t bucket = 4;
  motley_query_result result{};
  result.struct_size = sizeof result;
  motley_error error{};
  const motley_code asked = d.api().query(d.raw(), &segment, &bucket, 1, &result, &error);
  judge.check(asked != MOTLEY_OK || (result.support != MOTLEY_SUPPORT_NATIVE && result.reason[0]),
              what + ": query says no");
  motley_compile_options options{};
  options.struct_size = sizeof options;
  options.buckets = &bucket, options.bucket_count = 1;
  motley_programs* programs = nullptr;
  error = {};
  const motley_code code = d.api().compile(d.raw(), &segment, nullptr, &options, &programs, &error);
  refused(judge, code, error, what + ": compile");
  judge.check(programs == nullptr, what + ": the output is untouched");
}

void bad_segments(Judge& judge) {
  bad_segment(judge, "an unknown op", [](GraphBuilder& g) { g.ops[0].kind = 99; });
  bad_segment(judge, "a negative op", [](GraphBuilder& g) { g.ops[0].kind = -1; });
  bad_segment(judge, "ALL_REDUCE", [](GraphBuilder& g) { g.ops[0].kind = MOTLEY_OP_ALL_REDUCE; });
  bad_segment(judge, "an input id beyond", [](GraphBuilder& g) { g.ops[0].in[0] = 3; });
  bad_segment(judge, "an output id below", [](GraphBuilder& g) { g.ops[1].out[0] = -7; });
  bad_segment(judge, "a missing input", [](GraphBuilder& g) { g.ops[0].in[1] = MOTLEY_NONE; });
  bad_segment(judge, "too many inputs", [](GraphBuilder& g) { g.ops[0].in[2] = 0; });
  bad_segment(judge, "a missing output", [](GraphBuilder& g) { g.ops[1].out[0] = MOTLEY_NONE; });
  bad_segment(judge, "an unasked weight", [](GraphBuilder& g) { g.ops[0].weight[0] = 0; });
  bad_segment(judge, "a read before the write", [](GraphBuilder& g) { std::swap(g.ops[0], g.ops[1]); });
  bad_segment(judge, "a second write", [](GraphBuilder& g) { g.ops.push_back(g.ops[1]); });
  bad_segment(judge, "a written input", [](GraphBuilder& g) { g.ops[1].out[0] = 0; });
  bad_segment(judge, "an output never written", [](GraphBuilder& g) { g.ops.pop_back(); });
  bad_segment(judge, "unlike widths", [](GraphBuilder& g) { g.values[1].dims[1] = 65; });
  bad_segment(judge, "unlike dtypes", [](GraphBuilder& g) { g.values[1].dtype = MOTLEY_F16; });
  bad_segment(judge, "an unknown dtype", [](GraphBuilder& g) { g.values[1].dtype = 77; });
  bad_segment(judge, "rank 0", [](GraphBuilder& g) { g.values[1].rank = 0; });
  bad_segment(judge, "rank 5", [](GraphBuilder& g) { g.values[1].rank = 5; });
  bad_segment(judge, "a zero dimension", [](GraphBuilder& g) { g.values[1].dims[1] = 0; });
  bad_segment(judge, "a symbolic inner dimension", [](GraphBuilder& g) { g.values[1].dims[1] = -1; });
  bad_segment(judge, "a huge value", [](GraphBuilder& g) {
    g.values[1].rank = 4;
    for (int i = 1; i < 4; ++i) g.values[1].dims[i] = int64_t{1} << 30;
  });
  bad_segment(judge, "an input named twice", [](GraphBuilder& g) { g.inputs.push_back(0); });
  bad_segment(judge, "an unknown output", [](GraphBuilder& g) { g.outputs.push_back(1000); });
  bad_segment(judge, "a norm whose group does not fit", [](GraphBuilder& g) {
    auto& op = g.op(MOTLEY_OP_RMSNORM, {2}, {g.output(MOTLEY_F32, {kR, 64})}, {g.weight(vector_weight({1, 2, 3}))});
    op.attr.norm = {1e-5f, 3};
  });
  bad_segment(judge, "a matmul without its weight", [](GraphBuilder& g) {
    g.op(MOTLEY_OP_MATMUL, {2}, {g.output(MOTLEY_F32, {kR, 9})});
  });
  bad_segment(judge, "heads that do not share", [](GraphBuilder& g) {
    g.op(MOTLEY_OP_PAGED_ATTENTION, {2}, {g.output(MOTLEY_F32, {kR, 64})}).attr.attention = {0, 4, 3, 16, 1, 0, 0};
  });
}

void bad_expert_segments(Judge& judge) {
  const auto grouped = [](GraphBuilder& g, std::vector<int64_t> x, std::vector<int64_t> ids, std::vector<int64_t> out) {
    const int32_t in = g.input(MOTLEY_F32, std::move(x)), chosen = g.input(MOTLEY_I32, std::move(ids));
    g.op(MOTLEY_OP_GROUPED_MATMUL, {in, chosen}, {g.output(MOTLEY_F32, std::move(out))},
         {g.weight(vector_weight({1}))});
  };
  bad_segment(judge, "experts with inputs for other choices", [&](GraphBuilder& g) {
    grouped(g, {kR, 3, 8}, {kR, 2}, {kR, 2, 4});
  });
  bad_segment(judge, "experts with results for other choices", [&](GraphBuilder& g) {
    grouped(g, {kR, 8}, {kR, 2}, {kR, 3, 4});
  });
  bad_segment(judge, "experts of a fixed number of rows", [&](GraphBuilder& g) {
    grouped(g, {5, 8}, {5, 2}, {5, 2, 4});
  });
  bad_segment(judge, "experts chosen without end", [&](GraphBuilder& g) {
    grouped(g, {kR, 8}, {kR, 1 << 20}, {kR, 1 << 20, 4});
  });
  bad_segment(judge, "a combination of other choices", [](GraphBuilder& g) {
    const int32_t x = g.input(MOTLEY_F32, {kR, 3, 8}), w = g.input(MOTLEY_F32, {kR, 2});
    g.op(MOTLEY_OP_COMBINE_EXPERTS, {x, w}, {g.output(MOTLEY_F32, {kR, 8})});
  });
  bad_segment(judge, "a gate of another width", [](GraphBuilder& g) {
    g.op(MOTLEY_OP_SIGMOID_MUL, {2, g.input(MOTLEY_F32, {kR, 2})}, {g.output(MOTLEY_F32, {kR, 64})});
  });
  bad_segment(judge, "a clamp without a limit", [](GraphBuilder& g) {
    g.op(MOTLEY_OP_CLAMPED_SWIGLU, {2, 2}, {g.output(MOTLEY_F32, {kR, 64})}).attr.glu = {1, 0};
  });
  bad_segment(judge, "more choices than experts", [](GraphBuilder& g) {
    g.op(MOTLEY_OP_TOPK_ROUTER, {2}, {g.output(MOTLEY_I32, {kR, 65}), g.output(MOTLEY_F32, {kR, 65})}).attr.router = {
        64, 65, 1, 0, 1};
  });
  bad_segment(judge, "a cut across an inner axis", [](GraphBuilder& g) {
    const int32_t x = g.input(MOTLEY_F32, {kR, 2, 6});
    g.op(MOTLEY_OP_SPLIT, {x}, {g.output(MOTLEY_F32, {kR, 6}), g.output(MOTLEY_F32, {kR, 6})});
  });
}

void bad_weights(Judge& judge) {
  Device& d = judge.device();
  Random random(1);
  const auto pack = [&](const std::string& what,
                        const std::function<void(HostWeight&, motley_weight_desc&)>& break_it) {
    HostWeight w = random_weight(random, judge.plain_dtype(), MOTLEY_WEIGHT_MATMUL, 8, 64);
    w.row_ranges = {{0, 8}}, w.col_ranges = {{0, 64}};
    motley_weight_desc desc = w.desc();
    break_it(w, desc);
    motley_weight* out = nullptr;
    motley_weight_info info{};
    info.struct_size = sizeof info;
    motley_error error{};
    const motley_code code = d.api().pack(d.raw(), &desc, &out, &info, &error);
    refused(judge, code, error, "pack of " + what);
    if (out) d.api().weight_free(out);
  };
  pack("an unknown format", [](HostWeight&, motley_weight_desc& x) { x.dtype = x.format = 63; });
  pack("too few bytes", [](HostWeight&, motley_weight_desc& x) { x.bytes -= 4; });
  pack("null data", [](HostWeight&, motley_weight_desc& x) { x.data = nullptr; });
  pack("no rows", [](HostWeight&, motley_weight_desc& x) { x.rows = 0; });
  pack("an overflowing shape",
       [](HostWeight&, motley_weight_desc& x) { x.rows = x.cols = x.experts = int64_t{1} << 30; });
  pack("no use", [](HostWeight&, motley_weight_desc& x) { x.uses = 0; });
  pack("a row range beyond", [](HostWeight& w, motley_weight_desc&) { w.row_ranges[0].end = 9; });
  pack("an empty column range", [](HostWeight& w, motley_weight_desc&) { w.col_ranges[0].end = 0; });
  pack("a negative range", [](HostWeight& w, motley_weight_desc&) { w.col_ranges[0].begin = -1; });
  pack("an expert range beyond", [](HostWeight& w, motley_weight_desc& x) {
    w.expert_ranges = {{0, 2}};
    x = w.desc();
  });
  pack("rows that are gathered and kept twice", [](HostWeight& w, motley_weight_desc& x) {
    w.uses = MOTLEY_WEIGHT_GATHER;
    w.row_ranges = {{0, 5}, {4, 8}};
    x = w.desc();
  });
  for (int32_t dtype = 0; dtype < MOTLEY_DTYPE_COUNT; ++dtype) {
    if (!kit::find_format(dtype) || judge.packs(dtype)) continue;
    pack("a format that the device does not pack", [&](HostWeight& w, motley_weight_desc& x) {
      w = random_weight(random, dtype, MOTLEY_WEIGHT_MATMUL, 8, 256);
      x = w.desc();
    });
  }
  if (judge.packs(MOTLEY_Q8_0))
    pack("a cut inside a sub-block", [&](HostWeight& w, motley_weight_desc& x) {
      w = random_weight(random, MOTLEY_Q8_0, MOTLEY_WEIGHT_MATMUL, 8, 64);
      w.col_ranges = {{0, 48}};
      x = w.desc();
    });
  // A weight of another shape than the op wants.
  GraphBuilder g;
  const int32_t a = g.input(MOTLEY_F32, {kR, 64}), y = g.output(MOTLEY_F32, {kR, 9});
  g.op(MOTLEY_OP_MATMUL, {a}, {y}, {g.weight(random_weight(random, judge.plain_dtype(), MOTLEY_WEIGHT_MATMUL, 8, 64))});
  bool thrown = false;
  try {
    d.compile(g, {4});
  } catch (const Stop&) {
    thrown = true;
  }
  judge.check(thrown, "a weight of another shape is refused by compile");
}

void bad_enqueues(Judge& judge) {
  Device& d = judge.device();
  Adder adder(d, 8, 16);
  auto a = d.buffer(adder.bytes()), b = d.buffer(adder.bytes()), small = d.buffer(16);
  const auto attempt = [&](const std::string& what, const std::function<void(motley_enqueue_args&)>& break_it) {
    motley_enqueue_args args = adder.args(a.get(), b.get());
    break_it(args);
    motley_event* event = nullptr;
    motley_error error{};
    const motley_code code = d.api().enqueue(d.queue(), adder.program.programs.get(), &args, &event, &error);
    refused(judge, code, error, "enqueue with " + what);
    if (event) d.wait(event);
  };
  BatchData many = plain_batch(9);
  motley_batch too_many = many.view(), reserved = adder.view;
  reserved.overrides = &reserved;
  attempt("an unknown bucket", [](motley_enqueue_args& x) { x.bucket = 1; });
  attempt("a bucket far beyond", [](motley_enqueue_args& x) { x.bucket = 0xffffffffu; });
  attempt("too many rows", [&](motley_enqueue_args& x) { x.batch = &too_many; });
  attempt("no batch", [](motley_enqueue_args& x) { x.batch = nullptr; });
  attempt("a reserved field", [&](motley_enqueue_args& x) { x.batch = &reserved; });
  attempt("a missing binding", [](motley_enqueue_args& x) { x.binding_count = 1; });
  attempt("an unknown value", [&](motley_enqueue_args&) { adder.bindings[0].value = 17; });
  attempt("a negative value", [&](motley_enqueue_args&) { adder.bindings[0].value = -1; });
  attempt("a value bound twice", [&](motley_enqueue_args&) { adder.bindings[1].value = adder.bindings[0].value; });
  attempt("a null buffer", [&](motley_enqueue_args&) { adder.bindings[0].buffer = nullptr; });
  attempt("a small buffer", [&](motley_enqueue_args&) { adder.bindings[0].buffer = small.get(); });
  attempt("an offset beyond", [&](motley_enqueue_args&) { adder.bindings[0].offset = adder.bytes(); });
  attempt("an overflowing offset", [&](motley_enqueue_args&) { adder.bindings[0].offset = ~uint64_t{0} - 8; });
  attempt("a misaligned offset", [&](motley_enqueue_args&) { adder.bindings[0].offset = 2; });
  if (judge.fixed_rows()) {
    auto real_rows_alone = d.buffer(adder.bytes() / 2);
    BatchData few = plain_batch(4);
    motley_batch half = few.view();
    attempt("buffers without room for the padding", [&](motley_enqueue_args& x) {
      x.batch = &half;
      adder.bindings[0].buffer = real_rows_alone.get();
    });
  }
  const auto args = adder.args(a.get(), b.get());
  motley_event* event = nullptr;
  motley_error error{};
  require_ok(d.api().enqueue(d.queue(), adder.program.programs.get(), &args, &event, &error), error,
             "a good enqueue afterwards");
  d.finish(event, "a good enqueue afterwards");
}

void bad_batches(Judge& judge) {
  Device& d = judge.device();
  if (!d.has(MOTLEY_CAP_PAGED_ATTENTION) || !(d.desc().kv_dtypes & 1)) return judge.skip("refusals of KV batches");
  GraphBuilder g;
  const int32_t q = g.input(MOTLEY_F32, {kR, 16}), out = g.output(MOTLEY_F32, {kR, 16});
  g.op(MOTLEY_OP_KV_WRITE, {q, q}, {}).attr.kv = {0, 1, 16};
  g.op(MOTLEY_OP_PAGED_ATTENTION, {q}, {out}).attr.attention = {0, 1, 1, 16, 1, 0, 0};
  const Program program = d.compile(g, {16});
  Owned<motley_kv> kv = d.kv({MOTLEY_F32, 4, 6, {1}, {16}, {}}), other = d.kv({MOTLEY_F32, 4, 6, {2}, {16}, {}});
  Owned<motley_kv> windowed = d.kv({MOTLEY_F32, 4, 6, {1}, {16}, {8}});
  const std::map<int32_t, Bytes> given = {{q, filled(16 * 16 * 4, 1)}};
  const auto attempt = [&](const std::string& what, motley_kv* pool, const std::function<void(BatchData&)>& break_it) {
    BatchData b;
    b.add({0, 6, {1, 3}, false}, 4);
    b.add({9, 1, {0, 2, 4}, true}, 4);
    break_it(b);
    bool thrown = false;
    try {
      d.run(program, given, b, pool);
    } catch (const Stop&) {
      thrown = true;
    }
    judge.check(thrown, "a batch with " + what + " is refused");
  };
  attempt("no KV pool", nullptr, [](BatchData&) {});
  attempt("a pool of another shape", other.get(), [](BatchData&) {});
  attempt("a pool that keeps a window, for full attention", windowed.get(), [](BatchData&) {});
  attempt("a block beyond the pool", kv.get(), [](BatchData& b) { b.blocks[1] = 6; });
  attempt("a negative block", kv.get(), [](BatchData& b) { b.blocks[0] = -2; });
  attempt("a block elsewhere, for attention without a log-sum-exp", kv.get(),
          [](BatchData& b) { b.blocks[0] = MOTLEY_NONE; });
  attempt("a KV slot beyond the pool", kv.get(), [](BatchData& b) { b.kv_slots[0] = 24; });
  attempt("too few blocks", kv.get(), [](BatchData& b) { b.seq_block_begin[1] = 1, b.seq_block_begin[2] = 4; });
  attempt("a huge context", kv.get(), [](BatchData& b) { b.seq_context[1] = 0x7fffffff; });
  attempt("a negative position", kv.get(), [](BatchData& b) { b.positions[0] = -1; });
  attempt("a position beyond the context", kv.get(), [](BatchData& b) { b.positions[5] = 8; });
  attempt("descending rows", kv.get(), [](BatchData& b) { b.seq_row_begin[1] = 0; });
  attempt("rows of no sequence", kv.get(), [](BatchData& b) { b.seq_row_begin[2] = 6; });
  BatchData good;
  good.add({0, 6, {1, 3}, false}, 4);
  d.run(program, given, good, kv.get());
  // Blocks and layers of export and import.
  const auto move = [&](const std::string& what, std::vector<int32_t> blocks, uint32_t begin, uint32_t end,
                        uint64_t bytes) {
    Bytes host(4096);
    motley_error error{};
    motley_event* event = nullptr;
    motley_code code = d.api().kv_export(d.queue(), kv.get(), blocks.data(), static_cast<uint32_t>(blocks.size()),
                                         begin, end, host.data(), bytes, &event, &error);
    refused(judge, code, error, "kv_export of " + what);
    error = {};
    code = d.api().kv_import(d.queue(), kv.get(), blocks.data(), static_cast<uint32_t>(blocks.size()), begin, end,
                             host.data(), bytes, &event, &error);
    refused(judge, code, error, "kv_import of " + what);
  };
  move("an unknown block", {6}, 0, 1, 512);
  move("a negative block", {-1}, 0, 1, 512);
  move("an unknown layer", {0}, 0, 2, 1024);
  move("reversed layers", {0}, 1, 0, 512);
  move("too few bytes", {0}, 0, 1, 511);
}

void bad_tokens(Judge& judge) {
  Device& d = judge.device();
  const int32_t dtype = judge.plain_dtype();
  if (!judge.supports({MOTLEY_OP_EMBED}) || kit::find_format(dtype)->block > 1) return judge.skip("refusals of tokens");
  Random random(2);
  GraphBuilder g;
  const int32_t slots = g.input(MOTLEY_I32, {MOTLEY_DIM_SLOTS});
  g.op(MOTLEY_OP_EMBED, {slots}, {g.output(MOTLEY_F32, {kR, 8})},
       {g.weight(random_weight(random, dtype, MOTLEY_WEIGHT_GATHER, 10, 8))})
      .attr.embed.scale = 1;
  const Program program = d.compile(g, {4});
  const auto attempt = [&](const std::string& what, int32_t token, int32_t slot, int32_t content) {
    BatchData b = plain_batch(2);
    b.token_ids[1] = token, b.token_slots[1] = slot, b.slot_count = 2;
    bool thrown = false;
    try {
      d.run(program, {{slots, to_bytes(std::vector<int32_t>{0, content})}}, b);
    } catch (const Stop&) {
      thrown = true;
    }
    judge.check(thrown, what + " is refused or fails its event");
  };
  attempt("a token beyond the vocabulary", 10, -1, 0);
  attempt("a negative token", -1, -1, 0);
  attempt("an unknown slot", 0, 2, 0);
  attempt("a slot with a wild token", 0, 1, 10);
  attempt("a slot with a negative token", 0, 1, -3);
}

void bad_calls(Judge& judge) {
  Device& d = judge.device();
  const motley_backend& api = d.api();
  motley_error error{};
  auto a = d.buffer(4096);
  const auto fails = [&](const std::string& what, motley_code code) {
    refused(judge, code, error, what);
    error = {};
  };
  motley_device* device = nullptr;
  motley_open_options options{};
  options.struct_size = sizeof options;
  fails("open of an unknown device", api.open(10000, &options, &device, &error));
  options.cores = "7-3";
  fails("open with a bad core list", api.open(judge.device().desc().index, &options, &device, &error));
  options.cores = nullptr, options.variant = "no-such-variant";
  fails("open with an unknown variant", api.open(judge.device().desc().index, &options, &device, &error));
  options.variant = nullptr, options.struct_size = 4;
  fails("open with a short struct", api.open(judge.device().desc().index, &options, &device, &error));
  motley_buffer* buffer = nullptr;
  fails("a buffer of 0 bytes", api.alloc(d.raw(), 0, MOTLEY_USE_ACTIVATION, nullptr, &buffer, &error));
  fails("a buffer of 2^63 bytes",
        api.alloc(d.raw(), uint64_t{1} << 63, MOTLEY_USE_ACTIVATION, nullptr, &buffer, &error));
  fails("a buffer of no use", api.alloc(d.raw(), 64, 9, nullptr, &buffer, &error));
  const motley_region beyond{4000, 0, 97}, wild{~uint64_t{0}, 0, 2};
  fails("a copy beyond", api.copy(d.queue(), a.get(), a.get(), &beyond, 1, nullptr, &error));
  fails("an overflowing copy", api.copy(d.queue(), a.get(), a.get(), &wild, 1, nullptr, &error));
  char host[8];
  fails("a read beyond", api.copy_to_host(d.queue(), host, a.get(), 4090, 8, nullptr, &error));
  fails("a write beyond", api.copy_from_host(d.queue(), a.get(), 4097, host, 0, nullptr, &error));
  if (api.kv_create) {
    KvShapeSpec spec{MOTLEY_F32, 16, 4, {2}, {16}, {}};
    motley_kv* kv = nullptr;
    for (const auto& [what, change] : std::vector<std::pair<const char*, std::function<void(KvShapeSpec&)>>>{
             {"a KV pool of Q8_0", [](KvShapeSpec& s) { s.dtype = MOTLEY_Q8_0; }},
             {"a KV pool without blocks", [](KvShapeSpec& s) { s.blocks = 0; }},
             {"a KV pool of 2^32 blocks", [](KvShapeSpec& s) { s.blocks = 0xffffffffu; }},
             {"KV blocks of no position", [](KvShapeSpec& s) { s.block_size = 0; }},
             {"KV layers without heads", [](KvShapeSpec& s) { s.kv_heads[0] = 0; }},
             {"KV heads below zero", [](KvShapeSpec& s) { s.head_dim[0] = -16; }}}) {
      KvShapeSpec broken = spec;
      change(broken);
      const motley_kv_desc desc = broken.desc();
      fails(what, api.kv_create(d.raw(), &desc, &kv, &error));
    }
  }
  Adder adder(d, 4, 4);
  const motley_segment segment = adder.graph.segment();
  motley_compile_options compile{};
  compile.struct_size = sizeof compile;
  motley_programs* programs = nullptr;
  fails("a compile without buckets", api.compile(d.raw(), &segment, nullptr, &compile, &programs, &error));
  const uint32_t falling[] = {8, 4}, none[] = {0};
  compile.buckets = falling, compile.bucket_count = 2;
  fails("falling buckets", api.compile(d.raw(), &segment, nullptr, &compile, &programs, &error));
  compile.buckets = none, compile.bucket_count = 1;
  fails("a bucket of no rows", api.compile(d.raw(), &segment, nullptr, &compile, &programs, &error));
  const uint32_t good = 4;
  compile.buckets = &good, compile.blob = "stale", compile.blob_bytes = 5;
  fails("a stale blob", api.compile(d.raw(), &segment, nullptr, &compile, &programs, &error));
}

void imports(Judge& judge) {
  Device& d = judge.device();
  if (!d.has(MOTLEY_CAP_IMPORT_HOST)) return judge.skip("imported host memory");
  constexpr uint64_t kBytes = 8192, kPage = 4096;
  Random random(judge.options().seed);
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(kPage, kBytes)), std::free);
  Bytes content = to_bytes(random.normals(kBytes / 4));
  std::copy(content.begin(), content.end(), memory.get());
  const auto lies = [&] { return std::equal(content.begin(), content.end(), memory.get()); };
  motley_error error{};
  motley_buffer* raw = nullptr;
  const motley_backend& api = d.api();
  require_ok(api.alloc(d.raw(), kBytes, MOTLEY_USE_STAGING, memory.get(), &raw, &error), error, "alloc with import");
  Owned<motley_buffer> buffer{raw, {api.free}};
  judge.same(d.read(raw, kBytes), content, "imported memory is read");
  if (d.has(MOTLEY_CAP_HOST_MEMORY)) judge.check(api.map(raw) == memory.get(), "map shows the imported memory itself");
  const Bytes piece = to_bytes(random.normals(64));
  std::copy(piece.begin(), piece.end(), content.begin() + 1000);
  d.write(raw, piece, 1000);
  judge.check(lies(), "a write to imported memory is seen by the host");
  content[5000] = memory.get()[5000] ^= std::byte{0x55};
  judge.same(d.read(raw, kBytes), content, "a host's write is seen in imported memory");
  Adder adder(d, 8, 256);
  auto other = d.buffer(kBytes);
  d.write(other.get(), Bytes(kBytes, std::byte{0}));
  const auto args = adder.args(other.get(), raw);  // 0 + x
  motley_event* event = nullptr;
  require_ok(api.enqueue(d.queue(), adder.program.programs.get(), &args, &event, &error), error, "enqueue");
  d.finish(event, "the program");
  judge.near(d.read(other.get(), kBytes), content, kElementwise, "a program reads imported memory");
  buffer.reset();
  judge.check(lies(), "free leaves imported memory as it is");
  raw = nullptr;
  const motley_code misaligned = api.alloc(d.raw(), kPage, MOTLEY_USE_STAGING, memory.get() + 64, &raw, &error);
  const Owned<motley_buffer> granted{raw, {api.free}};  // by a device that should have refused
  refused(judge, misaligned, error, "import of misaligned memory");
}

void memory_cap(Judge& judge) {
  motley_open_options options{};
  options.struct_size = sizeof options;
  options.memory_cap = 64 << 20;
  motley_device* device = nullptr;
  motley_error error{};
  const motley_backend& api = judge.api();
  require_ok(api.open(judge.device().desc().index, &options, &device, &error), error, "open");
  const Owned<motley_device> owned{device, {api.close}};
  motley_buffer* buffer = nullptr;
  const motley_code beyond = api.alloc(device, 65 << 20, MOTLEY_USE_ACTIVATION, nullptr, &buffer, &error);
  const Owned<motley_buffer> granted{buffer, {api.free}};
  refused(judge, beyond, error, "memory beyond the cap");
  for (int i = 0; i < 4; ++i) {  // freed memory counts no more
    require_ok(api.alloc(device, 40 << 20, MOTLEY_USE_ACTIVATION, nullptr, &buffer, &error), error,
               "alloc below the cap");
    api.free(buffer);
  }
}

}  // namespace

void judge_queues(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_ADD})) return judge.skip("queues: no ADD");
  in_order(judge);
  full_queue(judge);
  fenced(judge);
  events(judge);
  copies(judge);
  imports(judge);
  statistics(judge);
  counts_of_arithmetic(judge);
  event_times(judge);
  virtual_time(judge);
}

void judge_errors(Judge& judge) {
  if (!judge.supports({MOTLEY_OP_ADD, MOTLEY_OP_MUL})) return judge.skip("errors: no ADD and MUL");
  bad_calls(judge);
  bad_segments(judge);
  bad_expert_segments(judge);
  bad_weights(judge);
  bad_enqueues(judge);
  bad_batches(judge);
  bad_tokens(judge);
  memory_cap(judge);
}

}  // namespace motley::conformance
