// What stands behind the ABI's handles.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "kit/arithmetic.hpp"
#include "kit/budget.hpp"
#include "kit/kv.hpp"
#include "kit/program.hpp"
#include "kit/queue.hpp"
#include "kit/team.hpp"

struct motley_device {
  motley_device(std::unique_ptr<motley::kit::Kernels> kernels_in, const motley::kit::OpenOptions& options);
  // Runs one program on the team; one at a time. A stream that runs ahead is only given it.
  void run(const motley::kit::Program& program, const motley::kit::RunArgs& args);
  // A program of so many rows and floating-point operations has ended.
  void ran(uint64_t row_count, double flop_count, const motley::kit::Outcome& outcome);
  // A queue goes; nothing of it is unfinished.
  void forget(const motley::kit::Stream* stream);
  // Throws once the device is lost. `lose` is of an error after which nothing works there.
  void check_alive() const;
  void lose(const char* text);

  std::unique_ptr<motley::kit::Kernels> kernels;
  const motley::kit::KernelTable table;
  motley::kit::Budget budget;
  motley::kit::Memory& memory;
  motley::kit::Team team;
  std::atomic<uint32_t> queues{0};
  std::atomic<uint64_t> programs{0}, rows{0}, bytes_copied{0}, busy_ns{0};
  std::atomic<double> flops{0};
  std::atomic<bool> lost{false};

 private:
  void make_room(uint64_t bytes);
  std::mutex running_;
  motley::kit::Stream* last_stream_ = nullptr;  // that ran a program
  mutable std::mutex lost_mutex_;
  std::string lost_text_;
  motley::kit::Allocation workspace_;  // shared by all programs, grown on demand
  motley::kit::Share workspace_share_;
};

struct motley_queue {
  explicit motley_queue(motley_device* owner)
      : device(owner),
        stream(owner->memory.stream()),
        queue(std::make_unique<motley::kit::Queue>(
            std::vector<int>{owner->team.home_cores().begin(), owner->team.home_cores().end()},
            owner->memory.runs_ahead())) {}
  ~motley_queue() {
    queue.reset();
    device->forget(stream.get());
  }
  motley_device* device;
  std::unique_ptr<motley::kit::Stream> stream;
  std::unique_ptr<motley::kit::Queue> queue;  // its worker uses the stream
};

struct motley_buffer {
  motley_device* device = nullptr;
  motley::kit::Allocation own;
  motley::kit::Share share;
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};

struct motley_weight {
  motley_device* device = nullptr;
  std::unique_ptr<motley::kit::Weight> weight;
  motley::kit::Share share;
};

struct motley_kv {
  motley_kv(motley_device* owner, const motley::kit::KvShape& shape)
      : device(owner),
        share(owner->budget, shape.bytes_total, "a KV pool"),
        memory(shape, owner->kernels->kv_order(), owner->memory) {}
  motley_device* device;
  motley::kit::Share share;
  motley::kit::KvMemory memory;
};

struct motley_programs {
  motley_programs(motley_device* owner, motley::kit::Arithmetic counted, motley::kit::CheckedSegment segment,
                  uint32_t bucket_count)
      : device(owner), arithmetic(std::move(counted)), program(std::move(segment)), buckets(bucket_count) {}
  motley_device* device;
  motley::kit::Arithmetic arithmetic;  // of the segment as it was given
  motley::kit::Program program;
  int64_t vocab = 0;
  uint32_t buckets;
};
