#include "cuda/stream.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <utility>

namespace motley::cuda {

namespace {

constexpr uint64_t kAlign = 16;
constexpr uint64_t kPieceMin = uint64_t{1} << 16;   // bytes
constexpr uint64_t kStagedMax = uint64_t{1} << 18;  // larger copies go by themselves
constexpr uint64_t kHeldMax = uint64_t{1} << 23;    // pinned bytes of what is not marked yet
constexpr uint64_t kRecordRowsMax = 256;            // steps of more rows are long beside their launches
constexpr std::chrono::microseconds kSpin{50};      // before the waiting thread sleeps

const char* text_of(Fault fault) {
  switch (fault) {
    case Fault::kToken: return "EMBED: a token slot holds no id of the vocabulary";
    case Fault::kExpert: return "GROUPED_MATMUL: an expert id is out of range";
    case Fault::kPending: return "SAMPLE: a pending slot holds no id of the vocabulary";
    default: return "a kernel reported an unknown fault";
  }
}

// The least power of two that holds `count`; records then fit the batches that follow.
uint64_t room_for(uint64_t count, uint64_t least) { return count == 0 ? 0 : std::bit_ceil(std::max(count, least)); }

// Which rows are generated: prompt rows may go through other kernels.
void add_classes(const motley_batch& b, std::vector<uint64_t>* key) {
  const uint64_t rows = std::min<uint64_t>(b.rows, kRecordRowsMax);
  for (uint64_t r = 0; r < rows; r += 64) {
    uint64_t bits = 0;
    for (uint64_t i = r; i < std::min(rows, r + 64); ++i) bits |= uint64_t{b.generated[i] != 0} << (i - r);
    key->push_back(bits);
  }
}

class CudaMark : public kit::Mark {
 public:
  CudaMark(CudaMemory& memory, PinnedPool& pool, CudaStream::Held held, cudaEvent_t event)
      : memory_(memory), pool_(pool), held_(std::move(held)), event_(event) {}
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;
  ~CudaMark() override {
    for (const PinnedPool::Piece& piece : held_.pieces) pool_.give(piece);
    pool_.give_event(event_);
  }
  void wait() override {
    memory_.use();
    const auto until = std::chrono::steady_clock::now() + kSpin;
    cudaError_t code = cudaEventQuery(event_);
    while (code == cudaErrorNotReady && std::chrono::steady_clock::now() < until) code = cudaEventQuery(event_);
    if (code == cudaErrorNotReady) {
      cudaGetLastError();
      code = cudaEventSynchronize(event_);
    }
    check(code, "work on the GPU");
    for (const CudaStream::Arrival& arrival : held_.arrivals) std::memcpy(arrival.to, arrival.from, arrival.bytes);
    const auto fault = held_.fault ? static_cast<Fault>(*held_.fault) : Fault::kNone;
    if (fault != Fault::kNone) kit::fail(MOTLEY_OUT_OF_RANGE, "%s", text_of(fault));
  }

