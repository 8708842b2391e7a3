#include "base/trace.hpp"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/memory_patience.hpp"

namespace motley {
namespace {

constexpr size_t kWriteBytes = 64u << 10;          // worth a write
constexpr std::chrono::milliseconds kLinger{200};  // how long less than that waits for company
constexpr std::string_view kHead = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";

// Text as a JSON string, quotes included; what is not UTF-8 is replaced.
void append_string(std::string* to, std::string_view text) {
  const auto plain = [](char c) { return c >= 0x20 && c < 0x7F && c != '"' && c != '\\'; };
  if (std::all_of(text.begin(), text.end(), plain)) {
    *to += '"';
    *to += text;
    *to += '"';
    return;
  }
  *to += nlohmann::json(std::string(text)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

// The format counts in microseconds; the fraction keeps the nanoseconds.
void append_us(std::string* to, int64_t ns) {
  const uint64_t magnitude = ns < 0 ? uint64_t{0} - static_cast<uint64_t>(ns) : static_cast<uint64_t>(ns);
  fmt::format_to(std::back_inserter(*to), "{}{}.{:03}", ns < 0 ? "-" : "", magnitude / 1000, magnitude % 1000);
}

std::string metadata_line(std::string_view what, TraceTrack track, std::string_view name) {
  std::string line =
      fmt::format(R"({{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"name":)", what, track.process, track.thread);
  append_string(&line, name);
  return line + "}}";
}

std::string order_line(std::string_view what, TraceTrack track, uint32_t place) {
  return fmt::format(R"({{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"sort_index":{}}}}})", what, track.process,
                     track.thread, place);
}

}  // namespace

Result<std::unique_ptr<Trace>> Trace::open(const std::string& path, const TraceOptions& options) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) {
    return error(MOTLEY_PERMISSION_DENIED, "{}: the trace cannot be written: {}; name another file", path,
                 std::strerror(errno));
  }
  std::unique_ptr<Trace> trace(new Trace(path, options, file));
  RETURN_IF_ERROR(trace->start());
  return trace;
}

Trace::Trace(std::string path, const TraceOptions& options, std::FILE* file)
    : path_(std::move(path)), options_(options), buffer_(kHead), file_(file) {}

Status Trace::start() {
  // Signals are for the threads that the program has chosen.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Status status;
  try {
    writer_ = std::thread([this] { write_loop(); });
  } catch (const std::system_error& refused) {
    std::fclose(file_);
    status = error(MOTLEY_RESOURCE_EXHAUSTED, "no thread to write the trace on: {}", refused.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return status;
}

Trace::~Trace() { (void)close(); }  // who wants to know has asked

TraceTrack Trace::track(std::string_view group, std::string_view name) {
  std::lock_guard lock(mutex_);
  auto found = groups_.find(group);
  if (found == groups_.end()) {
    const auto process = static_cast<uint32_t>(groups_.size() + 1);
    found = groups_.emplace(std::string(group), process).first;
    append(metadata_line("process_name", {process, 0}, group));
    append(order_line("process_sort_index", {process, 0}, process));
  }
  const auto [entry, added] = tracks_.try_emplace({found->second, std::string(name)},
                                                  TraceTrack{found->second, static_cast<uint32_t>(tracks_.size() + 1)});
  if (added) {
    append(metadata_line("thread_name", entry->second, name));
    append(order_line("thread_sort_index", entry->second, entry->second.thread));
  }
  return entry->second;
}

void Trace::span(TraceTrack track, std::string_view name, int64_t begin_ns, int64_t end_ns,
                 std::initializer_list<TraceArgument> arguments) {
  std::string line = R"({"ph":"X","name":)";
  append_string(&line, name);
  fmt::format_to(std::back_inserter(line), R"(,"pid":{},"tid":{},"ts":)", track.process, track.thread);
  append_us(&line, begin_ns);
  line += R"(,"dur":)";
  append_us(&line, std::max(end_ns, begin_ns) - begin_ns);
  line += R"(,"args":{)";
  for (const TraceArgument& argument : arguments) {
    if (&argument != arguments.begin()) line += ',';
    append_string(&line, argument.key);
    fmt::format_to(std::back_inserter(line), ":{}", argument.value);
  }
  line += "}}";
  std::lock_guard lock(mutex_);
  if (closing_) return;
  if (!failure_.ok() || buffer_.size() + line.size() > options_.buffer_bytes) {
    ++dropped_;
    return;
  }
  append(line);
}

// Under the lock.
void Trace::append(std::string_view line) {
  if (closing_) return;
  const size_t before = buffer_.size();
  if (events_++ > 0) buffer_ += ",\n";
  buffer_ += line;
  // The writer sleeps until there is something, and then until there is enough.
  if (before == 0 || (before < kWriteBytes && buffer_.size() >= kWriteBytes)) changed_.notify_one();
}

// Under the lock.
std::string Trace::ending() const {
  return fmt::format("\n],\"otherData\":{{\"clock\":\"{}\",\"events\":{},\"dropped_events\":{}}}}}\n",
                     options_.virtual_time ? "virtual" : "CLOCK_MONOTONIC", events_, dropped_);
}

void Trace::write_loop() {
  const MemoryPatience patience;  // what is traced shall not end for want of a line
  bool ended = false;
  std::string writing;
  while (!ended) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closing_ || !buffer_.empty(); });
      changed_.wait_for(lock, kLinger, [&] { return closing_ || buffer_.size() >= kWriteBytes; });
      writing.clear();
      writing.swap(buffer_);
      ended = closing_;
      if (ended) writing += ending();
    }
    errno = 0;
    bool written = std::fwrite(writing.data(), 1, writing.size(), file_) == writing.size() && std::fflush(file_) == 0;
    int why = errno;
    if (ended && std::fclose(file_) != 0) {
      written = false;
      why = errno;
    }
    if (written) continue;
    std::lock_guard lock(mutex_);
    if (failure_.ok()) {
      failure_ = error(MOTLEY_RESOURCE_EXHAUSTED, "{}: the trace could not be written to its end: {}; free some space",
                       path_, std::strerror(why));
    }
  }
}

Status Trace::close() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_one();
  std::lock_guard joining(close_mutex_);
  if (writer_.joinable()) writer_.join();
  std::lock_guard lock(mutex_);
  return failure_;
}

uint64_t Trace::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

}  // namespace motley
