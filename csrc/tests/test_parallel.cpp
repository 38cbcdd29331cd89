#include "pydfm/parallel.hpp"

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace {

using pydfm::Index;
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

}  // namespace

int main() {
  every_index_is_done_once();
  exceptions_are_rethrown_and_stop_the_loop();
  a_team_does_every_index_of_every_loop_once();
  teams_may_be_idle_many_and_nested_in_threads();
  return pydfm::testing::result();
}
