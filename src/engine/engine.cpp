#include "engine/engine.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/log.hpp"
#include "base/memory_patience.hpp"
#include "engine/metrics.hpp"
#include "engine/scheduler.hpp"
#include "engine/step_trace.hpp"
#include "engine/step_trouble.hpp"
#include "engine/transfers.hpp"

namespace motley {
namespace {

constexpr size_t kReplacementsMax = 16;    // that wait
constexpr uint32_t kLossesInARowMax = 16;  // without a step that succeeded: then recovering leads nowhere

// An executor that shall take over, and who waits for that.
struct Replacement {
  ReplaceFn make;
  Promise<Status> done;
  Status loss;                                // OK: planned, by replace()
  std::vector<KvPoolDescription> pools = {};  // of what it makes, where that is known
  bool stays = false;                         // `make` makes none: the executor in service goes on
};

// What a replacement's function gave, and the KV that the executor before it had.
struct Made {
  Result<Executor*> executor;
  KvSaved saved;
};

struct EndedStep {
  uint32_t lane = 0;
  StepResult result;
};

// What other threads have to say to the engine's thread. Outlives the engine where a step of it is still under way.
class Mailbox {
 public:
  struct Mail {
    std::vector<std::pair<Request, int64_t>> requests;  // and when they came
    std::unordered_map<RequestId, FinishReason> ends;   // of a request's, the first to come
    std::list<EndedStep> results;
    std::vector<Promise<bool>> drains;
    std::vector<Replacement> replacements;
    std::optional<Result<KvSaved>> saved_ahead;
    std::optional<Made> made;
    std::optional<Result<KvLoaded>> loaded;
    std::optional<Transferred> transferred;
    bool stop = false;
  };

