// SAMPLE: docs/contracts/sampling.md is the specification; section numbers below are its. Several blocks of threads
// look for a row's largest logit, of few rows; the last of them does the rest, going over the row a few times where it
// must. Sums that decide are integers, so their order does not matter. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cfloat>

#include "cuda/launch.cuh"
#include "kit/noise.hpp"

namespace motley::cuda {

namespace {

constexpr int kRowThreads = 1024;
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kPartsMax = 16;          // blocks of a row
constexpr int64_t kPartLeast = 4096;   // logits of a block, where a row has several
constexpr float kGreedyBelow = 1e-5f;  // temperatures below count as 0
constexpr int kBins = 2048;
constexpr float kBinsOfOne = 64;  // bins of a unit of y, which is at most 0
constexpr int kPartBits = 12;     // of a mass, which is added up in three parts of 32 bits:
constexpr uint32_t kPartMask = (1u << kPartBits) - 1;
constexpr float kMassOfOne = 68719476736.0f;    // 2^36; 2^19 such can be in a bin
constexpr uint32_t kNotReplaced = 0xffffffffu;  // as a float: a NaN that no computation gives
constexpr int kListMax = 1536;                  // of a bin, that are looked at one against the other
constexpr double kLn2 = 0.69314718055994530942;

__device__ float clean(float x) { return x <= FLT_MAX ? x : (x > FLT_MAX ? FLT_MAX : -INFINITY); }  // +inf; else NaN
// Ascends with the value; equal for equal values.
__device__ uint32_t key_of(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct Best {
  float value = -INFINITY;
  int32_t id = 0;
};
__device__ bool better(const Best& a, const Best& b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }

// What is kept: all above the key, and of equals the ids up to this one.
struct Cut {
  uint32_t key = 0;
  int32_t id = INT32_MAX;
  __device__ bool keeps(uint32_t k, int32_t i) const { return k > key || (k == key && i <= id); }
};

struct Arrival {
  double time = INFINITY;
  int32_t id = INT32_MAX;
};
__device__ bool earlier(const Arrival& a, const Arrival& b) { return a.time != b.time ? a.time < b.time : a.id < b.id; }

struct Shared {
  uint32_t count[kBins];
  uint32_t mass[3][kBins];
  Best best[kRowWarps];
  Arrival arrival[kRowWarps];
  double sum[kRowWarps];
  // What find() found: a bin, and what lies before and in it.
  int bin;
  uint32_t before_count, bin_count;
  unsigned long long before_mass, bin_mass;
  double want_mass;
  uint32_t listed;
  Best list[kListMax];
  Cut cut;
  bool last;
};

struct Sampling {
  DeviceBatch batch;
  float* logits;
  int32_t* slots;
  int64_t vocab;
  int32_t* ids;
  float* logprobs;
  int32_t* top_ids;
  float* top_logprobs;
  Best* bests;       // [rows][parts]: the largest logit of each part, where there are several
  int32_t* arrived;  // zero before and after: rows, then blocks of each row that has several
};

class RowSampler {
 public:
  __device__ RowSampler(const Sampling& a, Shared& s)
      : a_(a),
        s_(s),
        h_(blockIdx.x),
        spec_(a.batch.samples[h_]),
        row_(a.logits + h_ * a.vocab),
        vocab_(static_cast<int32_t>(a.vocab)) {}

  __device__ void run() {
    Best raw;
    if (!find_largest(&raw)) return;
    raw_statistics(raw.value);
    const bool changed = adjust();
    Best best = changed ? argmax(0, vocab_) : raw;
    if (spec_.temperature >= kGreedyBelow && best.value > -INFINITY) best.id = draw(best.value);
    if (changed) restore();
    if (threadIdx.x == 0) {
      a_.ids[h_] = best.id;
      if (a_.logprobs) a_.logprobs[h_] = spec_.top_logprobs >= 0 ? logprob(row_[best.id]) : 0.0f;
    }
    if (a_.slots && is_last(a_.arrived, gridDim.x)) fill_slots();
  }

 private:
  // A thread's ids ascend. begin: a multiple of four.
  template <class F>
  __device__ void each(int32_t begin, int32_t end, F f) const {
    if (vocab_ % 4 == 0 && reinterpret_cast<uintptr_t>(row_) % sizeof(float4) == 0) {
#pragma unroll 4
      for (int32_t i = begin + 4 * threadIdx.x; i < end; i += 4 * kRowThreads) {
        const float4 x = *reinterpret_cast<const float4*>(row_ + i);
        f(i, clean(x.x)), f(i + 1, clean(x.y)), f(i + 2, clean(x.z)), f(i + 3, clean(x.w));
      }
      return;
    }
#pragma unroll 4
    for (int32_t i = begin + threadIdx.x; i < end; i += kRowThreads) f(i, clean(row_[i]));
  }
  template <class F>
  __device__ void each(F f) const {
    each(0, vocab_, f);
  }

  // ---- of all blocks ----

  // Whether this is the last of `all` blocks to come here; it sees what the others wrote before.
  __device__ bool is_last(int32_t* arrived, unsigned all) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      s_.last = atomicAdd(arrived, 1) == static_cast<int32_t>(all) - 1;
      if (s_.last) *arrived = 0;
      __threadfence();
    }
    __syncthreads();
    return s_.last;
  }
  // The row's largest logit; false: another block goes on with the row.
  __device__ bool find_largest(Best* raw) const {
    const auto parts = static_cast<int32_t>(gridDim.y), part = static_cast<int32_t>(blockIdx.y);
    const int32_t each_part = ((vocab_ + parts - 1) / parts + 3) / 4 * 4;
    *raw = argmax(min(vocab_, part * each_part), min(vocab_, (part + 1) * each_part));
    if (parts == 1) return true;
    Best* const bests = a_.bests + h_ * parts;
    if (threadIdx.x == 0) bests[part] = *raw;
    if (!is_last(a_.arrived + 1 + h_, gridDim.y)) return false;
    Best one{-INFINITY, INT32_MAX};
    if (const auto p = static_cast<int32_t>(threadIdx.x); p < parts)
      one = {__ldcg(&bests[p].value), __ldcg(&bests[p].id)};
    *raw = choose(one, s_.best, better);
    return true;
  }
  // §7: every pending slot has been read.
  __device__ void fill_slots() const {
    for (unsigned h = threadIdx.x; h < gridDim.x; h += kRowThreads) {
      const int32_t slot = a_.batch.samples[h].out_slot;
      if (slot >= 0) a_.slots[slot] = __ldcg(a_.ids + h);
    }
  }

