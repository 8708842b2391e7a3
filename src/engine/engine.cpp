#include "engine/engine.hpp"

#include <algorithm>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/log.hpp"
#include "base/memory_patience.hpp"
#include "engine/metrics.hpp"
#include "engine/scheduler.hpp"

namespace motley {
namespace {

// What other threads have to say to the engine's thread. Outlives the engine where a step of it is still under way.
class Mailbox {
 public:
  struct Mail {
    std::vector<std::pair<Request, int64_t>> requests;  // and when they came
    std::unordered_map<RequestId, FinishReason> ends;   // of a request's, the first to come
    std::list<StepResult> results;
    std::vector<Promise<bool>> drains;
    bool stop = false;
  };

  explicit Mailbox(size_t queue_limit) : queue_limit_(queue_limit) {}

  Result<RequestId> submit(Request request, int64_t now_ns) {
    std::lock_guard lock(mutex_);
    if (!health_.ok()) return health_;
    if (draining_) return error(MOTLEY_UNAVAILABLE, "the engine is draining and takes no new requests");
    if (waiting_ + mail_.requests.size() >= queue_limit_)
      return error(MOTLEY_RESOURCE_EXHAUSTED, "{} requests are waiting already; try again later", queue_limit_);
    const RequestId id = request.id = ++last_id_;
    mail_.requests.emplace_back(std::move(request), now_ns);
    changed_.notify_one();
    return id;
  }
  void end(RequestId id, FinishReason reason) {
    std::lock_guard lock(mutex_);
    if (id == 0 || id > last_id_) return;
    mail_.ends.try_emplace(id, reason);
    changed_.notify_one();
  }
  void deliver(StepResult result) {
    std::list<StepResult> one;  // no memory is waited for under the lock
    one.push_back(std::move(result));
    std::lock_guard lock(mutex_);
    mail_.results.splice(mail_.results.end(), one);
    changed_.notify_one();
  }
  Future<bool> drain() {
    std::lock_guard lock(mutex_);
    draining_ = true;
    Future<bool> future = mail_.drains.emplace_back().future();
    changed_.notify_one();
    return future;
  }
  void stop() {
    std::lock_guard lock(mutex_);
    mail_.stop = draining_ = true;
    changed_.notify_one();
  }
  void set_health(const Status& status) {
    std::lock_guard lock(mutex_);
    if (health_.ok()) health_ = status;
  }
  Status health() const {
    std::lock_guard lock(mutex_);
    return health_;
  }
  // Requests that the queue limit counts beside those in the box.
  void set_waiting(size_t waiting) {
    std::lock_guard lock(mutex_);
    waiting_ = waiting;
  }
  // Sleeps until there is mail.
  Mail take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return mail_.stop || !mail_.requests.empty() || !mail_.ends.empty() || !mail_.results.empty() ||
             !mail_.drains.empty();
    });
    waiting_ += mail_.requests.size();
    return std::exchange(mail_, {});
  }

 private:
  const size_t queue_limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Mail mail_;
  Status health_;
  size_t waiting_ = 0;
  RequestId last_id_ = 0;
  bool draining_ = false;
};

}  // namespace

class Engine::Impl {
 public:
  Impl(Executor& executor, const SchedulerConfig& config, const Clock& clock)
      : executor_(executor),
        clock_(clock),
        config_(config),
        mailbox_(std::make_shared<Mailbox>(config.options.queue_limit)),
        scheduler_(config, [this](const Sequence& s, RequestUpdate update) { tell(s, std::move(update)); }),
        metrics_(config.options.max_model_len),
        thread_([this] { run(); }) {}

  ~Impl() {
    mailbox_->stop();
    thread_.join();
  }

  const SchedulerConfig& config() const { return config_; }
  Result<RequestId> submit(Request request) { return mailbox_->submit(std::move(request), clock_.now_ns()); }
  Mailbox& mailbox() { return *mailbox_; }
  EngineStats stats() const {
    std::lock_guard lock(stats_mutex_);
    return metrics_.stats();
  }

