// How a driver runs steps.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/affinity.hpp"
#include "base/memory_patience.hpp"
#include "device/virtual_time.hpp"
#include "device/worker/worker_process.hpp"
#include "runtime/driver.hpp"

namespace motley {
namespace {

// Of one message between drivers; larger arrays go in runs of rows.
constexpr uint64_t kMessageBytes = 1u << 20;

size_t rows_at_once(size_t row_bytes) { return std::max<size_t>(1, kMessageBytes / std::max<size_t>(row_bytes, 1)); }

}  // namespace

// ---- the thread

void Driver::start(Events events) {
  events_ = std::move(events);
  thread_ = std::thread([this] { loop(); });
}

void Driver::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  waiter_.ring();
  if (thread_.joinable()) thread_.join();
}

Driver::~Driver() {
  stop();
  tell_copies();
  queue_.reset();  // waits for what is enqueued, while all that it reads is there
}

void Driver::push(std::shared_ptr<Flight> flight) {
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(flight));
  }
  waiter_.ring();
}

void Driver::abort(const Status& why) {
  if (links_.stage) links_.stage->abort(why);
  if (links_.receive_from) links_.receive_from->abort(why);
  for (const auto& way : links_.send_to) way->abort(why);
  for (const auto& way : links_.partners) way->abort(why);
}

// The next step, if it may begin now. False once there will be none.
bool Driver::next(std::shared_ptr<Flight>* flight) {
  std::lock_guard lock(mutex_);
  flight->reset();
  if (!waiting_.empty() && pending_.size() <= options_.steps_ahead) {
    *flight = std::move(waiting_.front());
    waiting_.pop_front();
  }
  return *flight != nullptr || !waiting_.empty() || !pending_.empty() || !stopping_;
}

void Driver::loop() {
  const MemoryPatience patience;  // a result that is there must reach the engine
  // A driver sleeps while its device works and the other way round: on the device's own core it takes nobody else's,
  // and is not kept waiting by another device's work.
  run_on(options_.cores);
  const VirtualTimeScope time(&virtual_ns_);
  std::shared_ptr<Flight> flight;
  while (next(&flight)) {
    if (flight != nullptr) {
      begin(std::move(flight));
      continue;
    }
    if (pending_.empty()) {
      waiter_.wait(kNoDeadline, clock_);
      continue;
    }
    Pending& oldest = pending_.front();
    const bool done = !oldest.programs || event_state({&device_.api(), oldest.programs.last().get()}).fired;
    // Woken by the event, or by a further step that may be enqueued behind this one.
    if (!done && oldest.watched && waiter_.wait(deadline_ns(*oldest.flight), system_clock())) continue;
    finish(oldest);
    pending_.pop_front();
  }
}

void Driver::begin(std::shared_ptr<Flight> flight) {
  virtual_ns_ = std::max(virtual_ns_, flight->submitted_ns);
  if (meets_) time_.begin();
  due_ns_ = deadline_ns(*flight);
  Pending pending;
  pending.set = std::exchange(next_set_, (next_set_ + 1) % (options_.steps_ahead + 1));
  if (const Status health = events_.health(); !health.ok() || flight->refused) {
    flight->fail(health);
  } else if (const Status status = play(*flight, pending.set); !status.ok()) {
    flight->fail(status);
    report(status, flight);
  }
  pending.flight = std::move(flight);
  pending.programs = std::move(running_);
  if (meets_) {
    finish(pending);
    return;
  }
  // Their copies go before the next step's programs, not behind them.
  for (const auto& [buffer, bytes] : results_of(*pending.flight, pending.set)) buffer->start_pull(queue_, bytes);
  if (pending.programs) pending.watched = waiter_.watch({&device_.api(), pending.programs.last().get()}).ok();
  pending_.push_back(std::move(pending));
  due_ns_ = INT64_MAX;
}