  // ---- of all threads ----

  template <class T, class Wins>
  __device__ T choose(T mine, T* warps, Wins wins) const {
    static_assert(sizeof(T) % 4 == 0);
    const auto other = [](const T& x, int apart) {
      T y;
      const auto* from = reinterpret_cast<const uint32_t*>(&x);
      auto* to = reinterpret_cast<uint32_t*>(&y);
#pragma unroll
      for (size_t i = 0; i < sizeof(T) / 4; ++i) to[i] = __shfl_xor_sync(0xffffffffu, from[i], apart);
      return y;
    };
    for (int apart = kWarp / 2; apart > 0; apart /= 2) {
      const T theirs = other(mine, apart);
      if (wins(theirs, mine)) mine = theirs;
    }
    __syncthreads();
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = mine;
    __syncthreads();
    for (int w = 0; w < kRowWarps; ++w)
      if (wins(warps[w], mine)) mine = warps[w];
    return mine;
  }
  template <class T>
  __device__ T add_up(T mine, T* warps) const {
    for (int apart = kWarp / 2; apart > 0; apart /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, apart);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = mine;
    __syncthreads();
    T all = 0;
    for (int w = 0; w < kRowWarps; ++w) all += warps[w];
    return all;
  }

  __device__ Best argmax(int32_t begin, int32_t end) const {
    Best best{-INFINITY, begin};
    each(begin, end, [&](int32_t i, float x) {
      if (x > best.value) best = {x, i};  // ids ascend
    });
    return choose(best, s_.best, better);
  }

  // ---- §1 ----