 private:
  // A step half planned cannot be given up like one request: here memory that is short is waited for.
  void run() {
    const MemoryPatience patience;
    publish_gauges();
    bool stopped = false;
    while (!stopped) {
      Mailbox::Mail mail = mailbox_->take();
      stopped = mail.stop;
      handle(std::move(mail));
      if (stopped)
        scheduler_.end_all(FinishReason::kAborted, ok_status());
      else
        plan();
      publish_gauges();
      if (scheduler_.unfinished() == 0)
        for (Promise<bool>& drained : std::exchange(drains_, {})) drained.set(true);
    }
  }

  void handle(Mailbox::Mail mail) {
    for (StepResult& result : mail.results) take_result(std::move(result));
    for (auto& [request, came_ns] : mail.requests) scheduler_.add(std::move(request), came_ns);
    if (dead_) scheduler_.end_all(FinishReason::kError, mailbox_->health());
    for (const auto& [id, reason] : mail.ends) scheduler_.end(id, reason);
    for (Promise<bool>& drain : mail.drains) drains_.push_back(std::move(drain));
  }

  void take_result(StepResult result) {
    Status fatal = result.status.code() == MOTLEY_UNAVAILABLE ? result.status : ok_status();
    if (!result.status.ok()) log_error("step {} failed: {}", result.step, result.status.to_string());
    if (const Status status = scheduler_.apply(std::move(result), clock_.now_ns()); !status.ok()) fatal = status;
    if (fatal.ok() || dead_) return;
    dead_ = true;
    mailbox_->set_health(fatal.annotate("the engine has ended"));
    log_error("the engine has ended: {}", fatal.to_string());
    scheduler_.end_all(FinishReason::kError, mailbox_->health());
  }

  void plan() {
    if (dead_) return;
    while (auto step = scheduler_.plan_step(clock_.now_ns())) {
      {
        std::lock_guard lock(stats_mutex_);
        metrics_.on_step(step->tokens.size());
      }
      Future<StepResult> future = executor_.submit(std::move(*step));
      future.on_ready([future, mailbox = mailbox_]() mutable { mailbox->deliver(future.take()); });
    }
  }

  void tell(const Sequence& sequence, RequestUpdate update) {
    {
      std::lock_guard lock(stats_mutex_);
      metrics_.on_update(sequence, update, clock_.now_ns());
    }
    sequence.request.on_update(std::move(update));
  }

  void publish_gauges() {
    mailbox_->set_waiting(scheduler_.waiting());
    std::lock_guard lock(stats_mutex_);
    EngineStats& stats = metrics_.stats();
    stats.running = scheduler_.running();
    stats.waiting = scheduler_.waiting();
    stats.kv_blocks_total = scheduler_.pool().size();
    stats.kv_blocks_used = scheduler_.pool().size() - scheduler_.pool().free_count();
    stats.prefix_queries = scheduler_.counters().prefix_queries;
    stats.prefix_hits = scheduler_.counters().prefix_hits;
    stats.preemptions = scheduler_.counters().preemptions;
  }

  Executor& executor_;
  const Clock& clock_;
  const SchedulerConfig config_;
  const std::shared_ptr<Mailbox> mailbox_;  // shared with the callbacks of steps under way
  Scheduler scheduler_;                     // engine's thread
  std::vector<Promise<bool>> drains_;       // engine's thread
  bool dead_ = false;                       // engine's thread
  mutable std::mutex stats_mutex_;
  EngineMetrics metrics_;
  std::thread thread_;
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(Executor& executor, const EngineOptions& options, const Clock& clock) {
  ASSIGN_OR_RETURN(const SchedulerConfig config, resolve_config(executor.describe(), options));
  return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(executor, config, clock)));
}

uint32_t Engine::max_model_len() const { return impl_->config().options.max_model_len; }
const EngineOptions& Engine::options() const { return impl_->config().options; }

Result<RequestId> Engine::submit(Request request) {
  RETURN_IF_ERROR(check_request(impl_->config(), request));
  return impl_->submit(std::move(request));
}

void Engine::abort(RequestId id) { impl_->mailbox().end(id, FinishReason::kAborted); }
void Engine::finish(RequestId id) { impl_->mailbox().end(id, FinishReason::kStop); }
Future<bool> Engine::drain() { return impl_->mailbox().drain(); }
EngineStats Engine::stats() const { return impl_->stats(); }
Status Engine::health() const { return impl_->mailbox().health(); }

}  // namespace motley