  Mailbox(size_t queue_limit, size_t lanes) : queue_limit_(queue_limit), trouble_(lanes) {}

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
  void deliver(EndedStep ended) {
    std::list<EndedStep> one;  // no memory is waited for under the lock
    one.push_back(std::move(ended));
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
  Future<Status> replace(Replacement replacement) {
    Future<Status> future = replacement.done.future();
    std::lock_guard lock(mutex_);
    mail_.replacements.push_back(std::move(replacement));
    changed_.notify_one();
    return future;
  }
  void saved_ahead(Result<KvSaved> saved) {
    std::lock_guard lock(mutex_);
    mail_.saved_ahead = std::move(saved);
    changed_.notify_one();
  }
  void made(Made made) {
    std::lock_guard lock(mutex_);
    mail_.made = std::move(made);
    changed_.notify_one();
  }
  void loaded(Result<KvLoaded> loaded) {
    std::lock_guard lock(mutex_);
    mail_.loaded = std::move(loaded);
    changed_.notify_one();
  }
  void transferred(Transferred transferred) {
    std::lock_guard lock(mutex_);
    mail_.transferred = std::move(transferred);
    changed_.notify_one();
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
  void step_ended(const EndedStep& ended, int64_t now_ns) {
    std::lock_guard lock(mutex_);
    trouble_.ended(ended.lane, ended.result.step, ended.result.status, now_ns);
  }
  void set_lanes(size_t lanes) {
    std::lock_guard lock(mutex_);
    trouble_.set_lanes(lanes);
  }
  Status trouble(int64_t now_ns) const {
    std::lock_guard lock(mutex_);
    return trouble_.told(now_ns);
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
             !mail_.drains.empty() || !mail_.replacements.empty() || mail_.saved_ahead.has_value() ||
             mail_.made.has_value() || mail_.loaded.has_value() || mail_.transferred.has_value();
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
  StepTrouble trouble_;
  size_t waiting_ = 0;
  RequestId last_id_ = 0;
  bool draining_ = false;
};

}  // namespace

class Engine::Impl {
 public:
  Impl(Executor& executor, const EngineOptions& asked, const SchedulerConfig& config, const Clock& clock,
       RecoverFn recover, Trace* trace)
      : clock_(clock),
        asked_(asked),
        recover_(std::move(recover)),
        trace_(trace),
        executor_(&executor),
        config_(std::make_shared<const SchedulerConfig>(config)),
        mailbox_(std::make_shared<Mailbox>(config.options.queue_limit, config.lanes.size())),
        scheduler_(config, [this](const Sequence& s, RequestUpdate update) { tell(s, std::move(update)); }),
        metrics_(config.options.max_model_len),
        thread_([this] { run(); }) {}

  ~Impl() {
    mailbox_->stop();
    thread_.join();
    if (maker_.joinable()) maker_.join();
    if (mover_.joinable()) mover_.join();
  }

  // Of the executor in service. Any thread; the value stays as it is while held.
  std::shared_ptr<const SchedulerConfig> config() const {
    std::lock_guard lock(config_mutex_);
    return config_;
  }
  Result<RequestId> submit(Request request) { return mailbox_->submit(std::move(request), clock_.now_ns()); }
  Mailbox& mailbox() { return *mailbox_; }
  Status trouble() const { return mailbox_->trouble(clock_.now_ns()); }
  EngineStats stats() const {
    std::lock_guard lock(stats_mutex_);
    return metrics_.stats();
  }

 private:
  enum class Phase {
    kServing,
    kSaving,     // as before: KV is saved that the next executor needs
    kSettling,   // no planning: waits for the steps under way, before the executor is replaced
    kReplacing,  // no step under way: waits for the function that makes the next executor
    kLoading,    // the next one is there: waits for the KV that it gets
    kDead,
  };

  // A step half planned cannot be given up like one request: here memory that is short is waited for.
  void run() {
    const MemoryPatience patience;
    publish_gauges();
    bool stopped = false;
    while (!stopped) {
      Mailbox::Mail mail = mailbox_->take();
      stopped = mail.stop;
      handle(std::move(mail));
      if (stopped) {
        scheduler_.end_all(FinishReason::kAborted, ok_status());
        refuse_replacements(error(MOTLEY_UNAVAILABLE, "the engine has ended"));
      } else {
        advance();
      }
      publish_gauges();
      if (scheduler_.unfinished() == 0)
        for (Promise<bool>& drained : std::exchange(drains_, {})) drained.set(true);
    }
  }

  void handle(Mailbox::Mail mail) {
    for (EndedStep& ended : mail.results) take_result(std::move(ended));
    for (auto& [request, came_ns] : mail.requests) scheduler_.add(std::move(request), came_ns);
    for (Replacement& replacement : mail.replacements) queue(std::move(replacement));
    if (mail.saved_ahead) end_saving(*std::move(mail.saved_ahead));
    if (mail.made) take_over(*std::move(mail.made));
    if (mail.loaded) end_loading(*mail.loaded);
    if (mail.transferred) end_transfers(*mail.transferred);
    if (phase_ == Phase::kDead) scheduler_.end_all(FinishReason::kError, mailbox_->health());
    for (const auto& [id, reason] : mail.ends) scheduler_.end(id, reason);
    for (Promise<bool>& drain : mail.drains) drains_.push_back(std::move(drain));
  }

  void take_result(EndedStep ended) {
    StepResult& result = ended.result;
    trace_.ended(result, clock_.now_ns());
    const Code code = result.status.code();
    const bool lost = code == MOTLEY_UNAVAILABLE || (recover_ && code == MOTLEY_DEADLINE_EXCEEDED);
    if (lost || losing()) {
      if (!result.status.ok()) log_error("step {} failed: {}", result.step, result.status.to_string());
    } else {
      mailbox_->step_ended(ended, clock_.now_ns());
    }
    const Status why = lost ? result.status : ok_status();
    if (lost && recover_ && phase_ != Phase::kDead && !losing()) lose(why);
    if (code == MOTLEY_OK && !losing()) losses_in_a_row_ = 0;
    const Status sound = losing() ? scheduler_.discard(result) : scheduler_.apply(std::move(result), clock_.now_ns());
    if (!sound.ok()) return die(sound);
    if (lost && !recover_) die(why);
  }

  void die(const Status& why) {
    if (phase_ == Phase::kDead) return;
    phase_ = Phase::kDead;
    mailbox_->set_health(why.annotate("the engine has ended"));
    log_error("the engine has ended: {}", why.to_string());
    scheduler_.end_all(FinishReason::kError, mailbox_->health());
    refuse_replacements(mailbox_->health());
  }

  // ---- one executor after another

  // Whether results that come now are those of a lost executor.
  bool losing() const { return current_ && !current_->loss.ok(); }

  void lose(const Status& why) {
    log_warning("the executor is lost, replacing it: {}", why.to_string());
    ++losses_in_a_row_;
    if (!current_ || phase_ == Phase::kSaving) paused_at_ns_ = clock_.now_ns();
    saved_.clear();
    if (current_) replacements_.push_front(*std::exchange(current_, std::nullopt));  // one by plan, which must wait now
    current_ = Replacement{
        .make = [recover = recover_, why] { return recover(why); }, .done = {}, .loss = why, .stays = false};
    phase_ = Phase::kSettling;
  }

  void queue(Replacement replacement) {
    if (phase_ == Phase::kDead)
      replacement.done.set(mailbox_->health());
    else if (replacements_.size() >= kReplacementsMax)
      replacement.done.set(error(MOTLEY_RESOURCE_EXHAUSTED, "{} replacements wait already", kReplacementsMax));
    else
      replacements_.push_back(std::move(replacement));
  }

  void refuse_replacements(const Status& why) {
    if (current_) current_->done.set(why);
    for (Replacement& replacement : replacements_) replacement.done.set(why);
    current_.reset();
    replacements_.clear();
  }

  void advance() {
    if (phase_ == Phase::kServing && !replacements_.empty() && !scheduler_.some_come_late()) {
      current_ = std::move(replacements_.front());
      replacements_.pop_front();
      save_ahead();
    }
    if (phase_ == Phase::kServing || phase_ == Phase::kSaving) plan();
    start_transfers();
    if (phase_ == Phase::kServing && !scheduler_.some_come_late()) saved_.clear();
    const bool settled = scheduler_.steps_in_flight() == 0 && scheduler_.transfers_in_flight() == 0 && !saving_;
    if (phase_ == Phase::kSettling && settled) make_next();
  }

  // ---- from pool to pool

  // Beside the steps, all that wait at once.
  void start_transfers() {
    if (transferring_ || phase_ == Phase::kLoading) return;
    const std::vector<Transfer> transfers = scheduler_.take_transfers();
    if (transfers.empty()) return;
    transferring_ = true;
    if (mover_.joinable()) mover_.join();  // it has delivered
    try {
      mover_ = std::thread([executor = executor_, mailbox = mailbox_, transfers, saved = saved_] {
        const MemoryPatience patience;
        mailbox->transferred(transfer(*executor, transfers, saved));
      });
    } catch (const std::system_error& refused) {
      Transferred none{{}, {}, 0, error(MOTLEY_RESOURCE_EXHAUSTED, "no thread to move KV on: {}", refused.what())};
      for (const Transfer& each : transfers) none.left.push_back(each.id);
      mailbox_->transferred(std::move(none));
    }
  }

  void end_transfers(const Transferred& done) {
    transferring_ = false;
    for (const RequestId id : done.moved) scheduler_.moved(id, true);
    for (const RequestId id : done.left) scheduler_.moved(id, false);
    if (!done.left.empty()) {
      log_warning("the KV of {} requests does not move, and is computed again: {}", done.left.size(),
                  done.loaded.ok() ? "the host has memory for others alone" : done.loaded.error().message());
    }
    if (!done.loaded.ok()) return;
    std::lock_guard lock(stats_mutex_);
    metrics_.on_moved(done.blocks, done.loaded->bytes);
  }

  // On a thread of its own. False: there is none.
  bool start_maker(std::function<void()> work) {
    if (maker_.joinable()) maker_.join();  // it has delivered
    try {
      maker_ = std::thread([work = std::move(work)] {
        const MemoryPatience patience;
        work();
      });
    } catch (const std::system_error& refused) {
      log_warning("no thread to replace the executor on: {}", refused.what());
      return false;
    }
    return true;
  }

  bool saves_kv() const { return !losing() && !current_->stays && executor_->describe().moves_kv; }

  // Saves what no step writes any more, while steps run; then they come to rest.
  void save_ahead() {
    phase_ = Phase::kSaving;
    saved_.clear();
    std::vector<KvBlock> blocks;
    if (saves_kv()) blocks = scheduler_.hold_written(current_->pools);
    if (blocks.empty()) return settle({});
    const auto work = [blocks = std::move(blocks), executor = executor_, mailbox = mailbox_] {
      KvSaved saved;
      Status status;
      try {
        status = save(*executor, blocks, &saved);
      } catch (const std::bad_alloc&) {
      }
      mailbox->saved_ahead(status.ok() ? Result<KvSaved>(std::move(saved)) : status);
    };
    saving_ = start_maker(work);
    if (!saving_) settle({});
  }

  void end_saving(Result<KvSaved> saved) {
    saving_ = false;
    if (phase_ != Phase::kSaving) return;  // the executor was lost meanwhile
    if (saved.ok()) return settle(*std::move(saved));
    log_warning("the executor was not replaced: {}", saved.error().to_string());
    current_->done.set(saved.error());
    stay();
  }

  // What is left of a pause beside what was saved ahead: the prefix cache is saved in it.
  size_t cached_blocks_max() const {
    size_t ahead = 0;
    for (const std::vector<BlockId>& of_pool : blocks_of(saved_)) ahead += of_pool.size();
    const size_t at_once = blocks_at_once(saved_, asked_.kv_pause_ns);
    return at_once - std::min(at_once, ahead);
  }

  void settle(KvSaved saved_ahead) {
    if (saved_ahead.empty()) scheduler_.let_go();
    saved_ = std::move(saved_ahead);
    paused_at_ns_ = clock_.now_ns();
    phase_ = Phase::kSettling;
  }

  // What is saved of the executor in service is saved before the other is made: it may end for that.
  void make_next() {
    phase_ = Phase::kReplacing;
    std::vector<KvBlock> blocks;
    if (saves_kv()) blocks = scheduler_.blocks_to_save(current_->pools, blocks_of(saved_), cached_blocks_max());
    const auto work = [make = std::move(current_->make), blocks = std::move(blocks), executor = executor_,
                       mailbox = mailbox_, saved = saved_] {
      Made made{error(MOTLEY_RESOURCE_EXHAUSTED, "no memory for another executor"), saved};
      try {
        const Status status = save(*executor, blocks, &made.saved);
        made.executor = status.ok() ? make() : status;
      } catch (const std::bad_alloc&) {
      }
      mailbox->made(std::move(made));
    };
    if (start_maker(work)) return;
    const Status why = error(MOTLEY_RESOURCE_EXHAUSTED, "no thread to replace the executor on");
    if (losing()) return die(why);
    current_->done.set(why);
    stay();
  }

  // The executor in service goes on.
  void stay() {
    scheduler_.let_go();
    saved_.clear();
    current_.reset();
    phase_ = Phase::kServing;
  }

  // None where that cannot be: what was computed is computed again then. Not OK where the executor has lost a device:
  // its next step says so, and it is replaced for that.
  static Status save(Executor& executor, const std::vector<KvBlock>& blocks, KvSaved* to) {
    if (blocks.empty()) return ok_status();
    auto saved = executor.save_kv(blocks);
    const Code code = saved.error().code();
    if (code == MOTLEY_UNAVAILABLE || code == MOTLEY_DEADLINE_EXCEEDED) return saved.error();
    if (saved.ok()) {
      to->push_back(std::make_shared<const KvContents>(*std::move(saved)));
    } else {
      log_warning("the KV of {} blocks is not saved: {}", blocks.size(), saved.error().message());
    }
    return ok_status();
  }

  void take_over(Made made) {
    if (phase_ != Phase::kReplacing) return;  // the engine has ended meanwhile
    if (current_->stays) {
      current_->done.set(made.executor.error());
    } else if (made.executor.ok() && *made.executor == nullptr) {
      return die(error(MOTLEY_UNAVAILABLE, "no executor is left"));
    } else if (!made.executor.ok() && !losing()) {
      log_warning("the executor was not replaced: {}", made.executor.error().to_string());
      current_->done.set(made.executor.error());
    } else {
      const Status status = made.executor.ok() ? go_on_with(**made.executor, made.saved) : made.executor.error();
      if (!status.ok()) die(losing() ? current_->loss.annotate(status.to_string()) : status);
      return;
    }
    stay();
  }

  Status go_on_with(Executor& executor, const KvSaved& saved) {
    if (losses_in_a_row_ > kLossesInARowMax)
      return error(MOTLEY_UNAVAILABLE, "{} executors in a row were lost before they ran a step", losses_in_a_row_);
    const ExecutorDescription description = executor.describe();
    ASSIGN_OR_RETURN(SchedulerConfig next, resolve_replacement(description, asked_));
    if (next.epoch <= config_->epoch || next.vocab_size != config_->vocab_size)
      return error(
          MOTLEY_INTERNAL,
          "the new executor has epoch {} and a vocabulary of {}; a later one than {} and the same {} are needed",
          next.epoch, next.vocab_size, config_->epoch, config_->vocab_size);
    executor_ = &executor;
    {
      std::lock_guard lock(config_mutex_);
      config_ = std::make_shared<const SchedulerConfig>(std::move(next));
    }
    mailbox_->set_lanes(config_->lanes.size());
    saved_.clear();
    if (losing()) {
      serve(scheduler_.restart(*config_));
      return ok_status();
    }
    if (description.moves_kv) saved_ = saved;
    Scheduler::CarriedOn carried =
        scheduler_.carry_on(*config_, blocks_of(saved_), blocks_at_once(saved_, asked_.kv_pause_ns));
    carried_ = {carried.moves.size(), carried.late, carried.lost};
    if (carried.moves.empty()) {
      serve(carried.lost);
      return ok_status();
    }
    phase_ = Phase::kLoading;
    const auto work = [&executor, saved, moves = std::move(carried.moves), mailbox = mailbox_] {
      Result<KvLoaded> loaded = error(MOTLEY_RESOURCE_EXHAUSTED, "no memory to move KV");
      try {
        loaded = load(executor, saved, moves);
      } catch (const std::bad_alloc&) {
      }
      mailbox->loaded(std::move(loaded));
    };
    if (!start_maker(work)) end_loading(error(MOTLEY_RESOURCE_EXHAUSTED, "no thread to move KV on"));
    return ok_status();
  }

  void end_loading(const Result<KvLoaded>& loaded) {
    if (phase_ != Phase::kLoading) return;  // the engine has ended meanwhile
    if (loaded.ok()) {
      log_info("{} KV blocks loaded in {:.0f} ms; those of {} requests come late", carried_.blocks,
               static_cast<double>(loaded->busy_ns) * 1e-6, carried_.late);
      {
        std::lock_guard lock(stats_mutex_);
        metrics_.on_moved(carried_.blocks, loaded->bytes);
      }
      return serve(carried_.lost);
    }
    log_warning("KV does not move, and is computed again: {}", loaded.error().message());
    serve(carried_.lost + scheduler_.restart(*config_));
  }

  // The executor that took over, `lost` being the tokens that are computed again.
  void serve(uint64_t lost) {
    const int64_t now_ns = clock_.now_ns(), pause_ns = now_ns - paused_at_ns_;
    trace_.paused(paused_at_ns_, now_ns, losing(), config_->epoch);
    log_info("epoch {} serves after a pause of {:.3f} s; {} requests wait, {} tokens are computed again",
             config_->epoch, static_cast<double>(pause_ns) * 1e-9, scheduler_.waiting(), lost);
    {
      std::lock_guard lock(stats_mutex_);
      metrics_.on_replacement(losing(), pause_ns);
    }
    current_->done.set(ok_status());
    current_.reset();
    phase_ = Phase::kServing;
  }

  void plan() {
    while (auto step = scheduler_.plan_step(clock_.now_ns())) {
      {
        std::lock_guard lock(stats_mutex_);
        metrics_.on_step(step->lane, step->tokens.size());
      }
      trace_.planned(*step, clock_.now_ns());
      const uint32_t lane = step->lane;
      Future<StepResult> future = executor_->submit(std::move(*step));
      future.on_ready([future, lane, mailbox = mailbox_]() mutable { mailbox->deliver({lane, future.take()}); });
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
    stats.moving = scheduler_.transfers_in_flight();
    stats.kv_blocks_total = stats.kv_blocks_used = 0;
    stats.pools.resize(scheduler_.pools());
    for (uint32_t i = 0; i < scheduler_.pools(); ++i) {
      const BlockPool& pool = scheduler_.pool(i);
      stats.pools[i] = {
          .blocks_total = pool.size(), .blocks_used = pool.size() - pool.free_count(), .most_used = pool.most_held()};
      stats.kv_blocks_total += stats.pools[i].blocks_total;
      stats.kv_blocks_used += stats.pools[i].blocks_used;
    }
    stats.prefix_queries = scheduler_.counters().prefix_queries;
    stats.prefix_hits = scheduler_.counters().prefix_hits;
    stats.preemptions = scheduler_.counters().preemptions;
    stats.recomputed_tokens = scheduler_.counters().recomputed_tokens;
  }

  const Clock& clock_;
  const EngineOptions asked_;
  const RecoverFn recover_;
  StepTrace trace_;     // engine's thread
  Executor* executor_;  // engine's thread
  mutable std::mutex config_mutex_;
  std::shared_ptr<const SchedulerConfig> config_;  // shared with callers that check a request; engine's thread writes
  const std::shared_ptr<Mailbox> mailbox_;         // shared with the callbacks of steps under way and the maker
  Scheduler scheduler_;                            // engine's thread, as what follows
  std::vector<Promise<bool>> drains_;
  Phase phase_ = Phase::kServing;
  std::optional<Replacement> current_;  // in every phase but kServing and kDead
  bool saving_ = false;                 // the maker saves what kSaving asked for
  std::deque<Replacement> replacements_;
  struct {
    size_t blocks = 0, late = 0;
    uint64_t lost = 0;
  } carried_;      // in kLoading
  KvSaved saved_;  // from the executor in service, in kSettling; else from the one before, while some come late
  int64_t paused_at_ns_ = 0;
  uint32_t losses_in_a_row_ = 0;
  std::thread maker_;
  bool transferring_ = false;  // mover_ is at work
  std::thread mover_;
  mutable std::mutex stats_mutex_;
  EngineMetrics metrics_;
  std::thread thread_;  // last: it uses the others
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(Executor& executor, const EngineOptions& options, const Clock& clock,
                                               RecoverFn recover, Trace* trace) {
  ASSIGN_OR_RETURN(const SchedulerConfig config, resolve_config(executor.describe(), options));
  return std::unique_ptr<Engine>(
      new Engine(std::make_unique<Impl>(executor, options, config, clock, std::move(recover), trace)));
}

uint32_t Engine::max_model_len() const { return impl_->config()->options.max_model_len; }
EngineOptions Engine::options() const { return impl_->config()->options; }

Result<RequestId> Engine::submit(Request request) {
  RETURN_IF_ERROR(check_request(*impl_->config(), request));
  return impl_->submit(std::move(request));
}

void Engine::abort(RequestId id) { impl_->mailbox().end(id, FinishReason::kAborted); }
void Engine::finish(RequestId id) { impl_->mailbox().end(id, FinishReason::kStop); }
Future<bool> Engine::drain() { return impl_->mailbox().drain(); }
Future<Status> Engine::replace(ReplaceFn make, std::vector<KvPoolDescription> pools) {
  return impl_->mailbox().replace({.make = std::move(make), .done = {}, .loss = {}, .pools = std::move(pools)});
}
Future<Status> Engine::between_steps(std::function<Status()> work) {
  const auto make = [work = std::move(work)]() -> Result<Executor*> {
    RETURN_IF_ERROR(work());
    return nullptr;
  };
  return impl_->mailbox().replace({.make = make, .done = {}, .loss = {}, .stays = true});
}
EngineStats Engine::stats() const { return impl_->stats(); }
Status Engine::health() const { return impl_->mailbox().health(); }
Status Engine::trouble() const { return impl_->trouble(); }

}  // namespace motley
