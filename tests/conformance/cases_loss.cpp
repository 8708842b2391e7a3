// A device that is lost: it says so at every call, and everything that was made can still be freed.
#include <functional>

#include "harness.hpp"

namespace motley::conformance {

namespace {

constexpr int64_t kR = MOTLEY_DIM_ROWS;
constexpr uint32_t kRows = 4;

void says_lost(Judge& judge, const std::string& what, const std::function<motley_code(motley_error*)>& call) {
  motley_error error{};
  const motley_code code = call(&error);
  judge.check(code == MOTLEY_UNAVAILABLE && error.code == code && error.text[0],
              what + " on a lost device answers UNAVAILABLE with a reason");
}

struct Work {
  GraphBuilder graph;
  Program program;
  Owned<motley_buffer> x, y;
  BatchData batch = plain_batch(kRows);
  motley_batch view{};
  std::vector<motley_binding> bindings;
  motley_enqueue_args args{};
};

void make_work(Device& device, Work* work) {
  GraphBuilder& g = work->graph;
  const int32_t x = g.input(MOTLEY_F32, {kR, 64}), y = g.output(MOTLEY_F32, {kR, 64});
  g.op(MOTLEY_OP_ADD, {x, x}, {y});
  work->program = device.compile(g, {kRows});
  work->x = device.buffer(kRows * 64 * 4), work->y = device.buffer(kRows * 64 * 4);
  work->bindings = {{x, work->x.get(), 0}, {y, work->y.get(), 0}};
  work->view = work->batch.view();
  work->args.struct_size = sizeof work->args;
  work->args.bindings = work->bindings.data(), work->args.binding_count = 2, work->args.batch = &work->view;
}

// The code of one program, at its enqueue or by its event.
motley_code run_once(Device& device, const Work& work) {
  motley_error error{};
  motley_event* event = nullptr;
  const motley_code code =
      device.api().enqueue(device.queue(), work.program.programs.get(), &work.args, &event, &error);
  return code == MOTLEY_OK ? device.wait(event) : code;
}

void every_call(Judge& judge, Device& device, Work& work) {
  const motley_backend& api = device.api();
  const motley_segment segment = work.graph.segment();
  const uint32_t bucket = kRows;
  std::byte host[16];
  says_lost(judge, "enqueue", [&](motley_error* e) {
    return api.enqueue(device.queue(), work.program.programs.get(), &work.args, nullptr, e);
  });
  says_lost(judge, "query", [&](motley_error* e) {
    motley_query_result result{};
    result.struct_size = sizeof result;
    return api.query(device.raw(), &segment, &bucket, 1, &result, e);
  });
  says_lost(judge, "compile", [&](motley_error* e) {
    motley_compile_options options{};
    options.struct_size = sizeof options, options.buckets = &bucket, options.bucket_count = 1;
    motley_programs* programs = nullptr;
    return api.compile(device.raw(), &segment, nullptr, &options, &programs, e);
  });
  says_lost(judge, "alloc", [&](motley_error* e) {
    motley_buffer* buffer = nullptr;
    return api.alloc(device.raw(), 64, MOTLEY_USE_ACTIVATION, nullptr, &buffer, e);
  });
  says_lost(judge, "queue_create", [&](motley_error* e) {
    motley_queue* queue = nullptr;
    return api.queue_create(device.raw(), &queue, e);
  });
  says_lost(judge, "copy_to_host", [&](motley_error* e) {
    return api.copy_to_host(device.queue(), host, work.x.get(), 0, sizeof host, nullptr, e);
  });
  says_lost(judge, "pack", [&](motley_error* e) {
    Random random(1);
    const HostWeight w = random_weight(random, judge.plain_dtype(), MOTLEY_WEIGHT_MATMUL, 8, 256);
    const motley_weight_desc desc = w.desc();
    motley_weight* weight = nullptr;
    return api.pack(device.raw(), &desc, &weight, nullptr, e);
  });
}

}  // namespace

void judge_loss(Judge& judge) {
  if (!judge.options().lost) return judge.skip("a lost device: none was named");
  Options options = judge.options();
  options.described = options.lost;
  Device device(judge.api(), options, 0);
  Work work;
  make_work(device, &work);
  judge.check(run_once(device, work) == MOTLEY_OK, "the first program of the device that will be lost");
  judge.check(run_once(device, work) == MOTLEY_UNAVAILABLE, "the program that it is lost with answers UNAVAILABLE");
  every_call(judge, device, work);
  motley_device_stats stats{};
  stats.struct_size = sizeof stats;
  motley_error error{};
  judge.check(judge.api().stats(device.raw(), &stats, &error) == MOTLEY_OK && stats.lost == 1,
              "stats of a lost device say so");
  Device anew(judge.api(), options, 0);  // beside it
  Work first;
  make_work(anew, &first);
  judge.check(run_once(anew, first) == MOTLEY_OK, "a lost device can be opened anew");
}

}  // namespace motley::conformance