// A step's programs are enqueued; waits for them and hands in what came out.
void Driver::finish(Pending& pending) {
  Flight& flight = *pending.flight;
  running_ = std::move(pending.programs);
  others_failed_ = false;
  due_ns_ = deadline_ns(flight);
  Status status = settle(flight);
  if (status.ok() && flight.status().ok()) status = read_results(flight, pending.set);
  if (!status.ok()) flight.fail(status);
  report(status, pending.flight);
  due_ns_ = INT64_MAX;
  time_.end(system_clock().now_ns());
  leave(flight);
}

void Driver::report(const Status& why, std::shared_ptr<Flight> flight) {
  if (others_failed_) return events_.broken(why);
  if (!fatal(why)) return;
  stuck_.push_back(std::move(flight));
  events_.lost(*this, why);
}

void Driver::leave(Flight& flight) {
  if (flight.status().ok()) {
    std::lock_guard lock(mutex_);
    count(flight.plan, &totals_);
  }
  if (flight.leave(now_ns())) events_.finished(flight);
}

int64_t Driver::now_ns() const { return options_.virtual_time ? virtual_ns_ : clock_.now_ns(); }

bool Driver::fatal(const Status& status) const {
  return status.code() == MOTLEY_UNAVAILABLE || status.code() == MOTLEY_DEADLINE_EXCEEDED;
}

// ---- a step

// A program that fails does not end the step: the others count on this driver's part in every meeting.
Status Driver::play(Flight& flight, size_t set) {
  others_failed_ = false;
  if (shard_.role == ShardRole::kAttention && !flight.touches(shard_.section)) return ok_status();
  for (const TapeEntry& entry : tape_) {
    if (entry.op != TapeOp::kProgram) {
      RETURN_IF_ERROR(meet(entry, flight, set));
      continue;
    }
    RETURN_IF_ERROR(make_room(flight));
    const int64_t began_ns = running_ ? 0 : now_ns();
    auto event = entry.program.enqueue(flight.batch_of(shard_.section), set);
    if (event.ok()) {
      running_.add(*std::move(event), entry.program, began_ns, ++enqueued_);
      programs_ += 1, rows_ += flight.batch.rows;
    } else {
      if (!meets_ || fatal(event.error())) return event.error();
      flight.fail(event.error());
    }
  }
  return ok_status();
}

// A full queue refuses: what is in it is waited for.
Status Driver::make_room(Flight& flight) {
  if (options_.queue_depth == 0 || enqueued_ - ended_ < options_.queue_depth) return ok_status();
  const ProgramEvents* newest = running_ ? &running_ : nullptr;
  for (auto at = pending_.rbegin(); at != pending_.rend() && newest == nullptr; ++at)
    if (at->programs) newest = &at->programs;
  ended_ = enqueued_;
  if (newest == nullptr) return ok_status();
  const Status status = wait_for(newest->last(), flight);
  return fatal(status) ? status : ok_status();  // what else a program reports is heard of when its step is settled
}

// Until the work before the event has ended, as it says.
Status Driver::wait_for(const EventHandle& event, Flight& flight) {
  Status status = device_.wait(event, device_timeout_ns(flight));
  if (status.code() == MOTLEY_DEADLINE_EXCEEDED && device_.worker() != nullptr && device_.worker()->at_work()) {
    // It computes, on a machine that is short of cores: as long again, for which the others in a meeting wait.
    time_.waited(flight.limit_ns);
    due_ns_ = deadline_ns(flight);
    status = device_.wait(event, device_timeout_ns(flight));
  }
  if (status.code() == MOTLEY_DEADLINE_EXCEEDED)
    return error(MOTLEY_DEADLINE_EXCEEDED, "it did not finish a step in time");
  learn_times(event);
  return failure(status);
}

Status Driver::failure(const Status& status) const {
  if (status.code() == MOTLEY_RESOURCE_EXHAUSTED && options_.replaceable)
    return error(MOTLEY_UNAVAILABLE, "it has no memory for its programs: {}", status.message());
  return status;
}

