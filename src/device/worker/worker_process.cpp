#include "device/worker/worker_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/future.hpp"

extern char** environ;

namespace motley {
namespace {

using worker::Descriptor;

constexpr int kChildSocket = 3;
constexpr size_t kLineBytesMax = 4096;
constexpr size_t kLogBytesMax = 8192;

// The descriptors of posix_spawn's actions must not be among those that the actions write.
Descriptor out_of_the_way(const Descriptor& from) { return Descriptor(fcntl(from.get(), F_DUPFD_CLOEXEC, 16)); }

// posix_spawn's actions and attributes, freed at the end.
struct Spawn {
  Spawn() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~Spawn() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  Spawn(const Spawn&) = delete;
  Spawn& operator=(const Spawn&) = delete;
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

// A process group of its own, no signal blocked, every signal as it is by default.
void set_attributes(posix_spawnattr_t* attributes) {
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(attributes, &none);
  posix_spawnattr_setsigdefault(attributes, &all);
  posix_spawnattr_setpgroup(attributes, 0);
  posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
}

std::string end_of(pid_t pid, const siginfo_t& facts) {
  if (facts.si_code == CLD_EXITED) return fmt::format("process {} ended with code {}", pid, facts.si_status);
  return fmt::format("process {} was killed by signal {} ({})", pid, facts.si_status, strsignal(facts.si_status));
}

}  // namespace

WorkerProcess::WorkerProcess(Ends ends, WorkerWatch watch) : ends_(std::move(ends)), watch_(std::move(watch)) {}

Result<std::unique_ptr<WorkerProcess>> WorkerProcess::start(const std::string& program, Ends ends, WorkerWatch watch) {
  std::unique_ptr<WorkerProcess> process(new WorkerProcess(std::move(ends), std::move(watch)));
  // The watching thread starts the child too: the child's parent-death signal is tied to the thread that made it.
  Promise<Status> started;
  auto future = started.future();
  process->watcher_ = std::thread([self = process.get(), program, started]() mutable {
    const Status status = self->spawn(program);
    const bool running = status.ok();
    started.set(status);
    if (running) self->look_after();
  });
  const Status status = future.take();
  if (status.ok()) return process;
  {
    std::lock_guard lock(process->mutex_);
    process->ended_ = true;
  }
  return status;
}

Status WorkerProcess::spawn(const std::string& program) {
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) return error(MOTLEY_RESOURCE_EXHAUSTED, "pipe: {}", std::strerror(errno));
  output_ = Descriptor(pipe_ends[0]);
  Descriptor written(pipe_ends[1]);
  fcntl(output_.get(), F_SETFL, O_NONBLOCK);
  const Descriptor socket = out_of_the_way(ends_.child_socket), print = out_of_the_way(written);
  Spawn spawn;
  posix_spawn_file_actions_addopen(&spawn.actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&spawn.actions, print.get(), 1);
  posix_spawn_file_actions_adddup2(&spawn.actions, print.get(), 2);
  posix_spawn_file_actions_adddup2(&spawn.actions, socket.get(), kChildSocket);
  posix_spawn_file_actions_addclosefrom_np(&spawn.actions, kChildSocket + 1);
  set_attributes(&spawn.attributes);
  std::string words[] = {program, "worker", "--fd", std::to_string(kChildSocket)};
  char* arguments[] = {words[0].data(), words[1].data(), words[2].data(), words[3].data(), nullptr};
  const int failed = posix_spawn(&pid_, program.c_str(), &spawn.actions, &spawn.attributes, arguments, environ);
  if (failed != 0) {
    pid_ = -1;
    return error(failed == ENOENT ? MOTLEY_NOT_FOUND : MOTLEY_FAILED_PRECONDITION,
                 "the worker program {} cannot be started: {}", program, std::strerror(failed));
  }
  ends_.child_socket.reset();
  pidfd_ = Descriptor(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  if (pidfd_) return ok_status();
  const int why = errno;
  ::kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  return error(MOTLEY_UNIMPLEMENTED, "pidfd_open: {}; workers need Linux 5.4 or later", std::strerror(why));
}

void WorkerProcess::look_after() {
  while (look_once()) {
  }
  reap();
}

// False when the child has ended.
bool WorkerProcess::look_once() {
  pollfd entries[] = {{pidfd_.get(), POLLIN, 0},
                      {ends_.log ? ends_.log.get() : -1, POLLIN, 0},
                      {output_ ? output_.get() : -1, POLLIN, 0},
                      {ends_.bell.get(), POLLIN, 0}};
  if (poll(entries, 4, -1) <= 0) return true;
  if (entries[3].revents != 0) {
    uint64_t count = 0;
    if (read(ends_.bell.get(), &count, sizeof count) == sizeof count && watch_.bell) watch_.bell();
  }
  if (entries[1].revents != 0) read_log();
  if (entries[2].revents != 0 && !read_output()) output_.reset();
  return entries[0].revents == 0;
}

void WorkerProcess::read_log() {
  std::byte datagram[kLogBytesMax];
  for (;;) {
    const ssize_t got = recv(ends_.log.get(), datagram, sizeof datagram, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return ends_.log.reset();
    int32_t level = 3;
    if (static_cast<size_t>(got) < sizeof level) continue;
    std::memcpy(&level, datagram, sizeof level);
    const auto* text = reinterpret_cast<const char*>(datagram + sizeof level);
    if (watch_.log) watch_.log(level, {text, static_cast<size_t>(got) - sizeof level});
  }
}

// Forwards whole lines. False when nothing more can come.
bool WorkerProcess::read_output() {
  char bytes[kLineBytesMax];
  for (;;) {
    const ssize_t got = read(output_.get(), bytes, sizeof bytes);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) return false;
    for (ssize_t i = 0; i < got; ++i) {
      if (bytes[i] != '\n') line_.push_back(bytes[i]);
      if (bytes[i] != '\n' && line_.size() < kLineBytesMax) continue;
      if (watch_.log && !line_.empty()) watch_.log(1, line_);
      line_.clear();
    }
  }
}

void WorkerProcess::reap() {
  if (ends_.log) read_log();
  if (output_) read_output();
  if (watch_.log && !line_.empty()) watch_.log(1, line_);
  siginfo_t facts{};
  std::string how = fmt::format("process {} ended", pid_);
  // Fails where the program lets the kernel reap its children (SIGCHLD ignored).
  if (waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &facts, WEXITED) == 0) how = end_of(pid_, facts);
  {
    std::lock_guard lock(mutex_);
    if (killed_) how = fmt::format("process {} was given up and ended", pid_);
    how_ = how;
  }
  if (watch_.ended) watch_.ended(how);  // before kill() returns
  std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

std::string WorkerProcess::how_it_ended() const {
  std::lock_guard lock(mutex_);
  return how_;
}

bool WorkerProcess::wait_ended(int64_t timeout_ns) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), [this] { return ended_; });
}

bool WorkerProcess::at_work() const {
  std::error_code failed;
  const std::filesystem::path tasks = fmt::format("/proc/{}/task", pid_);
  for (auto task = std::filesystem::directory_iterator(tasks, failed); !failed && task != decltype(task)();
       task.increment(failed)) {
    std::string line;
    std::getline(std::ifstream(task->path() / "stat"), line);
    const size_t name_end = line.rfind(") ");  // the name before it may hold anything; the state is one letter
    if (name_end == std::string::npos || name_end + 2 >= line.size()) continue;
    if (line[name_end + 2] == 'R' || line[name_end + 2] == 'D') return true;
  }
  return false;
}

void WorkerProcess::kill() {
  std::unique_lock lock(mutex_);
  // Under the lock: an ended child is not signalled, and until it is reaped its descriptor means it and nobody else.
  if (!ended_) {
    siginfo_t facts{};  // pid 0 while it lives
    waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &facts, WEXITED | WNOHANG | WNOWAIT);
    killed_ = facts.si_pid == 0;
    syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  }
  changed_.wait(lock, [this] { return ended_; });
}

WorkerProcess::~WorkerProcess() {
  kill();
  watcher_.join();
}

}  // namespace motley
