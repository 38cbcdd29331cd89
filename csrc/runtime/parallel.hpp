// Plain threads over fixed tasks: no pool, no OpenMP, nothing left behind by a fork.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "runtime/arrays.hpp"

namespace pydfm {

/// The tasks of one loop, which its threads take one by one.
class Tasks {
 public:
  explicit Tasks(Index n) : n_(n) {}

  /// The next one, or -1 where none is left. Throws where the work is interrupted.
  Index take();

  /// Leaves out those that nobody has taken.
  void drop() { next_ = n_; }

 private:
  Index n_;
  std::atomic<Index> next_{0};
};

namespace detail {

/// Threads that are joined when the scope ends, however it ends.
class JoiningThreads {
 public:
  JoiningThreads() = default;
  JoiningThreads(const JoiningThreads&) = delete;
  JoiningThreads& operator=(const JoiningThreads&) = delete;
  ~JoiningThreads();

  /// Starts `count` threads, or as many as the system lets it.
  void start(int count, const std::function<void()>& work);

  std::size_t size() const { return threads_.size(); }

 private:
  std::vector<std::thread> threads_;
};

/// Calls `work(context, tasks)` on up to `n_threads` threads, the calling one among them.
void share(Index n_tasks, int n_threads, void (*work)(const void*, Tasks&), const void* context);

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
  const auto work = [&](Tasks& tasks) {
    auto state = make_state();
    for (Index index = tasks.take(); index >= 0; index = tasks.take()) task(index, state);
  };
  const auto call = [](const void* context, Tasks& tasks) {
    (*static_cast<const decltype(work)*>(context))(tasks);
  };
  detail::share(n_tasks, n_threads, call, &work);
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
  explicit Team(int n_threads);
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team() { stop_ = true; }

  /// Calls `task(index)` once for every index in [0, n_tasks).
  template <typename Task>
  void run(Index n_tasks, const Task& task) {
    const auto call = [](const void* context, Index index) noexcept {
      (*static_cast<const Task*>(context))(index);
    };
    run(n_tasks, call, &task);
  }

 private:
  using Call = void (*)(const void*, Index) noexcept;
  enum class End { kFirst, kLast };

  void run(Index n_tasks, Call call, const void* context);
  bool take_one(End from);
  void work();

  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::uint64_t loop_ = 0;
  // Number of the loop, first of the tasks that are left, and the end of them.
  std::atomic<std::uint64_t> tickets_{0};
  std::atomic<Index> done_{0};
  std::atomic<bool> stop_{false};
  const std::function<void()> worker_;
  detail::JoiningThreads threads_;  // last, so that it is joined first
};

}  // namespace pydfm