Status Driver::meet(const TapeEntry& entry, Flight& flight, size_t set) {
  RETURN_IF_ERROR(settle(flight));
  if (!trace_.on()) return meet_others(entry, flight, set);
  const int64_t begin_ns = now_ns();
  const uint64_t moved = bytes_moved_;
  Status status = meet_others(entry, flight, set);
  trace_.meeting(entry.op, flight.plan.step, begin_ns, now_ns(), bytes_moved_ - moved);
  return status;
}

Status Driver::meet_others(const TapeEntry& entry, Flight& flight, size_t set) {
  switch (entry.op) {
    case TapeOp::kProgram: return ok_status();
    case TapeOp::kReceive: return receive(flight);
    case TapeOp::kReduce: return reduce(flight, *entry.buffer, entry.contributes);
    case TapeOp::kSend: return send(flight);
    case TapeOp::kPartner: return meet_partners(entry, flight);
    case TapeOp::kLogits: return exchange_logits(flight);
    case TapeOp::kTokens: return exchange_tokens(flight, set);
  }
  return ok_status();
}

// Waits for what is enqueued. Only a lost device is an error here; what a program reports fails the step alone.
Status Driver::settle(Flight& flight) {
  if (!running_) return ok_status();
  const ProgramEvents programs = std::exchange(running_, {});
  ended_ = std::max(ended_, programs.last_number());
  Status status = wait_for(programs.last(), flight);
  if (status.code() == MOTLEY_DEADLINE_EXCEEDED) return status;
  if (status.ok()) status = failure(programs.failed_before(device_));
  learn_busy(programs);
  trace_.programs(programs, flight.plan.step, flight.batch);
  if (status.ok()) return status;
  const Status named = status.annotate(options_.name);
  if (fatal(status) || !meets_) return named;
  flight.fail(named);
  return ok_status();
}

void Driver::learn_times(const EventHandle& event) {
  if (!options_.virtual_time) return;
  if (const auto times = device_.times(event); times.ok()) virtual_ns_ = std::max(virtual_ns_, times->end_ns);
}

// They have ended. What ran beside an earlier step's, or another lane's, counts once.
void Driver::learn_busy(const ProgramEvents& programs) { busy_ns_ += busy_->add(programs.began_ns(), now_ns()); }

// Of those nobody has waited for.
void Driver::tell_copies() {
  if (!trace_.on()) return;
  for (const auto& buffer : buffers_) buffer->tell_pushed();
}

int64_t Driver::deadline_ns(const Flight& flight) const {
  return time_.due_ns(flight.submitted_at_ns, flight.limit_ns);
}

uint64_t Driver::device_timeout_ns(const Flight& flight) const {
  if (flight.limit_ns == INT64_MAX) return UINT64_MAX;
  return static_cast<uint64_t>(std::max<int64_t>(0, deadline_ns(flight) - system_clock().now_ns()));
}

CommCall Driver::call(const Flight& flight) {
  CommCall call;
  if (flight.patience_ns != INT64_MAX) call.deadline_ns = system_clock().now_ns() + flight.patience_ns;
  if (options_.virtual_time) call.virtual_ns = &virtual_ns_;
  return call;
}

// ---- meetings

template <typename Meeting>
Status Driver::with_others(const Flight& flight, const Meeting& meeting) {
  due_ns_ = INT64_MAX;
  const int64_t came_ns = system_clock().now_ns();
  Status status = meeting();
  time_.waited(system_clock().now_ns() - came_ns);
  others_failed_ = !status.ok();
  due_ns_ = deadline_ns(flight);
  return status;
}

