// Mailbox: engine updates on their way from the engine's thread to the server's.
//
// push() is called by the engine's thread and never blocks for long; the waker is called once for any number of updates
// that lie waiting. deliver() belongs to the server's thread. What lies waiting is bounded by the tokens that the
// running requests may still generate. Outlives the server through the requests that hold it; after close() it drops.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>

#include "engine/request.hpp"

namespace motley {

// Takes a request's updates, on the server's thread. Throws nothing: one receiver's lack of memory must not keep the
// others' updates from them.
class UpdateReceiver {
 public:
  virtual ~UpdateReceiver() = default;
  virtual void on_update(uint32_t index, RequestUpdate update) noexcept = 0;
};

class Mailbox {
 public:
  // `wake` is called on the pushing thread; it must arrange for deliver() to be called elsewhere, and not block. Called
  // again where it throws bad_alloc.
  explicit Mailbox(std::function<void()> wake);

  void push(std::weak_ptr<UpdateReceiver> receiver, uint32_t index, RequestUpdate update);
  void deliver();
  // After it returns `wake` is not called again.
  void close();

 private:
  struct Letter {
    std::weak_ptr<UpdateReceiver> receiver;  // weak: a request may outlive the connection that asked
    uint32_t index = 0;
    RequestUpdate update;
  };

  std::function<void()> wake_;
  std::mutex mutex_;
  std::list<Letter> letters_;
  bool closed_ = false;
};

}  // namespace motley
