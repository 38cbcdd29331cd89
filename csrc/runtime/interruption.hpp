// Work that can be stopped from outside, as by Ctrl-C: its caller says how that is found out, and
// loops ask now and then.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

namespace pydfm {

/// While it lives, work of the thread that made it ends where `check` throws, which `poll` calls on
/// that thread, at most every 100 ms. Threads that share the work join it: there `poll` throws the
/// same, once it was thrown.
class Interruptible {
 public:
  using Check = void (*)();

  explicit Interruptible(Check check) : check_(check), outer_(std::exchange(current(), this)) {}
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  ~Interruptible() { current() = outer_; }

  /// What this thread works for: null where it cannot be interrupted. A thread joins by setting it.
  static Interruptible*& current() {
    thread_local Interruptible* work = nullptr;
    return work;
  }

  void poll() {
    if (stopped_.load(std::memory_order_acquire)) std::rethrow_exception(reason_);
    if (std::this_thread::get_id() != thread_) return;
    const Clock::time_point now = Clock::now();
    const bool first = next_ == Clock::time_point();
    if (now < next_) return;
    next_ = now + std::chrono::milliseconds(100);
    if (first) return;
    try {
      check_();
    } catch (...) {
      reason_ = std::current_exception();
      stopped_.store(true, std::memory_order_release);
      throw;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  const Check check_;
  const std::thread::id thread_ = std::this_thread::get_id();
  Interruptible* const outer_;  // of a signal handler: the work that it came into
  Clock::time_point next_;      // not before the first poll, which short work never comes to
  std::atomic<bool> stopped_{false};
  std::exception_ptr reason_;  // set before stopped_
};

/// Throws where the work of this thread has been interrupted. Costs a look at the clock, some 30
/// ns: not for the innermost loops, but often enough that a second holds several.
inline void poll() {
  if (Interruptible* const work = Interruptible::current()) work->poll();
}

}  // namespace pydfm