Status Driver::reduce(Flight& flight, HostBuffer& buffer, bool contributes) {
  const size_t count = size_t{flight.batch.rows} * model_.config().hidden;
  const uint64_t bytes = count * sizeof(float);
  if (contributes) {
    RETURN_IF_ERROR(buffer.pull(queue_, bytes, device_timeout_ns(flight), &virtual_ns_));
  } else {
    RETURN_IF_ERROR(buffer.acquire(device_timeout_ns(flight)));
  }
  RETURN_IF_ERROR(with_others(
      flight, [&] { return links_.stage->all_reduce(buffer.view<float>(count), contributes, call(flight)); }));
  bytes_moved_ += bytes;
  for (const std::string& device : links_.stage_devices)
    if (contributes) count_sent(device, bytes);
  return buffer.push(queue_, bytes);
}

// Two parts of one device have no link between them.
void Driver::count_sent(const std::string& device, uint64_t bytes) {
  if (const auto found = bytes_to_.find(device); found != bytes_to_.end()) found->second += bytes;
}

Status Driver::send_rows(Communicator& way, HostBuffer& buffer, uint64_t row_bytes, Flight& flight) {
  const uint64_t bytes = flight.batch.rows * row_bytes;
  const std::span<std::byte> all = buffer.view<std::byte>(bytes);
  const size_t step = rows_at_once(row_bytes) * row_bytes;
  for (size_t at = 0; at < bytes; at += step) {
    const std::span<std::byte> part = all.subspan(at, std::min(step, bytes - at));
    RETURN_IF_ERROR(with_others(flight, [&] { return way.send(1 - way.rank(), part, call(flight)); }));
  }
  bytes_moved_ += bytes;
  return ok_status();
}

Status Driver::receive_rows(Communicator& way, HostBuffer& buffer, uint64_t row_bytes, Flight& flight) {
  const uint64_t bytes = flight.batch.rows * row_bytes;
  RETURN_IF_ERROR(buffer.acquire(device_timeout_ns(flight)));
  const std::span<std::byte> all = buffer.view<std::byte>(bytes);
  const size_t step = rows_at_once(row_bytes) * row_bytes;
  for (size_t at = 0; at < bytes; at += step) {
    const std::span<std::byte> part = all.subspan(at, std::min(step, bytes - at));
    RETURN_IF_ERROR(with_others(flight, [&] { return way.recv(1 - way.rank(), part, call(flight)); }));
  }
  bytes_moved_ += bytes;
  return buffer.push(queue_, bytes);
}

Status Driver::receive(Flight& flight) {
  return receive_rows(*links_.receive_from, *residual_, model_.config().hidden * sizeof(float), flight);
}

Status Driver::send(Flight& flight) {
  const uint64_t row_bytes = model_.config().hidden * sizeof(float);
  RETURN_IF_ERROR(residual_->pull(queue_, flight.batch.rows * row_bytes, device_timeout_ns(flight), &virtual_ns_));
  for (size_t i = 0; i < links_.send_to.size(); ++i) {
    RETURN_IF_ERROR(send_rows(*links_.send_to[i], *residual_, row_bytes, flight));
    count_sent(links_.send_devices[i], flight.batch.rows * row_bytes);
  }
  return ok_status();
}

// Whether the step has to do with what that part keeps; both sides see it by the step itself.
bool Driver::meets(size_t partner, const Flight& flight) const {
  return shard_.role == ShardRole::kAttention || flight.touches(shard_.others[partner]);
}

Status Driver::meet_partners(const TapeEntry& entry, Flight& flight) {
  const size_t partners = links_.partners.size(), each = entry.takes.size() / partners;
  bool meets_any = false;
  for (size_t i = 0; i < partners; ++i) meets_any = meets_any || meets(i, flight);
  for (const TapeRows& rows : entry.gives)
    if (meets_any) rows.buffer->start_pull(queue_, flight.batch.rows * rows.bytes);
  for (const TapeRows& rows : entry.gives) {
    if (!meets_any) break;
    RETURN_IF_ERROR(rows.buffer->pull(queue_, flight.batch.rows * rows.bytes, device_timeout_ns(flight), &virtual_ns_));
    for (size_t i = 0; i < partners; ++i) {
      if (!meets(i, flight)) continue;
      RETURN_IF_ERROR(send_rows(*links_.partners[i], *rows.buffer, rows.bytes, flight));
      count_sent(links_.partner_devices[i], flight.batch.rows * rows.bytes);
    }
  }
  for (size_t i = 0; i < entry.takes.size(); ++i) {
    const TapeRows& rows = entry.takes[i];
    if (meets(i / each, flight)) {
      RETURN_IF_ERROR(receive_rows(*links_.partners[i / each], *rows.buffer, rows.bytes, flight));
    } else if (i % each + 1 == each) {
      RETURN_IF_ERROR(nothing_seen(*rows.buffer, rows.bytes, flight));
    }
  }
  return ok_status();
}

