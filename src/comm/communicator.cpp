#include "comm/communicator.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/log.hpp"
#include "comm/sum.hpp"
#include "comm/transport.hpp"

namespace motley {
namespace {

constexpr uint64_t kMessageBytesMax = uint64_t{1} << 30;

const char* op_name(CommOp op) {
  static constexpr const char* kNames[] = {"all_reduce", "all_gather_v", "reduce_scatter_v", "broadcast", "send"};
  const auto index = static_cast<size_t>(op);
  return index < std::size(kNames) ? kNames[index] : "an unknown operation";
}

std::string describe(const CallSignature& s) {
  std::string text = fmt::format("{} of {}", op_name(s.op), s.count);
  if (s.op == CommOp::kBroadcast) text += fmt::format(" from rank {}", s.root);
  if (s.op == CommOp::kAllGatherV || s.op == CommOp::kReduceScatterV)
    text += fmt::format(" (counts {:016x})", s.counts_hash);
  return text;
}

// FNV-1a over whole words.
uint64_t hash_of(std::span<const uint64_t> counts) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint64_t count : counts) hash = (hash ^ count) * 0x100000001b3u;
  return hash;
}

uint64_t aligned(uint64_t bytes) { return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment; }

// A call's data, split among the ranks; each round moves a slice of every part.
struct Split {
  std::span<std::byte> data;
  uint64_t element_bytes = 1;
  std::vector<uint64_t> begin = {}, count = {};  // elements, per rank
  bool reduce = false, gather = false;
  bool contributes = true;

  uint64_t chunks() const { return std::max<uint64_t>(1, (data.size() + kChunkBytes - 1) / kChunkBytes); }
  // The slice of rank r's part in chunk c, as bytes of data; empty beyond the last chunk.
  std::span<std::byte> piece(uint64_t c, uint32_t r) const {
    const uint64_t slice = (count[r] + chunks() - 1) / chunks();
    const uint64_t from = std::min(c * slice, count[r]);
    const uint64_t elements = std::min(slice, count[r] - from);
    return data.subspan((begin[r] + from) * element_bytes, elements * element_bytes);
  }
};

class TransportCommunicator final : public Communicator {
 public:
  TransportCommunicator(std::unique_ptr<Transport> transport, const GroupOptions& options)
      : transport_(std::move(transport)), options_(options), signatures_(options.size) {}
  ~TransportCommunicator() override {
    // A group of one has nobody to tell; of the others the first to leave breaks it.
    if (size() > 1)
      static_cast<void>(transport_->fail(error(MOTLEY_UNAVAILABLE, "rank {} has left its group", rank())));
  }

  uint32_t rank() const override { return transport_->rank(); }
  uint32_t size() const override { return transport_->size(); }
  Route route() const override { return transport_->route(); }

  Status all_reduce(std::span<float> data, bool contributes, const CommCall& call) override {
    CallSignature signature = signature_of(CommOp::kAllReduce, data.size(), call);
    signature.contributes = contributes;
    if (data.size_bytes() <= kOneShotBytes)
      return collective(call, signature, data.size_bytes(), [&] { return one_shot(data, signature); });
    Split split{.data = std::as_writable_bytes(data), .element_bytes = sizeof(float), .reduce = true, .gather = true};
    split.contributes = contributes;
    const uint64_t part = (data.size() + size() - 1) / size();
    for (uint32_t r = 0; r < size(); ++r) {
      split.begin.push_back(std::min<uint64_t>(r * part, data.size()));
      split.count.push_back(std::min<uint64_t>(part, data.size() - split.begin[r]));
    }
    return collective(call, signature, data.size_bytes(), [&] { return run(split, signature); });
  }

  Status all_gather_v(std::span<std::byte> data, std::span<const uint64_t> counts, const CommCall& call) override {
    const CallSignature signature = signature_of(CommOp::kAllGatherV, data.size(), call, counts);
    return split_call(call, signature, {.data = data, .element_bytes = 1, .gather = true}, counts);
  }

  Status reduce_scatter_v(std::span<float> data, std::span<const uint64_t> counts, const CommCall& call) override {
    const CallSignature signature = signature_of(CommOp::kReduceScatterV, data.size(), call, counts);
    const std::span<std::byte> bytes = std::as_writable_bytes(data);
    return split_call(call, signature, {.data = bytes, .element_bytes = sizeof(float), .reduce = true}, counts);
  }

  Status broadcast(std::span<std::byte> data, uint32_t root, const CommCall& call) override {
    if (root >= size()) return refuse(invalid_argument("broadcast from rank {} in a group of {}", root, size()));
    std::vector<uint64_t> counts(size());
    counts[root] = data.size();
    CallSignature signature = signature_of(CommOp::kBroadcast, data.size(), call);
    signature.root = root;
    return split_call(call, signature, {.data = data, .element_bytes = 1, .gather = true}, counts);
  }

  Status send(uint32_t to, std::span<const std::byte> data, const CommCall& call) override {
    RETURN_IF_ERROR(check_peer("send to", to, data.size()));
    Status status = transport_->begin(call.deadline_ns);
    if (status.ok()) status = transport_->send(to, data, call.virtual_ns ? *call.virtual_ns : 0);
    transport_->end();
    return status;
  }