  __device__ float logprob(float x) const { return static_cast<float>(clean(x) - log_sum_); }
  __device__ void raw_statistics(float largest) {
    const int32_t want = min(spec_.top_logprobs, vocab_);
    for (int i = threadIdx.x; i < MOTLEY_TOP_MAX; i += kRowThreads) {
      if (a_.top_ids) a_.top_ids[h_ * MOTLEY_TOP_MAX + i] = MOTLEY_NONE;
      if (a_.top_logprobs) a_.top_logprobs[h_ * MOTLEY_TOP_MAX + i] = -INFINITY;
    }
    if (want < 0) return;
    log_sum_ = 0;
    if (largest > -INFINITY) {
      double sum = 0;
      each([&](int32_t, float x) { sum += expf(x - largest); });
      log_sum_ = largest + log(add_up(sum, s_.sum));
    }
    if (want == 0 || (!a_.top_ids && !a_.top_logprobs)) return;
    largest_ = largest > -INFINITY ? largest : 0, temperature_ = 1;
    const Cut cut =
        want < vocab_ ? select([](uint32_t, int32_t, float) { return true; }, static_cast<uint32_t>(want), -1) : Cut();
    __syncthreads();
    if (threadIdx.x == 0) s_.listed = 0;
    __syncthreads();
    each([&](int32_t i, float x) {
      if (cut.keeps(key_of(x), i)) s_.list[atomicAdd(&s_.listed, 1u)] = {x, i};
    });
    __syncthreads();
    if (threadIdx.x >= s_.listed) return;
    const Best mine = s_.list[threadIdx.x];
    int rank = 0;
    for (uint32_t i = 0; i < s_.listed; ++i) rank += better(s_.list[i], mine);
    if (a_.top_ids) a_.top_ids[h_ * MOTLEY_TOP_MAX + rank] = mine.id;
    if (a_.top_logprobs) a_.top_logprobs[h_ * MOTLEY_TOP_MAX + rank] = logprob(mine.value);
  }

  // ---- §2 and §3: in place; what was there before is kept aside ----

  __device__ int32_t pending_token(uint32_t i) const {
    const int32_t id = a_.slots ? a_.slots[a_.batch.pending[i]] : -1;
    if (id >= 0 && id < vocab_) return id;
    report(a_.batch.fault, Fault::kPending);
    return -1;
  }
  __device__ int32_t times_pending(int32_t id, uint32_t end) const {
    int32_t times = 0;
    for (uint32_t i = spec_.pending_begin; i < end; ++i) times += pending_token(i) == id;
    return times;
  }
  __device__ void penalise(int32_t id, int32_t in_output) {
    float x = row_[id];
    if (spec_.repetition_penalty != 1.0f) x = x > 0 ? x / spec_.repetition_penalty : x * spec_.repetition_penalty;
    x -= spec_.frequency_penalty * static_cast<float>(in_output);
    if (in_output > 0) x -= spec_.presence_penalty;
    row_[id] = x;
  }
  __device__ bool penalises() const {
    return spec_.repetition_penalty != 1.0f || spec_.frequency_penalty != 0.0f || spec_.presence_penalty != 0.0f;
  }
  __device__ float* replaced_by_count(uint32_t i) const { return a_.batch.replaced + a_.batch.biases_room + i; }
  __device__ float* replaced_by_pending(uint32_t i) const {
    return a_.batch.replaced + a_.batch.biases_room + a_.batch.counts_room + i;
  }
  __device__ bool adjust() {
    const DeviceBatch& b = a_.batch;
    const bool biased = spec_.biases_end > spec_.biases_begin;
    if (!biased && !penalises()) return false;
    __syncthreads();
    for (uint32_t i = spec_.biases_begin + threadIdx.x; i < spec_.biases_end; i += kRowThreads) {
      b.replaced[i] = row_[b.biases[i].id];
      row_[b.biases[i].id] += b.biases[i].bias;
    }
    __syncthreads();
    if (!penalises()) return true;
    for (uint32_t i = spec_.counts_begin + threadIdx.x; i < spec_.counts_end; i += kRowThreads) {
      const motley_token_count c = b.counts[i];
      const int32_t in_output = c.in_output + times_pending(c.id, spec_.pending_end);
      *replaced_by_count(i) = row_[c.id];
      if (c.in_prompt || in_output > 0) penalise(c.id, in_output);
    }
    for (uint32_t i = spec_.pending_begin; i < spec_.pending_end; ++i) {
      const int32_t id = pending_token(i);
      bool counted = id < 0 || times_pending(id, i) > 0;
      for (uint32_t k = spec_.counts_begin + threadIdx.x; k < spec_.counts_end; k += kRowThreads)
        counted = counted || b.counts[k].id == id;
      counted = __syncthreads_or(counted);
      if (threadIdx.x > 0) continue;
      *replaced_by_pending(i) = counted ? __uint_as_float(kNotReplaced) : row_[id];
      if (!counted) penalise(id, times_pending(id, spec_.pending_end));
    }
    __syncthreads();
    return true;
  }
  __device__ void restore() {
    const DeviceBatch& b = a_.batch;
    __syncthreads();
    if (penalises()) {
      for (uint32_t i = spec_.counts_begin + threadIdx.x; i < spec_.counts_end; i += kRowThreads)
        row_[b.counts[i].id] = *replaced_by_count(i);
      for (uint32_t i = spec_.pending_begin + threadIdx.x; i < spec_.pending_end; i += kRowThreads)
        if (__float_as_uint(*replaced_by_pending(i)) != kNotReplaced) row_[pending_token(i)] = *replaced_by_pending(i);
    }
    __syncthreads();
    for (uint32_t i = spec_.biases_begin + threadIdx.x; i < spec_.biases_end; i += kRowThreads)
      row_[b.biases[i].id] = b.replaced[i];
    __syncthreads();
  }

