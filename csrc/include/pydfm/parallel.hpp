// Plain threads over fixed tasks: no pool, no OpenMP, nothing left behind by a fork.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <Eigen/Core>

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
/// here once every thread has stopped; tasks not yet begun are then left out. Where the system
/// refuses another thread, those that run do all the work.
template <typename MakeState, typename Task>
void parallel_for(Eigen::Index n_tasks, int n_threads, const MakeState& make_state,
                  const Task& task) {
  const Eigen::Index n_workers = std::min<Eigen::Index>(n_tasks, std::max(n_threads, 1));
  if (n_workers <= 1) {
    auto state = make_state();
    for (Eigen::Index index = 0; index < n_tasks; ++index) task(index, state);
    return;
  }

  std::atomic<Eigen::Index> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&]() noexcept {
    try {
      auto state = make_state();
      for (Eigen::Index index = next++; index < n_tasks; index = next++) task(index, state);
    } catch (...) {
      next = n_tasks;
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    detail::JoiningThreads threads(static_cast<std::size_t>(n_workers - 1));
    try {
      for (Eigen::Index i = 1; i < n_workers; ++i) threads.start(work);
    } catch (const std::system_error&) {
      // Fewer threads than asked for: the ones that started, and this one, share the tasks.
    }
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

/// The same for tasks that need no memory of their thread's: calls `task(index)`.
template <typename Task>
void parallel_for(Eigen::Index n_tasks, int n_threads, const Task& task) {
  struct Nothing {};
  parallel_for(
      n_tasks, n_threads, [] { return Nothing{}; },
      [&](Eigen::Index index, Nothing&) { task(index); });
}

}  // namespace pydfm