// In the place of what somebody makes of it to whom no row of the step has to go: his result is then not looked at.
Status Driver::nothing_seen(HostBuffer& log_sum_exps, uint64_t row_bytes, Flight& flight) {
  const uint64_t bytes = flight.batch.rows * row_bytes;
  RETURN_IF_ERROR(log_sum_exps.acquire(device_timeout_ns(flight)));
  const std::span<float> all = log_sum_exps.view<float>(bytes / sizeof(float));
  std::fill(all.begin(), all.end(), -std::numeric_limits<float>::infinity());
  return log_sum_exps.push(queue_, bytes);
}

void Driver::put_columns(std::span<const float> from, uint32_t rank, size_t row_begin, size_t rows) {
  const size_t vocab = model_.config().vocab_size;
  const std::span<float> to = all_logits_->view<float>(all_logits_->bytes() / sizeof(float));
  const float* read = from.data();
  for (size_t row = row_begin; row < row_begin + rows; ++row) {
    for (const UnitRange& range : links_.vocab[rank]) {
      const auto count = static_cast<size_t>(range.end - range.begin);
      std::copy_n(read, count, to.data() + row * vocab + static_cast<size_t>(range.begin));
      read += count;
    }
  }
}

Status Driver::exchange_logits(Flight& flight) {
  const size_t rows = flight.batch.head_row_count;
  const uint32_t own = links_.stage->rank();
  const auto width_of = [&](uint32_t rank) {
    size_t width = 0;
    for (const UnitRange& range : links_.vocab[rank]) width += static_cast<size_t>(range.end - range.begin);
    return width;
  };
  const size_t width = width_of(own);
  RETURN_IF_ERROR(own_logits_->pull(queue_, rows * width * sizeof(float), device_timeout_ns(flight), &virtual_ns_));
  const std::span<float> mine = own_logits_->view<float>(rows * width);
  if (own != links_.sampler) {
    const size_t step = rows_at_once(width * sizeof(float)) * width;
    for (size_t at = 0; at < mine.size(); at += step) {
      const auto part = std::as_bytes(mine.subspan(at, std::min(step, mine.size() - at)));
      RETURN_IF_ERROR(with_others(flight, [&] { return links_.stage->send(links_.sampler, part, call(flight)); }));
      bytes_moved_ += part.size();
      count_sent(links_.stage_devices[links_.sampler], part.size());
    }
    return ok_status();
  }
  RETURN_IF_ERROR(all_logits_->acquire(device_timeout_ns(flight)));
  put_columns(mine, own, 0, rows);
  std::vector<float> part;
  for (uint32_t rank = 0; rank < links_.vocab.size(); ++rank) {
    const size_t theirs = width_of(rank), step = rows_at_once(theirs * sizeof(float));
    if (rank == own || theirs == 0) continue;
    for (size_t row = 0; row < rows; row += step) {
      const size_t count = std::min(step, rows - row);
      part.resize(count * theirs);
      const std::span<std::byte> into = std::as_writable_bytes(std::span(part));
      RETURN_IF_ERROR(with_others(flight, [&] { return links_.stage->recv(rank, into, call(flight)); }));
      put_columns(part, rank, row, count);
      bytes_moved_ += part.size() * sizeof(float);
    }
  }
  return all_logits_->push(queue_, rows * model_.config().vocab_size * sizeof(float));
}