  // ---- choosing by rank or by mass ----

  // §4: y = (x - max) / temperature, at most 0.
  __device__ float scaled(float x) const {
    const float apart = x - largest_;
    return temperature_ == 1.0f ? apart : apart / temperature_;
  }
  __device__ static int bin_of(float y) { return min(kBins - 1, static_cast<int>(-y * kBinsOfOne)); }
  __device__ static unsigned long long mass_of(float y) { return __float2ull_rn(expf(y) * kMassOfOne); }

  // Counts (and weighs) what f puts into bins; by the first warp, the bin in which the wanted count or mass is reached:
  // this mass or, if a share is given, this part of all of it. Where it is not reached, bin -1.
  template <class F>
  __device__ void find(int bins, uint32_t want_count, double want_mass, F f, double share = -1) {
    __syncthreads();
    for (int i = threadIdx.x; i < bins; i += kRowThreads)
      s_.count[i] = s_.mass[0][i] = s_.mass[1][i] = s_.mass[2][i] = 0;
    __syncthreads();
    each([&](int32_t i, float x) {
      const float y = scaled(x);
      const int bin = f(i, x, y);
      if (bin < 0) return;
      atomicAdd(&s_.count[bin], 1u);
      if (want_mass < 0) return;
      const unsigned long long mass = mass_of(y);
#pragma unroll
      for (int part = 0; part < 3; ++part)
        atomicAdd(&s_.mass[part][bin],
                  static_cast<uint32_t>(mass >> (part * kPartBits)) & (part < 2 ? kPartMask : ~0u));
    });
    __syncthreads();
    if (threadIdx.x < kWarp) search(bins / kWarp, want_count, want_mass, share);
    __syncthreads();
  }
  __device__ unsigned long long mass_in(int bin) const {
    return s_.mass[0][bin] + (static_cast<unsigned long long>(s_.mass[1][bin]) << kPartBits) +
           (static_cast<unsigned long long>(s_.mass[2][bin]) << (2 * kPartBits));
  }
  __device__ void search(int each_lane, uint32_t want_count, double want_mass, double share) {
    const int lane = threadIdx.x, first = lane * each_lane;
    uint32_t count = 0;
    unsigned long long mass = 0;
    for (int i = first; i < first + each_lane; ++i) count += s_.count[i], mass += mass_in(i);
    uint32_t before_count = 0;
    unsigned long long before_mass = 0, all_mass = 0;
    for (int l = 0; l < kWarp; ++l) {
      const uint32_t c = __shfl_sync(0xffffffffu, count, l);
      const unsigned long long m = __shfl_sync(0xffffffffu, mass, l);
      if (l < lane) before_count += c, before_mass += m;
      all_mass += m;
    }
    if (share >= 0) want_mass = share * static_cast<double>(all_mass);
    if (lane == 0) s_.want_mass = want_mass;
    const auto reached = [&](uint32_t c, unsigned long long m) {
      return want_mass >= 0 ? m > 0 && static_cast<double>(before_mass + m) >= want_mass
                            : before_count + c >= want_count;
    };
    const uint32_t lanes = __ballot_sync(0xffffffffu, reached(count, mass));
    if (lanes == 0) {
      if (lane == 0) s_.bin = -1;
      return;
    }
    if (lane != __ffs(static_cast<int>(lanes)) - 1) return;
    int i = first;
    while (!reached(s_.count[i], mass_in(i))) before_count += s_.count[i], before_mass += mass_in(i), ++i;
    s_.bin = i, s_.before_count = before_count, s_.before_mass = before_mass;
    s_.bin_count = s_.count[i], s_.bin_mass = mass_in(i);
  }