  Status recv(uint32_t from, std::span<std::byte> data, const CommCall& call) override {
    RETURN_IF_ERROR(check_peer("recv from", from, data.size()));
    int64_t sent_ns = 0;
    Status status = transport_->begin(call.deadline_ns);
    if (status.ok()) status = transport_->recv(from, data, &sent_ns);
    transport_->end();
    if (status.ok() && call.virtual_ns)
      *call.virtual_ns = std::max(*call.virtual_ns, sent_ns + virtual_cost_ns(options_, CommOp::kSend, data.size()));
    return status;
  }

  void abort(const Status& why) override {
    CHECK(!why.ok());
    static_cast<void>(transport_->fail(why));
  }

 private:
  // A call that cannot be made breaks the group: the others must not wait for it.
  Status refuse(const Status& why) { return transport_->fail(why); }

  Status check_peer(const char* what, uint32_t peer, uint64_t bytes) {
    if (peer >= size() || peer == rank())
      return refuse(invalid_argument("{} rank {} by rank {} of {}", what, peer, rank(), size()));
    if (bytes > options_.message_bytes_max)
      return refuse(invalid_argument("{} rank {}: {} bytes, but the group's message_bytes_max is {}", what, peer, bytes,
                                     options_.message_bytes_max));
    return {};
  }

  static CallSignature signature_of(CommOp op, uint64_t count, const CommCall& call,
                                    std::span<const uint64_t> counts = {}) {
    CallSignature signature{.op = op, .count = count, .counts_hash = hash_of(counts)};
    if (call.virtual_ns) signature.virtual_ns = *call.virtual_ns;
    return signature;
  }

  template <typename Body>
  Status collective(const CommCall& call, const CallSignature& signature, uint64_t bytes, Body body) {
    Status status = transport_->begin(call.deadline_ns);
    if (status.ok()) status = body();
    transport_->end();
    if (!status.ok() || !call.virtual_ns) return status;
    for (const CallSignature& other : signatures_) *call.virtual_ns = std::max(*call.virtual_ns, other.virtual_ns);
    *call.virtual_ns += virtual_cost_ns(options_, signature.op, bytes);
    return status;
  }

  Status split_call(const CommCall& call, const CallSignature& signature, Split split,
                    std::span<const uint64_t> counts) {
    if (counts.size() != size())
      return refuse(invalid_argument("{}: {} counts in a group of {}", op_name(signature.op), counts.size(), size()));
    uint64_t left = signature.count;
    for (const uint64_t count : counts) {
      if (count > left) break;
      split.begin.push_back(signature.count - left);
      split.count.push_back(count);
      left -= count;
    }
    if (left != 0 || split.count.size() != size())
      return refuse(invalid_argument("{}: the counts do not add up to the {} elements of data", op_name(signature.op),
                                     signature.count));
    return collective(call, signature, split.data.size(), [&] { return run(split, signature); });
  }

  // Every rank publishes everything and adds up for itself.
  Status one_shot(std::span<float> data, const CallSignature& signature) {
    std::byte* slot = transport_->slot();
    if (slot == nullptr) return failure();
    if (signature.contributes && !data.empty()) std::memcpy(slot, data.data(), data.size_bytes());
    RoundLayout layout;
    layout.in.assign(size(), {0, data.size_bytes()});
    layout.out.resize(size());
    layout.used = data.size_bytes();
    RETURN_IF_ERROR(transport_->post(signature, layout));
    RETURN_IF_ERROR(transport_->wait(signatures_));
    sum(contributions(0), data);
    return {};
  }

  // Reduce-scatter and all-gather in chunks: in round r chunk r is published, chunk r - 1 (published a round before) is
  // reduced, each rank its own part, and chunk r - 2's sums are copied out.
  Status run(const Split& split, const CallSignature& signature) {
    const bool both = split.reduce && split.gather;
    const uint64_t rounds = split.chunks() + (both ? 1 : 0);
    RoundLayout layout = layout_of(split, 0);
    std::byte* slot = transport_->slot();
    if (slot == nullptr) return failure();
    copy_in(split, 0, layout, slot);
    for (uint64_t round = 0; round < rounds; ++round) {
      if (both && round > 0) {
        const std::span<std::byte> own = split.piece(round - 1, rank());
        sum(contributions(layout_of(split, round - 1).in[rank()].begin),
            {reinterpret_cast<float*>(slot + layout.out[rank()].begin), own.size() / sizeof(float)});
      }
      if (split.gather && round > 0) copy_out(split, round - 1);
      RETURN_IF_ERROR(transport_->post(signature, layout));
      RoundLayout next;
      if (round + 1 < rounds) {  // while the others come
        next = layout_of(split, round + 1);
        if ((slot = transport_->slot()) == nullptr) return failure();
        copy_in(split, round + 1, next, slot);
      }
      RETURN_IF_ERROR(transport_->wait(signatures_));
      if (split.reduce && !split.gather) {
        const std::span<std::byte> own = split.piece(round, rank());
        sum(contributions(layout.in[rank()].begin), {reinterpret_cast<float*>(own.data()), own.size() / sizeof(float)});
      }
      layout = std::move(next);
    }
    if (split.gather) copy_out(split, rounds - 1);
    return {};
  }

