import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from reference import falling_rows

import pydfm

CODE = """
import json, sys
import numpy as np, torch.distributed as dist
import pydfm
from pydfm.parallel.distributed import all_reduce

store, rows, labels, output, rank = *sys.argv[1:5], int(sys.argv[5])
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
X, y = np.load(rows), np.load(labels)
for case in ("labels", "one empty", "settings"):
    dfm = pydfm.DFM(4 + (case == "settings") * rank, n_threads=1)
    mine = slice(rank, None, 2)
    if case != "one empty":
        dfm.fit(X[mine], labels=y[mine])
    elif rank == 1:
        dfm.fit(X)
    try:
        merged = all_reduce(dfm)
    except ValueError as error:
        found = str(error)
    else:
        found = [merged.n_samples_, merged.score(X).tolist()]
    with open(f"{output}-{case}-{rank}", "w") as file:
        json.dump(found, file)
dist.destroy_process_group()
"""


def test_processes_have_the_model_of_all_rows(tmp_path, run_python):
    rows = falling_rows(90, 12)
    labels = np.arange(90) // 2 % 3
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "labels.npy", labels)
    paths = [tmp_path / name for name in ("store", "rows.npy", "labels.npy", "out")]
    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(run_python, CODE, *map(str, paths), str(rank)) for rank in (0, 1)]
        for rank in ranks:
            rank.result()

    def found(case):
        return [json.loads((tmp_path / f"out-{case}-{rank}").read_text()) for rank in (0, 1)]

    for case, want in (
        ("labels", pydfm.DFM(4).fit(rows, labels=labels)),
        ("one empty", pydfm.DFM(4).fit(rows)),
    ):
        one, other = found(case)
        assert one == other
        assert one[0] == 90
        np.testing.assert_allclose(one[1], want.score(rows), rtol=1e-6)
    for message in found("settings"):
        assert message.startswith("n_components is 4 in one model and 5 in the other")


def test_a_group_is_needed():
    from pydfm.parallel.distributed import all_reduce

    with pytest.raises(RuntimeError, match=r"call torch.distributed.init_process_group first"):
        all_reduce(pydfm.DFM(2).fit(falling_rows(9, 3)))