// The token of head row h stands in slot samples[h].out_slot of every shard that embeds before a later step reads it.
Status Driver::exchange_tokens(Flight& flight, size_t set) {
  const size_t rows = flight.batch.head_row_count;
  if (rows == 0) return ok_status();
  if (shard_.samples) {
    HostBuffer& ids = *results_[set].ids;
    RETURN_IF_ERROR(ids.pull(queue_, rows * sizeof(int32_t), device_timeout_ns(flight), &virtual_ns_));
    for (const uint32_t to : links_.embedders) {
      const auto all = std::as_bytes(ids.view<int32_t>(rows));
      RETURN_IF_ERROR(with_others(flight, [&] { return links_.stage->send(to, all, call(flight)); }));
      bytes_moved_ += rows * sizeof(int32_t);
      count_sent(links_.stage_devices[to], rows * sizeof(int32_t));
    }
    return ok_status();
  }
  std::vector<int32_t> ids(rows);
  const std::span<std::byte> into = std::as_writable_bytes(std::span(ids));
  RETURN_IF_ERROR(with_others(flight, [&] { return links_.stage->recv(links_.sampler, into, call(flight)); }));
  bytes_moved_ += rows * sizeof(int32_t);
  RETURN_IF_ERROR(slots_->acquire(device_timeout_ns(flight)));
  const std::span<int32_t> slots = slots_->view<int32_t>(options_.slots);
  for (size_t h = 0; h < rows; ++h) {
    const int32_t slot = flight.plan.samples[h].out_slot;
    if (slot >= 0) slots[static_cast<size_t>(slot)] = ids[h];
  }
  return slots_->push(queue_, slots_->bytes());
}

std::vector<std::pair<HostBuffer*, uint64_t>> Driver::results_of(const Flight& flight, size_t set) const {
  std::vector<std::pair<HostBuffer*, uint64_t>> read;
  const size_t rows = flight.batch.head_row_count;
  if (!shard_.samples || rows == 0) return read;
  const ResultSet& results = results_[set];
  read.emplace_back(results.ids.get(), rows * sizeof(int32_t));
  const auto& samples = flight.plan.samples;
  if (std::any_of(samples.begin(), samples.end(), [](const auto& s) { return s.top_logprobs >= 0; })) {
    read.emplace_back(results.logprobs.get(), rows * sizeof(float));
    for (HostBuffer* top : {results.top_ids.get(), results.top_logprobs.get()})
      read.emplace_back(top, rows * MOTLEY_TOP_MAX * sizeof(int32_t));
  }
  return read;
}

Status Driver::read_results(Flight& flight, size_t set) {
  if (!shard_.samples) return ok_status();
  ResultSet& results = results_[set];
  const size_t rows = flight.batch.head_row_count;
  const auto& samples = flight.plan.samples;
  for (const auto& [buffer, bytes] : results_of(flight, set))
    RETURN_IF_ERROR(buffer->pull(queue_, bytes, device_timeout_ns(flight), &virtual_ns_));
  const auto ids = results.ids->view<int32_t>(rows);
  flight.tokens.resize(rows);
  for (size_t h = 0; h < rows; ++h) {
    SampledToken& token = flight.tokens[h];
    token.id = ids[h];
    if (samples[h].top_logprobs < 0) continue;
    token.logprob = results.logprobs->view<float>(rows)[h];
    for (size_t k = 0; k < static_cast<size_t>(samples[h].top_logprobs); ++k) {
      const size_t at = h * MOTLEY_TOP_MAX + k;
      token.top.push_back({results.top_ids->view<int32_t>(rows * MOTLEY_TOP_MAX)[at],
                           results.top_logprobs->view<float>(rows * MOTLEY_TOP_MAX)[at]});
    }
  }
  return ok_status();
}

}  // namespace motley
