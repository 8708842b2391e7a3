#include "server/mailbox.hpp"

#include <utility>

namespace motley {

Mailbox::Mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

void Mailbox::push(std::weak_ptr<UpdateReceiver> receiver, uint32_t index, RequestUpdate update) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  const bool was_empty = letters_.empty();
  letters_.push_back({std::move(receiver), index, std::move(update)});
  // Under the lock, so that close() can promise an end; waking is a post to a queue and takes no lock of ours.
  if (was_empty) wake_();
}

void Mailbox::deliver() {
  std::vector<Letter> letters;
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
