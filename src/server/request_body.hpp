// Request bodies: how one is read, and how many bytes of all of them the server holds.
#pragma once

#include <atomic>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/optional.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace motley {

// A Beast body that grows with what has come. (Its string_body allocates what the header announces, so that a header
// alone would cost the server as much memory as the largest body.)
struct GrowingBody {
  using value_type = std::string;
  class reader {  // NOLINT(readability-identifier-naming): Beast's name
   public:
    template <bool kRequest, class Fields>
    reader(boost::beast::http::header<kRequest, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<uint64_t>&, boost::system::error_code& error) { error = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, boost::system::error_code& error) {
      const size_t before = body_.size();
      for (const auto buffer : boost::beast::buffers_range_ref(buffers)) {
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
      }
      error = {};
      return body_.size() - before;
    }
    void finish(boost::system::error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};

// The bytes that all bodies together may have. Thread-safe.
class BodyBudget {
 public:
  explicit BodyBudget(size_t bytes_max) : bytes_max_(bytes_max) {}
  bool take(size_t bytes) {
    size_t used = used_.load();
    do {
      if (bytes > bytes_max_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    return true;
  }
  void give(size_t bytes) { used_ -= bytes; }
  size_t used() const { return used_.load(); }

 private:
  const size_t bytes_max_;
  std::atomic<size_t> used_{0};
};

// What one body has taken of the budget; given back when this goes, on whatever thread that is. Travels with the body.
class BodyCharge {
 public:
  explicit BodyCharge(BodyBudget& budget) : budget_(&budget) {}
  BodyCharge(BodyCharge&& other) noexcept : budget_(other.budget_), bytes_(std::exchange(other.bytes_, 0)) {}
  BodyCharge& operator=(BodyCharge&&) = delete;
  ~BodyCharge() { release(); }

  size_t bytes() const { return bytes_; }
  // False: the budget has no room; the charge is as before. `bytes` never becomes less.
  bool grow_to(size_t bytes) {
    if (!budget_->take(bytes - bytes_)) return false;
    bytes_ = bytes;
    return true;
  }
  void release() { budget_->give(std::exchange(bytes_, 0)); }

 private:
  BodyBudget* budget_;
  size_t bytes_ = 0;
};

}  // namespace motley
