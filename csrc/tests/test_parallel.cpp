#include "runtime/interruption.hpp"
#include "runtime/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"

namespace {

using pydfm::Index;
using pydfm::Interruptible;
using pydfm::Team;
using pydfm::testing::check;
using pydfm::testing::check_throws;

bool all_once(const std::vector<std::atomic<int>>& counts) {
  for (const auto& count : counts) {
    if (count != 1) return false;
  }
  return true;
}

void every_index_is_done_once() {
  for (const int n_threads : {-1, 0, 1, 2, 3, 16}) {
    for (const Index n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<std::size_t>(n));
      pydfm::parallel_for(n, n_threads, [&](Index i) { ++counts[i]; });
      check(all_once(counts), std::to_string(n) + " tasks on " + std::to_string(n_threads));
    }
  }
}

void exceptions_are_rethrown_and_stop_the_loop() {
  for (const int n_threads : {1, 2, 5}) {
    std::atomic<Index> done{0};
    const auto loop = [&] {
      pydfm::parallel_for(100000, n_threads, [&](Index i) {
        if (i == 3) throw std::domain_error("three");
        ++done;
      });
    };
    check_throws<std::domain_error>(loop, "a loop with a task that throws");
    check(done < 99999, "tasks are left out after an exception");
  }
}

void a_team_does_every_index_of_every_loop_once() {
  for (const int n_threads : {0, 1, 2, 3, 8}) {
    Team team(n_threads);
    std::vector<Index> sums(64);
    bool right = true;
    for (Index loop = 0; loop < 2000; ++loop) {
      const Index n = loop % 65;
      // What a loop writes, the next one reads: loops are ordered.
      team.run(n, [&](Index i) { sums[i] += loop + i; });
      for (Index i = 0; i < n; ++i) right = right && sums[i] == loop + i;
      for (Index i = 0; i < n; ++i) sums[i] = 0;
    }
    check(right, "loops of a team of " + std::to_string(n_threads));
    std::atomic<Index> total{0};
    const Index many = (Index{1} << 20) + 5;  // more than a ticket holds
    team.run(many, [&](Index i) { total += i % 3; });
    check(total == many, "a long loop of a team of " + std::to_string(n_threads));
  }
}

void teams_may_be_idle_many_and_nested_in_threads() {
  std::atomic<Index> total{0};
  pydfm::parallel_for(20, 4, [&](Index i) {
    const Team idle(3);
    Team team(2);
    team.run(i, [&](Index) { ++total; });
  });
  check(total == 190, "teams in threads");
}

struct Interrupted {};

std::atomic<int> n_checks{0};
std::atomic<std::thread::id> checked_on;

void let_pass() {
  ++n_checks;
  checked_on = std::this_thread::get_id();
}

void interrupt() {
  let_pass();
  throw Interrupted();
}

// Tasks enough for a minute, were they not left out.
template <typename Task>
void long_loop(int n_threads, const Task& task) {
  pydfm::parallel_for(60000 * std::max(n_threads, 1), n_threads, task);
}

void wait(Index milliseconds = 1) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

void an_interruption_stops_the_tasks_and_comes_out() {
  for (const int n_threads : {1, 2, 5}) {
    const Interruptible work(&interrupt);
    n_checks = 0;
    std::atomic<int> n_running{0};
    const auto loop = [&] {
      long_loop(n_threads, [&](Index) {
        ++n_running;
        wait();
        --n_running;
      });
    };
    check_throws<Interrupted>(loop, "an interrupted loop");
    check(n_running == 0, "no task goes on after an interruption");
    check(n_checks == 1, "an interruption is found out once");
    check(checked_on.load() == std::this_thread::get_id(), "the calling thread asks");
  }
}

void long_task(bool nested) {
  if (nested) {
    long_loop(2, [](Index) { wait(); });
  } else {
    for (Index i = 0; i < 60000; ++i) {
      wait();
      pydfm::poll();
    }
  }
}

void an_interruption_reaches_nested_loops_and_long_tasks() {
  for (const bool nested : {false, true}) {
    const Interruptible work(&interrupt);
    check_throws<Interrupted>([&] { long_task(nested); }, "an interrupted task");

    // Only another thread has something left to do.
    const Interruptible shared(&interrupt);
    const auto calling = std::this_thread::get_id();
    std::atomic<bool> begun{false};
    const auto loop = [&] {
      pydfm::parallel_for(2, 2, [&](Index) {
        if (std::this_thread::get_id() == calling) {
          while (!begun) wait();
        } else {
          begun = true;
          long_task(nested);
        }
      });
    };
    check_throws<Interrupted>(loop, "an interrupted task of another thread");
  }
}

void an_interruption_stops_a_team_between_loops() {
  for (const int n_threads : {1, 3}) {
    const Interruptible work(&interrupt);
    std::atomic<Index> n_done{0};
    Index n_loops = 0;
    const auto loops = [&] {
      Team team(n_threads);
      for (; n_loops < 60000; ++n_loops) {
        team.run(2, [&](Index) {
          wait();
          ++n_done;
        });
      }
    };
    check_throws<Interrupted>(loops, "an interrupted team");
    check(n_done == 2 * n_loops, "loops that began are done");
  }
}

void work_that_is_not_interrupted_is_done() {
  const Interruptible work(&let_pass);
  n_checks = 0;
  std::atomic<Index> n_done{0};
  pydfm::parallel_for(300, 2, [&](Index) {
    wait(2);
    ++n_done;
  });
  check(n_done == 300, "all tasks are done where the check lets pass");
  check(n_checks > 0, "the check is called");
}

void work_within_the_check_leaves_the_outer_one_as_it_was() {
  Interruptible* const none = Interruptible::current();
  {
    Interruptible outer(&interrupt);
    {
      const Interruptible inner(&let_pass);
      pydfm::parallel_for(2, 2, [](Index) { wait(); });
    }
    check(Interruptible::current() == &outer, "the outer work is current again");
  }
  check(Interruptible::current() == none && none == nullptr, "no work is current at the end");
  pydfm::poll();
}

}  // namespace

int main() {
  every_index_is_done_once();
  exceptions_are_rethrown_and_stop_the_loop();
  a_team_does_every_index_of_every_loop_once();
  teams_may_be_idle_many_and_nested_in_threads();
  an_interruption_stops_the_tasks_and_comes_out();
  an_interruption_reaches_nested_loops_and_long_tasks();
  an_interruption_stops_a_team_between_loops();
  work_that_is_not_interrupted_is_done();
  work_within_the_check_leaves_the_outer_one_as_it_was();
  return pydfm::testing::result();
}
