// CallServer: answers the control calls of one channel inside a worker.
#pragma once

#include <memory>

#include "device/worker/channel.hpp"
#include "device/worker/worker_state.hpp"
#include "device/worker/worker_steps.hpp"

namespace motley::worker {

// The host has two channels, so that a compile on one does not hold up an alloc on the other; each is served by one
// thread. What both share is in the state, whose tables are thread-safe.
class CallServer {
 public:
  // `steps` may still be null: kHello makes it.
  CallServer(Channel channel, WorkerState& state, std::unique_ptr<StepRunner>& steps, bool first);
  ~CallServer();
  CallServer(const CallServer&) = delete;
  CallServer& operator=(const CallServer&) = delete;
  // Answers call after call, until the host says kClose (OK) or is gone or speaks another language.
  Status serve();
  // What serve() does with one message: the bytes of the answer's body. Nothing in it is trusted.
  std::vector<std::byte> answer(Message& message);
  const Channel& channel() const { return channel_; }

 private:
  struct Request {
    Reader reader;
    std::vector<Descriptor>& descriptors;
  };
  using Handler = Status (CallServer::*)(Request&, Writer&);
  struct Row {
    Handler handler;
    bool needs_device;
    bool after_steps;  // the step calls made before it come first
  };
  static const Row& row_of(Call call);

  Status hello(Request& request, Writer& reply);
  Status open(Request& request, Writer& reply);
  Status close(Request& request, Writer& reply);
  Status stats(Request& request, Writer& reply);
  Status queue_create(Request& request, Writer& reply);
  Status queue_destroy(Request& request, Writer& reply);
  Status alloc(Request& request, Writer& reply);
  Status free(Request& request, Writer& reply);
  Status pack(Request& request, Writer& reply);
  Status weight_free(Request& request, Writer& reply);
  Status kv_create(Request& request, Writer& reply);
  Status kv_destroy(Request& request, Writer& reply);
  Status kv_layout(Request& request, Writer& reply);
  Status query(Request& request, Writer& reply);
  Status compile(Request& request, Writer& reply);
  Status programs_free(Request& request, Writer& reply);
  Status export_programs(Request& request, Writer& reply);
  Status stage(Request& request, Writer& reply);
  Status unstage(Request& request, Writer& reply);

  Channel channel_;
  WorkerState& state_;
  std::unique_ptr<StepRunner>& steps_;
  const bool first_;                    // the one that may greet and end
  std::unique_ptr<CallServer> second_;  // of the first server: the other channel's, and its thread
  std::thread second_thread_;
};

}  // namespace motley::worker
