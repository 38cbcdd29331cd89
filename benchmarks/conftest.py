from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.measure import Comparison, thread_limit


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.update(machine.facts())


@pytest.fixture
def timed(benchmark: Any) -> Callable[[Comparison, str], None]:
    """Check and time one case of a comparison, in the group of its other cases."""

    def run(comparison: Comparison, name: str) -> None:
        case = next((case for case in comparison.cases if case.name == name), None)
        if case is None:
            pytest.skip(f"{name} does not do {comparison.work}")
        with thread_limit(comparison.n_threads):
            answer = case.run()
            if answer is not None:
                comparison.check(answer)
            benchmark.group = f"{comparison.work}, threads: {comparison.n_threads}"
            benchmark.extra_info["notes"] = comparison.notes(answer)
            benchmark(case.run)

    return run