 private:
  CudaMemory& memory_;
  PinnedPool& pool_;
  CudaStream::Held held_;
  cudaEvent_t event_;
};

}  // namespace

PinnedPool::~PinnedPool() {
  for (const Piece& piece : pieces_) cudaFreeHost(piece.data);
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

PinnedPool::Piece PinnedPool::take(uint64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    const auto found = std::find_if(pieces_.begin(), pieces_.end(), [&](const Piece& p) { return p.bytes >= bytes; });
    if (found != pieces_.end()) {
      const Piece piece = *found;
      *found = pieces_.back();
      pieces_.pop_back();
      return piece;
    }
  }
  Piece piece{nullptr, std::max(std::bit_ceil(bytes), kPieceMin)};
  check(cudaMallocHost(reinterpret_cast<void**>(&piece.data), piece.bytes), "allocating pinned memory");
  return piece;
}

void PinnedPool::give(Piece piece) {
  std::lock_guard lock(mutex_);
  pieces_.push_back(piece);
}

cudaEvent_t PinnedPool::take_event() {
  {
    std::lock_guard lock(mutex_);
    if (!events_.empty()) {
      cudaEvent_t event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "making an event");
  return event;
}

void PinnedPool::give_event(cudaEvent_t event) {
  std::lock_guard lock(mutex_);
  events_.push_back(event);
}

// Arrays one behind the other. What comes after one depends on its room alone, not on how much of it is used.
class CudaStream::Layout {
 public:
  template <class T>
  void add(const T* from, uint64_t count, uint64_t room, const T** place) {
    *place = nullptr;
    if (!from || room == 0) return;
    items_.push_back({from, count * sizeof(T), bytes_, reinterpret_cast<const void**>(place)});
    used_ = bytes_ + count * sizeof(T);
    bytes_ += (room * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  // An array that the GPU writes.
  template <class T>
  void reserve(uint64_t room, T** place) {
    *place = nullptr;
    if (room == 0) return;
    items_.push_back({nullptr, 0, bytes_, const_cast<const void**>(reinterpret_cast<void**>(place))});
    bytes_ += (room * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  }
  uint64_t bytes() const { return bytes_; }
  uint64_t used() const { return used_; }
  static int32_t* fault_of(std::byte* staged) { return reinterpret_cast<int32_t*>(staged + sizeof(FaultPlace)); }
  void write(std::byte* staged, std::byte* device, std::vector<uint64_t>* key) const {
    std::memset(staged, 0, kAlign);
    const FaultPlace fault{fault_of(staged)};
    std::memcpy(staged, &fault, sizeof fault);
    for (const Item& item : items_) {
      if (item.from) std::memcpy(staged + item.offset, item.from, item.bytes);
      *item.place = device + item.offset;
      key->push_back(item.offset);
    }
  }
  std::vector<AttentionPlan> plans;  // what is added lies here
  std::vector<int32_t> counts;

 private:
  struct Item {
    const void* from;
    uint64_t bytes, offset;
    const void** place;
  };
  std::vector<Item> items_;
  uint64_t bytes_ = kAlign, used_ = kAlign;  // first the FaultPlace and, in pinned memory, what it names
};

CudaStream::CudaStream(CudaMemory& memory) : memory_(memory) {
  memory_.use();
  processors_ = memory_.processors();
  starts_early_ = memory_.major() == 9;  // for later GPUs it may have PTX of 8.0 alone, whose kernels do not wait
  counters_ = memory_.allocate(kPartialsMax * sizeof(int32_t));
  const cudaError_t code = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
  if (code != cudaSuccess) memory_.release(counters_, kPartialsMax * sizeof(int32_t));
  check(code, "making a stream");
}

CudaStream::~CudaStream() {
  cudaStreamSynchronize(stream_);
  if (beside_) cudaStreamSynchronize(beside_);
  records_.clear();
  for (const PinnedPool::Piece& piece : held_.pieces) pool_.give(piece);
  if (staging_.data) pool_.give(staging_);
  cudaStreamDestroy(stream_);
  if (joined_) cudaEventDestroy(joined_);
  if (forked_) cudaEventDestroy(forked_);
  if (beside_) cudaStreamDestroy(beside_);
  memory_.release(counters_, kPartialsMax * sizeof(int32_t));
  if (device_) memory_.release(device_, room_);
  cudaGetLastError();
}

void CudaStream::GraphEnd::operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }

// ---- copies ----

// Pinned memory of the next mark; null if it has enough.
std::byte* CudaStream::staged(uint64_t bytes) {
  if (bytes > kStagedMax) return nullptr;
  if (staging_.bytes - staged_ < bytes) {
    uint64_t held = 0;
    for (const PinnedPool::Piece& piece : held_.pieces) held += piece.bytes;
    if (held > kHeldMax) return nullptr;
    if (staging_.data) held_.pieces.push_back(std::exchange(staging_, {}));
    staging_ = pool_.take(bytes);
    staged_ = 0;
  }
  std::byte* const at = staging_.data + staged_;
  staged_ += std::min(staging_.bytes - staged_, (bytes + kAlign - 1) / kAlign * kAlign);
  return at;
}

void CudaStream::copy(std::byte* to, const std::byte* from, uint64_t bytes) {
  memory_.use();
  if (to >= from + bytes || from >= to + bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "a copy inside the GPU");
    return;
  }
  std::byte* const between = memory_.allocate(bytes);  // the places overlap
  const cudaError_t out = cudaMemcpyAsync(between, from, bytes, cudaMemcpyDeviceToDevice, stream_);
  const cudaError_t back = cudaMemcpyAsync(to, between, bytes, cudaMemcpyDeviceToDevice, stream_);
  const cudaError_t done = cudaStreamSynchronize(stream_);
  memory_.release(between, bytes);
  for (const cudaError_t code : {out, back, done}) check(code, "a copy inside the GPU");
}

void CudaStream::to_host(void* to, const std::byte* from, uint64_t bytes) {
  memory_.use();
  std::byte* const between = staged(bytes);
  if (!between || !copy_by_kernel(*this, between, from, bytes, false))
    check(cudaMemcpyAsync(between ? between : to, from, bytes, cudaMemcpyDeviceToHost, stream_), "a copy from the GPU");
  if (between) held_.arrivals.push_back({to, between, bytes});
}

void CudaStream::from_host(std::byte* to, const void* from, uint64_t bytes) {
  memory_.use();
  std::byte* const between = staged(bytes);
  if (between) std::memcpy(between, from, bytes);
  if (between && copy_by_kernel(*this, to, between, bytes, true)) return;
  check(cudaMemcpyAsync(to, between ? between : from, bytes, cudaMemcpyHostToDevice, stream_), "a copy to the GPU");
}

// ---- programs ----

void CudaStream::lay_out(const motley_batch& b, std::span<const int32_t> row_sequence, const ProgramNeeds& needs,
                         Layout& layout) {
  batch_ = DeviceBatch{};
  batch_.rows = static_cast<int32_t>(b.rows);
  layout.add(b.token_ids, b.rows, b.rows, &batch_.token_ids);
  layout.add(b.token_slots, b.rows, b.rows, &batch_.token_slots);
  layout.add(b.positions, b.rows, b.rows, &batch_.positions);
  layout.add(b.kv_slots, b.rows, b.rows, &batch_.kv_slots);
  layout.add(b.head_rows, b.head_row_count, b.head_row_count, &batch_.head_rows);
  const bool attends = !row_sequence.empty();  // the rest is checked for what attends only
  if (attends) {
    layout.add(row_sequence.data(), b.rows, b.rows, &batch_.row_sequence);
    layout.add(b.seq_block_begin, uint64_t{b.seqs} + 1, uint64_t{b.rows} + 1, &batch_.seq_block_begin);
  }
  attention_.assign(needs.shapes.size(), {});
  layout.plans.reserve(needs.shapes.size()), layout.counts.reserve(needs.shapes.size());
  for (size_t i = 0; attends && i < needs.shapes.size(); ++i) {
    const AttentionPlan& plan = layout.plans.emplace_back(
        plan_attention(needs.shapes[i], b, memory_.one_class(), needs.shapes[i].items_at_once(processors_)));
    AttentionItems& items = attention_[i];
    items.passes_count = static_cast<int32_t>(plan.passes.size());
    items.one_row_each = plan.one_row_each;
    layout.add(plan.passes.data(), plan.passes.size(), plan.passes.size(), &items.passes);
    if (plan.chunks.empty()) continue;
    const int32_t& count = layout.counts.emplace_back(static_cast<int32_t>(plan.chunks.size()));
    layout.add(&count, 1, 1, &items.chunk_items);
    items.chunks_most = std::bit_ceil(static_cast<uint32_t>(count));
    layout.add(plan.chunks.data(), plan.chunks.size(), room_for(plan.chunks.size(), 64), &items.chunks);
  }
  if (needs.samples && b.samples) {
    uint64_t counts = 0, pending = 0, biases = 0;
    for (uint32_t h = 0; h < b.head_row_count; ++h) {
      counts = std::max<uint64_t>(counts, b.samples[h].counts_end);
      pending = std::max<uint64_t>(pending, b.samples[h].pending_end);
      biases = std::max<uint64_t>(biases, b.samples[h].biases_end);
    }
    const uint64_t room[] = {room_for(counts, 64), room_for(pending, 64), room_for(biases, 64)};
    batch_.counts_room = static_cast<uint32_t>(room[0]), batch_.biases_room = static_cast<uint32_t>(room[2]);
    layout.add(b.samples, b.head_row_count, b.head_row_count, &batch_.samples);
    layout.add(b.counts, counts, room[0], &batch_.counts);
    layout.add(b.pending, pending, room[1], &batch_.pending);
    layout.add(b.biases, biases, room[2], &batch_.biases);
    layout.reserve(room[0] + room[1] + room[2], &batch_.replaced);
  }
  if (attends)
    layout.add(b.blocks, b.seq_block_begin[b.seqs], room_for(b.seq_block_begin[b.seqs], 256), &batch_.blocks);
}

bool CudaStream::begin(const motley_batch& b, std::span<const int32_t> row_sequence, const kit::Plan& plan,
                       std::span<const uint64_t> key) {
  memory_.use();
  static const ProgramNeeds kNothing;
  const auto* needs = static_cast<const ProgramNeeds*>(plan.data.get());
  Layout layout;
  lay_out(b, row_sequence, needs ? *needs : kNothing, layout);
  if (layout.bytes() > room_) {
    check(cudaStreamSynchronize(stream_), "waiting for the GPU");
    records_.clear();
    if (device_) memory_.release(std::exchange(device_, nullptr), room_);
    room_ = 0;
    const uint64_t room = std::max(std::bit_ceil(layout.bytes()), kPieceMin);
    device_ = memory_.allocate(room);
    room_ = room;
  }
  const PinnedPool::Piece piece = pool_.take(layout.bytes());
  held_.pieces.push_back(piece);
  std::vector<uint64_t> all(key.begin(), key.end());
  layout.write(piece.data, device_, &all);
  for (const AttentionItems& items : attention_) {
    all.push_back(static_cast<uint64_t>(items.passes_count));
    all.push_back(items.chunks_most);
    all.push_back(items.one_row_each);
  }
  all.push_back(batch_.counts_room), all.push_back(batch_.biases_room);
  if (!memory_.one_class()) add_classes(b, &all);
  batch_.fault = reinterpret_cast<const FaultPlace*>(device_);
  const uint64_t bytes = (layout.used() + kAlign - 1) / kAlign * kAlign;  // there is room for
  if (!copy_by_kernel(*this, device_, piece.data, bytes, true))
    check(cudaMemcpyAsync(device_, piece.data, bytes, cudaMemcpyHostToDevice, stream_), "copying a batch");
  held_.fault = Layout::fault_of(piece.data);
  return b.rows > kRecordRowsMax || !replay(std::move(all));
}

// True if a record of the steps was enqueued. The second time that they come they are recorded.
bool CudaStream::replay(std::vector<uint64_t> key) {
  const auto wait = [&] { check(cudaStreamSynchronize(stream_), "waiting for the GPU"); };
  Graphs::Record& record = records_.use(std::move(key), wait);
  if (record.graph) {
    check(cudaGraphLaunch(record.graph.get(), stream_), "enqueuing a program's record");
    return true;
  }
  if (!std::exchange(record.seen, true) || record.refused) return false;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "recording a program");
  recording_ = &record;
  return false;
}

bool CudaStream::end() {
  Graphs::Record* const record = std::exchange(recording_, nullptr);
  if (!record) return true;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t ready = nullptr;
  cudaError_t code = cudaStreamEndCapture(stream_, &graph);
  if (code == cudaSuccess) code = cudaGraphInstantiate(&ready, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (code == cudaSuccess) {
    record->graph.reset(ready);
    check(cudaGraphLaunch(ready, stream_), "enqueuing a program's record");
    return true;
  }
  cudaGetLastError();
  record->refused = true;
  return false;
}

void CudaStream::stop_recording() {
  Graphs::Record* const record = std::exchange(recording_, nullptr);
  if (!record) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_, &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
  record->refused = true;
}

cudaStream_t CudaStream::fork() {
  if (!beside_) {
    check(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking), "making a second stream");
    check(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming), "making an event");
    check(cudaEventCreateWithFlags(&joined_, cudaEventDisableTiming), "making an event");
  }
  check(cudaEventRecord(forked_, stream_), "forking a stream");
  check(cudaStreamWaitEvent(beside_, forked_, 0), "forking a stream");
  return beside_;
}

void CudaStream::join() {
  check(cudaEventRecord(joined_, beside_), "joining a stream");
  check(cudaStreamWaitEvent(stream_, joined_, 0), "joining a stream");
}

void CudaStream::follow(kit::Stream& other) {
  memory_.use();
  cudaEvent_t event = pool_.take_event();
  const cudaError_t recorded = cudaEventRecord(event, static_cast<CudaStream&>(other).stream_);
  const cudaError_t waits = cudaStreamWaitEvent(stream_, event, 0);
  pool_.give_event(event);  // a later record of it does not change what this wait is for
  check(recorded, "following another queue");
  check(waits, "following another queue");
}

std::unique_ptr<kit::Mark> CudaStream::mark() {
  memory_.use();
  stop_recording();
  if (staging_.data) held_.pieces.push_back(std::exchange(staging_, {}));
  staged_ = 0;
  cudaEvent_t event = pool_.take_event();
  auto made = std::make_unique<CudaMark>(memory_, pool_, std::exchange(held_, {}), event);
  check(cudaEventRecord(event, stream_), "marking the GPU's work");
  return made;
}

void CudaStream::finish() { mark()->wait(); }

}  // namespace motley::cuda
