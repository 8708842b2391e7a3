// WorkerProcess: one child process that drives one device: started, watched, ended and reaped.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "base/status.hpp"
#include "device/worker/descriptor.hpp"

namespace motley {

// What the host does about its worker. All are called on the watching thread, and must not wait for the worker.
struct WorkerWatch {
  std::function<void(int32_t level, std::string_view text)> log;  // motley_log_fn's levels; what the child prints is 1
  std::function<void()> bell;                                     // the bell was rung
  std::function<void(const std::string& how)> ended;              // once: "process 7 was killed by signal 9 (Killed)"
};

// Thread-safe. The child is a process group of its own, so that a Ctrl-C meant for the host does not reach it, gets
// nothing but its socket and /dev/null and pipes for the standard descriptors, and dies with the host.
class WorkerProcess {
 public:
  // The descriptors that the watching thread looks at beside the child itself.
  struct Ends {
    worker::Descriptor child_socket;  // becomes the child's --fd; closed here
    worker::Descriptor log;           // datagrams: an int32 level, then text
    worker::Descriptor bell;          // an eventfd
  };
  // Runs `program worker --fd N`. NOT_FOUND and so on, with the program's name, when it cannot be started.
  static Result<std::unique_ptr<WorkerProcess>> start(const std::string& program, Ends ends, WorkerWatch watch);
  ~WorkerProcess();  // kill()
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  pid_t pid() const { return pid_; }
  // How it ended; "" while it runs.
  std::string how_it_ended() const;
  // True once the child is gone and reaped; waits for that at most timeout_ns.
  bool wait_ended(int64_t timeout_ns) const;
  // Whether a thread of it computes, or waits for a core, a disk or memory, just now. False for one that is stopped,
  // asleep or gone.
  bool at_work() const;
  // SIGKILL, which a stopped process obeys too; returns when the child is reaped.
  void kill();

 private:
  WorkerProcess(Ends ends, WorkerWatch watch);
  Status spawn(const std::string& program);
  void look_after();
  bool look_once();
  void read_log();
  bool read_output();
  void reap();

  Ends ends_;
  WorkerWatch watch_;
  worker::Descriptor pidfd_, output_;
  pid_t pid_ = -1;
  std::string line_;  // what the child printed since its last line end
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool ended_ = false, killed_ = false;  // killed_: by kill()
  std::string how_;
  std::thread watcher_;
};

}  // namespace motley
