#include "server/mailbox.hpp"

#include <utility>

#include "base/memory_patience.hpp"

namespace motley {

Mailbox::Mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

void Mailbox::push(std::weak_ptr<UpdateReceiver> receiver, uint32_t index, RequestUpdate update) {
  std::list<Letter> letter;
  letter.push_back({std::move(receiver), index, std::move(update)});
  // Where memory is short the lock is let go between the tries: who delivers gives some back.
  retry_for_memory([&] {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    // Under the lock, so that close() can promise an end; waking is a post to a queue and takes no lock of ours.
    if (letters_.empty()) wake_();
    letters_.splice(letters_.end(), letter);
  });
}

void Mailbox::deliver() {
  std::list<Letter> letters;
  {
    std::lock_guard lock(mutex_);
    letters.swap(letters_);
  }
  for (Letter& letter : letters) {
    if (const auto receiver = letter.receiver.lock()) receiver->on_update(letter.index, std::move(letter.update));
  }
}

void Mailbox::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  letters_.clear();
}

}  // namespace motley