  // Of those that `in` takes, best first: the first `want_count`, or (where share >= 0) as many as it takes to reach
  // that share of their mass.
  template <class In>
  __device__ Cut select(In in, uint32_t want_count, double share) {
    find(
        kBins, want_count, share >= 0 ? 0 : -1,
        [&](int32_t i, float x, float y) { return in(key_of(x), i, y) ? bin_of(y) : -1; }, share);
    if (s_.bin < 0) return Cut();
    return s_.bin_count <= kListMax ? select_listed(in, want_count, s_.want_mass)
                                    : select_in_bin(in, want_count, s_.want_mass);
  }

  // The end of select() where the bin that find() found has few.
  template <class In>
  __device__ Cut select_listed(In in, uint32_t want_count, double want_mass) {
    __syncthreads();
    if (threadIdx.x == 0) s_.listed = 0;
    __syncthreads();
    each([&](int32_t i, float x) {
      const float y = scaled(x);
      if (bin_of(y) == s_.bin && in(key_of(x), i, y)) s_.list[atomicAdd(&s_.listed, 1u)] = {x, i};
    });
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < s_.listed; k += kRowThreads) {
      const Best mine = s_.list[k];
      uint32_t count = s_.before_count;
      unsigned long long mass = s_.before_mass;
      for (uint32_t i = 0; i < s_.listed; ++i) {
        if (!better(s_.list[i], mine)) continue;
        ++count;
        if (want_mass >= 0) mass += mass_of(scaled(s_.list[i].value));
      }
      const auto before = static_cast<double>(mass);
      const bool last = want_mass < 0 ? count + 1 == want_count
                                      : (count == 0 || before < want_mass) &&
                                            static_cast<double>(mass + mass_of(scaled(mine.value))) >= want_mass;
      if (last) s_.cut = {key_of(mine.value), mine.id};
    }
    __syncthreads();
    return s_.cut;
  }

  // The same for a bin of any size, by the digits of value and id.
  template <class In>
  __device__ Cut select_in_bin(In in, uint32_t want_count, double want_mass) {
    const int bin = s_.bin;
    uint32_t key = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      const uint32_t count = want_count - s_.before_count;
      const double mass = want_mass >= 0 ? want_mass - static_cast<double>(s_.before_mass) : -1;
      want_count = count, want_mass = mass >= 0 || want_mass < 0 ? mass : 0;
      find(256, want_count, want_mass, [&](int32_t i, float x, float y) {
        const uint32_t k = key_of(x);
        const bool mine = bin_of(y) == bin && (shift == 24 || k >> (shift + 8) == key >> (shift + 8)) && in(k, i, y);
        return mine ? static_cast<int>(255 - (k >> shift & 255)) : -1;
      });
      if (s_.bin < 0) return Cut();
      key |= static_cast<uint32_t>(255 - s_.bin) << shift;
    }
    // Of equals the lower ids.
    const uint32_t equal = s_.bin_count;
    uint32_t keep = want_count - s_.before_count;
    if (want_mass >= 0) {
      const double more = want_mass - static_cast<double>(s_.before_mass),
                   one = static_cast<double>(s_.bin_mass) / equal;
      keep = static_cast<uint32_t>(fmin(fmax(ceil(more / one), 1.0), static_cast<double>(equal)));
    }
    if (keep >= equal) return {key, INT32_MAX};
    int32_t id = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      find(256, keep, -1, [&](int32_t i, float x, float y) {
        const bool mine = key_of(x) == key && (shift == 24 || i >> (shift + 8) == id >> (shift + 8)) && in(key, i, y);
        return mine ? i >> shift & 255 : -1;
      });
      id |= s_.bin << shift;
      keep -= s_.before_count;
    }
    return {key, id};
  }

  // ---- §5 and §6 ----

  __device__ int32_t draw(float largest) {
    largest_ = largest, temperature_ = spec_.temperature;
    const float floor = spec_.min_p > 0 ? static_cast<float>(log(static_cast<double>(spec_.min_p))) : -INFINITY;
    Cut kept;
    if (spec_.top_k > 0 && spec_.top_k < vocab_)
      kept = select([](uint32_t, int32_t, float) { return true; }, static_cast<uint32_t>(spec_.top_k), -1);
    if (spec_.top_p < 1.0f) {
      const auto in = [=](uint32_t k, int32_t i, float y) { return kept.keeps(k, i) && y >= floor && y > -INFINITY; };
      kept = select(in, 0, static_cast<double>(spec_.top_p));
    }
    return race(kept, floor);
  }

  // The smallest arrival time -ln(u) / exp(y) wins; of equals the lower id.
  __device__ int32_t race(const Cut& kept, float floor) const {
    const kit::Noise noise(spec_.seed, spec_.choice, spec_.position, kit::kNoiseToken);
    Arrival first;
    double log_time = INFINITY;  // of the warp's first
    for (int32_t round = 0; round * 4 < vocab_; round += kRowThreads) {
      const int32_t quad = round + static_cast<int32_t>(threadIdx.x);
      float y[4];
      bool any = false;
      for (int j = 0; j < 4; ++j) {
        const int32_t id = quad * 4 + j;
        const float x = id < vocab_ ? clean(row_[id]) : -INFINITY;
        y[j] = scaled(x);
        if (!(y[j] > -INFINITY && y[j] >= floor && kept.keeps(key_of(x), id))) y[j] = -INFINITY;
        any = any || y[j] > -INFINITY;
      }
      if (!__any_sync(0xffffffffu, any)) continue;
      const std::array<uint32_t, 4> words = noise.words(static_cast<uint32_t>(quad));
      bool sooner = false;
      for (int j = 0; j < 4; ++j) {
        // -ln(u) >= 1 - u > 2^-(leading ones + 1): an entrant whose bound already loses needs no logarithm.
        if (y[j] == -INFINITY || y[j] + log_time < -kLn2 * (__clz(static_cast<int>(~words[j])) + 1)) continue;
        const Arrival mine{-log(kit::noise_uniform(words[j])) * exp(-static_cast<double>(y[j])), quad * 4 + j};
        if (!earlier(mine, first)) continue;
        first = mine;
        sooner = true;
      }
      if (!__any_sync(0xffffffffu, sooner)) continue;
      double time = first.time;
      for (int apart = kWarp / 2; apart > 0; apart /= 2) time = fmin(time, __shfl_xor_sync(0xffffffffu, time, apart));
      log_time = log(time) + 1e-9;
    }
    return choose(first, s_.arrival, earlier).id;
  }

  const Sampling& a_;
  Shared& s_;
  const int64_t h_;
  const motley_sample_row spec_;
  float* const row_;
  const int32_t vocab_;
  double log_sum_ = 0;
  float largest_ = 0, temperature_ = 1;
};

