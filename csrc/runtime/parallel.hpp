// Plain threads over fixed tasks: no pool, no OpenMP, nothing left behind by a fork.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/arrays.hpp"

#include "runtime/interruption.hpp"

namespace pydfm {

namespace detail {

/// Threads that are joined when the scope ends, however it ends.
class JoiningThreads {
 public:
  explicit JoiningThreads(std::size_t capacity) { threads_.reserve(capacity); }
  JoiningThreads(const JoiningThreads&) = delete;
  JoiningThreads& operator=(const JoiningThreads&) = delete;
  ~JoiningThreads() {
    for (std::thread& thread : threads_) thread.join();
  }

  template <typename Work>
  void start(const Work& work) {
    threads_.emplace_back(std::cref(work));
  }

  std::size_t size() const { return threads_.size(); }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace detail

/// Calls `task(index, state)` once for every index in [0, n_tasks), on up to `n_threads` threads,
/// each of which has a `state` of its own, made by `make_state()` when it begins.
///
/// Which thread runs a task is not fixed; what a task computes must depend on its index alone (a
/// state is for memory, not for results), and results of tasks must be combined in index order, so
/// that the number of threads never shows in an answer. The first exception of a task is rethrown
/// here once every thread has stopped; tasks not yet begun are then left out. So it is where the
/// work is interrupted, which is looked for between tasks: they should be short, or `poll`
/// themselves. Where the system refuses another thread, those that run do all the work.
template <typename MakeState, typename Task>
void parallel_for(Index n_tasks, int n_threads, const MakeState& make_state, const Task& task) {
  const Index n_workers = std::min<Index>(n_tasks, std::max(n_threads, 1));
  if (n_workers <= 1) {
    auto state = make_state();
    for (Index index = 0; index < n_tasks; ++index) {
      if (index > 0) poll();
      task(index, state);
    }
    return;
  }

  std::atomic<Index> next{0};
  std::mutex mutex;  // of failure and n_ended
  std::exception_ptr failure;
  std::size_t n_ended = 0;
  std::condition_variable one_ended;
  const auto guarded = [&](const auto& action) noexcept {
    try {
      action();
    } catch (...) {
      next = n_tasks;
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  const auto work = [&] {
    auto state = make_state();
    for (Index index = next++; index < n_tasks; index = next++) {
      poll();
      task(index, state);
    }
  };
  Interruptible* const interruptible = Interruptible::current();
  const auto help = [&] {
    Interruptible::current() = interruptible;
    guarded(work);
    const std::lock_guard<std::mutex> lock(mutex);
    ++n_ended;
    one_ended.notify_one();
  };
  {
    detail::JoiningThreads threads(static_cast<std::size_t>(n_workers - 1));
    try {
      for (Index i = 1; i < n_workers; ++i) threads.start(help);
    } catch (const std::system_error&) {
      // Fewer threads than asked for: the ones that started, and this one, share the tasks.
    }
    guarded(work);
    // The others' last tasks may be long, and this thread alone finds out about an interruption.
    guarded([&] {
      std::unique_lock<std::mutex> lock(mutex);
      const auto all_ended = [&] { return n_ended == threads.size(); };
      while (!one_ended.wait_for(lock, std::chrono::milliseconds(20), all_ended)) poll();
    });
  }
  if (failure) std::rethrow_exception(failure);
}

/// The same for tasks that need no memory of their thread's: calls `task(index)`.
template <typename Task>
void parallel_for(Index n_tasks, int n_threads, const Task& task) {
  struct Nothing {};
  parallel_for(
      n_tasks, n_threads, [] { return Nothing{}; }, [&](Index index, Nothing&) { task(index); });
}

/// The same for the indices [0, n) in blocks of `block`: calls `work(first, count)`.
template <typename Work>
void parallel_blocks(Index n, Index block, int n_threads, const Work& work) {
  parallel_for((n + block - 1) / block, n_threads, [&](Index task) {
    const Index first = task * block;
    work(first, std::min(block, n - first));
  });
}

/// Threads kept ready for many short loops in a row: where `parallel_for` starts its threads (some
/// 50 microseconds), a team's wait in a busy loop and begin within one. For the time of one call;
/// the same rules hold for tasks, which must not throw, nor poll: that is done between loops. The
/// thread that calls takes tasks from the first on, and the others from the last: so that it pays
/// to number tasks of one loop after another by what they read and write, which stays in the caches
/// of whoever had it.
class Team {
 public:
  explicit Team(int n_threads) : threads_(static_cast<std::size_t>(std::max(n_threads, 1))) {
    try {
      for (int i = 1; i < n_threads; ++i) threads_.start(worker_);
    } catch (const std::system_error&) {
      // As above: fewer threads do all the work.
    }
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team() { stop_ = true; }

  /// Calls `task(index)` once for every index in [0, n_tasks).
  template <typename Task>
  void run(Index n_tasks, const Task& task) {
    if (n_tasks > 1) poll();
    if (threads_.size() == 0 || n_tasks <= 1 || n_tasks > Index{kTaskMask}) {
      for (Index index = 0; index < n_tasks; ++index) task(index);
      return;
    }
    call_ = [](const void* context, Index index) noexcept {
      (*static_cast<const Task*>(context))(index);
    };
    context_ = &task;
    done_.store(0, std::memory_order_relaxed);
    loop_ += std::uint64_t{1} << (2 * kTaskBits);
    tickets_.store(loop_ + static_cast<std::uint64_t>(n_tasks), std::memory_order_release);
    while (take_one(End::kFirst)) {
    }
    for (Backoff wait; done_.load(std::memory_order_acquire) != n_tasks;) wait();
  }

 private:
  // Spins for some microseconds, then lets others have the processor.
  class Backoff {
   public:
    void operator()() {
      constexpr int kSpins = 4000;
      if (++count_ > kSpins) {
        std::this_thread::yield();
      } else {
#if defined(__x86_64__) && defined(__GNUC__)
        __builtin_ia32_pause();
#endif
      }
    }

   private:
    int count_ = 0;
  };

  static constexpr int kTaskBits = 20;
  static constexpr std::uint64_t kTaskMask = (std::uint64_t{1} << kTaskBits) - 1;

  enum class End { kFirst, kLast };

  // Takes the first or the last task that is left, if any, and does it. A ticket names its loop, so
  // that a thread that comes late can take none of a loop that is over; and no loop ends before the
  // tasks taken are done.
  bool take_one(End from) {
    std::uint64_t ticket = tickets_.load(std::memory_order_acquire);
    while (true) {
      const std::uint64_t first = ticket >> kTaskBits & kTaskMask, end = ticket & kTaskMask;
      if (first == end) return false;
      const std::uint64_t rest =
          from == End::kFirst ? ticket + (std::uint64_t{1} << kTaskBits) : ticket - 1;
      if (tickets_.compare_exchange_weak(ticket, rest, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        call_(context_, static_cast<Index>(from == End::kFirst ? first : end - 1));
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
  }

  using Call = void (*)(const void*, Index) noexcept;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::uint64_t loop_ = 0;
  // Number of the loop, first of the tasks that are left, and the end of them.
  std::atomic<std::uint64_t> tickets_{0};
  std::atomic<Index> done_{0};
  std::atomic<bool> stop_{false};
  const std::function<void()> worker_ = [this] {
    for (Backoff wait; !stop_.load(std::memory_order_relaxed);) {
      if (take_one(End::kLast)) {
        wait = Backoff();
      } else {
        wait();
      }
    }
  };
  detail::JoiningThreads threads_;  // last, so that it is joined first
};

}  // namespace pydfm
