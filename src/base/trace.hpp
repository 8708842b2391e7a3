// Trace: a file of what ran when, for people: Chrome's JSON trace event format, which ui.perfetto.dev opens.
//
// Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. One event per line, so that
// a reader can stream a file of any size; the object is whole JSON once the trace is closed. docs/tracing.md says what
// Motley's tracks mean. Whoever may trace holds a Trace*, null where nothing is traced.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "base/status.hpp"

namespace motley {

struct TraceOptions {
  bool virtual_time = false;       // the times of its spans are virtual; else CLOCK_MONOTONIC's
  size_t buffer_bytes = 4u << 20;  // what waits for the disk at most; spans beyond it are dropped, and counted
};

// A row of the picture. A value; of the Trace that gave it.
struct TraceTrack {
  uint32_t process = 0, thread = 0;
};

struct TraceArgument {
  std::string_view key;
  int64_t value;
};

// Thread-safe. A span costs a formatted line under a lock; a thread of the trace's own writes, so that no caller waits
// for the disk.
class Trace {
 public:
  // Replaces the file. PERMISSION_DENIED with the system's reason where it cannot be written.
  static Result<std::unique_ptr<Trace>> open(const std::string& path, const TraceOptions& options = {});
  ~Trace();  // closes

  bool virtual_time() const { return options_.virtual_time; }
  // The track `name` in the group `group`; the same for the same names. Never dropped. Groups stand in the order in
  // which they came.
  TraceTrack track(std::string_view group, std::string_view name);
  // Work from begin_ns to end_ns (taken as begin_ns if earlier). Spans of one track do not overlap, or they nest.
  void span(TraceTrack track, std::string_view name, int64_t begin_ns, int64_t end_ns,
            std::initializer_list<TraceArgument> arguments);
  // Writes what is left and makes the file whole; what comes later is ignored. Any thread, any number of times. The
  // first failure to write, with the file's name.
  Status close();
  uint64_t dropped() const;

 private:
  Trace(std::string path, const TraceOptions& options, std::FILE* file);
  Status start();
  void write_loop();
  void append(std::string_view line);
  std::string ending() const;

  const std::string path_;
  const TraceOptions options_;
  mutable std::mutex mutex_;  // guards what follows, up to the thread
  std::condition_variable changed_;
  std::string buffer_;  // whole lines
  bool closing_ = false;
  uint64_t events_ = 0, dropped_ = 0;
  std::map<std::string, uint32_t, std::less<>> groups_;
  std::map<std::pair<uint32_t, std::string>, TraceTrack> tracks_;
  Status failure_;
  std::FILE* file_;         // the writing thread's; closed by it
  std::mutex close_mutex_;  // of those who join
  std::thread writer_;
};

}  // namespace motley