__global__ void __launch_bounds__(kRowThreads) sample_rows(const __grid_constant__ Sampling a) {
  __shared__ Shared shared;
  wait_for_earlier(false);
  RowSampler(a, shared).run();
}

// Blocks of each of so many rows: as many as keep the GPU busy.
int32_t parts_of(int32_t rows, int64_t vocab, int processors) {
  const int64_t most = std::min<int64_t>(kPartsMax, vocab / kPartLeast);
  return static_cast<int32_t>(std::clamp<int64_t>(processors / rows, 1, std::max<int64_t>(most, 1)));
}

}  // namespace

int64_t sample_scratch(int processors) { return processors * static_cast<int64_t>(sizeof(Best)); }

void sample(const kit::OpCall& call) {
  const auto rows = static_cast<int32_t>(call.in[0].rows);
  if (rows == 0) return;
  const CudaStream& stream = stream_of(call);
  bool to_slots = false;
  for (int32_t h = 0; h < rows; ++h) to_slots = to_slots || call.batch->samples[h].out_slot >= 0;
  if (to_slots && !call.in[1].data)
    call.fail(MOTLEY_INVALID_ARGUMENT, "SAMPLE: a row names a slot, but the op has no slots");
  const int32_t parts = parts_of(rows, call.in[0].width, stream.processors());
  const Sampling a{stream.batch(),
                   call.in[0].f32(),
                   static_cast<int32_t*>(call.in[1].data),
                   call.in[0].width,
                   call.out[0].i32(),
                   static_cast<float*>(call.out[1].data),
                   static_cast<int32_t*>(call.out[2].data),
                   static_cast<float*>(call.out[3].data),
                   reinterpret_cast<Best*>(call.scratch),
                   stream.counters()};
  launch_early(stream, sample_rows, dim3(static_cast<unsigned>(rows), static_cast<unsigned>(parts)), kRowThreads, 0, a);
  launched("SAMPLE");
}

}  // namespace motley::cuda