  // The pieces to be reduced lie first in the slot, the published result after them.
  RoundLayout layout_of(const Split& split, uint64_t round) const {
    RoundLayout layout;
    layout.in.resize(size());
    layout.out.resize(size());
    if (split.reduce) {
      for (uint32_t r = 0; r < size(); ++r) {
        layout.in[r] = {layout.used, split.piece(round, r).size()};
        layout.used += aligned(layout.in[r].size);
      }
    }
    uint64_t out_bytes = 0;
    if (split.gather && (!split.reduce || round > 0)) {
      for (uint32_t r = 0; r < size(); ++r) {
        layout.out[r] = {layout.used, split.piece(split.reduce ? round - 1 : round, r).size()};
        out_bytes = std::max(out_bytes, layout.out[r].size);
      }
    }
    layout.used += out_bytes;
    DCHECK(layout.used <= kSlotBytes);
    return layout;
  }

  void copy_in(const Split& split, uint64_t round, const RoundLayout& layout, std::byte* slot) const {
    for (uint32_t r = 0; split.reduce && split.contributes && r < size(); ++r) {
      const std::span<std::byte> piece = split.piece(round, r);
      if (!piece.empty()) std::memcpy(slot + layout.in[r].begin, piece.data(), piece.size());
    }
    if (split.reduce) return;
    const std::span<std::byte> own = split.piece(round, rank());
    if (!own.empty()) std::memcpy(slot + layout.out[rank()].begin, own.data(), own.size());
  }

  // The results that all ranks published in `round`.
  void copy_out(const Split& split, uint64_t round) const {
    if (split.reduce && round == 0) return;
    const RoundLayout layout = layout_of(split, round);
    for (uint32_t r = 0; r < size(); ++r) {
      if (!split.reduce && r == rank()) continue;
      const std::span<std::byte> piece = split.piece(split.reduce ? round - 1 : round, r);
      if (!piece.empty()) std::memcpy(piece.data(), transport_->published(r) + layout.out[r].begin, piece.size());
    }
  }

  // Where each contributing rank's floats lie, in rank order.
  std::vector<const float*> contributions(uint64_t begin) const {
    std::vector<const float*> from;
    for (uint32_t r = 0; r < size(); ++r)
      if (signatures_[r].contributes) from.push_back(reinterpret_cast<const float*>(transport_->published(r) + begin));
    return from;
  }

  Status failure() { return transport_->fail(error(MOTLEY_INTERNAL, "no slot to publish in")); }

  const std::unique_ptr<Transport> transport_;
  const GroupOptions options_;
  std::vector<CallSignature> signatures_;  // of the call under way, per rank
};

}  // namespace

int64_t virtual_cost_ns(const GroupOptions& options, CommOp op, uint64_t bytes) {
  if (options.size <= 1) return 0;
  const double once_ns = options.link_latency_ns + static_cast<double>(bytes) * options.link_ns_per_byte;
  return static_cast<int64_t>(std::ceil(op == CommOp::kAllReduce ? 2 * once_ns : once_ns));
}

Status compare_signatures(std::span<const CallSignature> signatures) {
  const CallSignature& first = signatures[0];
  for (size_t r = 1; r < signatures.size(); ++r) {
    const CallSignature& other = signatures[r];
    if (other.op != first.op || other.root != first.root || other.count != first.count ||
        other.counts_hash != first.counts_hash)
      return invalid_argument("rank 0 called {}, rank {} {}", describe(first), r, describe(other));
  }
  return {};
}

Status check_group_options(const GroupOptions& options) {
  if (options.size < 1 || options.size > kCommRanksMax)
    return invalid_argument("a group of {} ranks: 1 to {} are possible", options.size, kCommRanksMax);
  if (options.message_bytes_max > kMessageBytesMax)
    return invalid_argument("message_bytes_max {}: at most {}", options.message_bytes_max, kMessageBytesMax);
  if (!(options.link_latency_ns >= 0) || !(options.link_ns_per_byte >= 0))
    return invalid_argument("a link's latency and time per byte must be 0 or more");
  return {};
}

std::unique_ptr<Communicator> make_communicator(std::unique_ptr<Transport> transport, const GroupOptions& options) {
  return std::make_unique<TransportCommunicator>(std::move(transport), options);
}

Result<CommGroup> make_group(Route route, const GroupOptions& options) {
  switch (route) {
    case Route::kSharedMemory: return make_shared_memory_group(options);
    case Route::kGloo: return make_gloo_group(options);
  }
  return invalid_argument("route {}: there is none", static_cast<int>(route));
}

std::vector<Route> available_routes() {
  std::vector<Route> routes;
  for (const Route route : kRoutes) {
    const auto group = make_group(route, {.size = 2});
    if (group.ok()) {
      routes.push_back(route);
    } else {
      log_info("the route {} is not taken here: {}", route_name(route), group.error().message());
    }
  }
  return routes;
}

}  // namespace motley
