#include "runtime/parallel.hpp"

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>

#include "runtime/interruption.hpp"

namespace pydfm {

Index Tasks::take() {
  const Index index = next_++;
  if (index >= n_) return -1;
  if (index > 0) poll();
  return index;
}

namespace detail {

JoiningThreads::~JoiningThreads() {
  for (std::thread& thread : threads_) thread.join();
}

void JoiningThreads::start(int count, const std::function<void()>& work) {
  threads_.reserve(static_cast<std::size_t>(std::max(count, 0)));
  try {
    for (int i = 0; i < count; ++i) threads_.emplace_back(std::cref(work));
  } catch (const std::system_error&) {
    // Fewer threads than asked for: the ones that started, and the calling one, share the tasks.
  }
}

void share(Index n_tasks, int n_threads, void (*work)(const void*, Tasks&), const void* context) {
  Tasks tasks(n_tasks);
  const auto n_workers = static_cast<int>(std::min<Index>(n_tasks, std::max(n_threads, 1)));
  if (n_workers <= 1) return work(context, tasks);

  std::mutex mutex;  // of failure and n_ended
  std::exception_ptr failure;
  std::size_t n_ended = 0;
  std::condition_variable one_ended;
  const auto guarded = [&](const auto& action) noexcept {
    try {
      action();
    } catch (...) {
      tasks.drop();
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  Interruptible* const interruptible = Interruptible::current();
  const std::function<void()> help = [&] {
    Interruptible::current() = interruptible;
    guarded([&] { work(context, tasks); });
    const std::lock_guard<std::mutex> lock(mutex);
    ++n_ended;
    one_ended.notify_one();
  };
  {
    JoiningThreads threads;
    threads.start(n_workers - 1, help);
    guarded([&] { work(context, tasks); });
    // The others' last tasks may be long, and this thread alone finds out about an interruption.
    guarded([&] {
      std::unique_lock<std::mutex> lock(mutex);
      const auto all_ended = [&] { return n_ended == threads.size(); };
      while (!one_ended.wait_for(lock, std::chrono::milliseconds(20), all_ended)) poll();
    });
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace detail

namespace {

constexpr int kTaskBits = 20;
constexpr std::uint64_t kTaskMask = (std::uint64_t{1} << kTaskBits) - 1;

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

}  // namespace

Team::Team(int n_threads) : worker_([this] { work(); }) { threads_.start(n_threads - 1, worker_); }

void Team::run(Index n_tasks, Call call, const void* context) {
  if (n_tasks > 1) poll();
  if (threads_.size() == 0 || n_tasks <= 1 || n_tasks > Index{kTaskMask}) {
    for (Index index = 0; index < n_tasks; ++index) call(context, index);
    return;
  }
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  loop_ += std::uint64_t{1} << (2 * kTaskBits);
  tickets_.store(loop_ + static_cast<std::uint64_t>(n_tasks), std::memory_order_release);
  while (take_one(End::kFirst)) {
  }
  for (Backoff wait; done_.load(std::memory_order_acquire) != n_tasks;) wait();
}

// Takes the first or the last task that is left, if any, and does it. A ticket names its loop, so
// that a thread that comes late can take none of a loop that is over; and no loop ends before the
// tasks taken are done.
bool Team::take_one(End from) {
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

void Team::work() {
  for (Backoff wait; !stop_.load(std::memory_order_relaxed);) {
    if (take_one(End::kLast)) {
      wait = Backoff();
    } else {
      wait();
    }
  }
}

}  // namespace pydfm
