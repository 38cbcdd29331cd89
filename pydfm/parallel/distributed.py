"""Models of several processes made one, over torch.distributed.

Every process fits its share of the data, with `DFM.fit` or `DFM.partial_fit`; then each gets the
model of all rows. What is sent is a training state: for each layer and class the smaller of rows
and moments, so min(N, D) x D numbers.
"""

from typing import TYPE_CHECKING, Any

from pydfm.estimator import DFM
from pydfm.runtime.threads import resolve_threads

if TYPE_CHECKING:
    import torch.distributed


def all_reduce(dfm: DFM, group: "torch.distributed.ProcessGroup | None" = None) -> DFM:
    """Return the model of the rows that all processes of a group have fitted.

    Parameters
    ----------
    dfm : DFM
        Fitted by this process, or not fitted where it had no data; parameters are the same in all.
    group : torch.distributed.ProcessGroup, optional
        Default the group that ``torch.distributed.init_process_group`` made, of any backend; with
        nccl the states are sent through the GPUs.

    Returns
    -------
    DFM
        A new one with the parameters of `dfm`; the same in every process, to the bit.

    Raises
    ------
    RuntimeError
        If there is no group of processes.
    ValueError
        If parameters or features differ between processes, or no process has fitted anything.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "there is no group of processes; call torch.distributed.init_process_group first"
        )
    mine = dfm.training_ if dfm.__sklearn_is_fitted__() else None
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, mine, group=group)
    states = [part for part in parts if part is not None]
    if not states:
        raise ValueError("no process of the group has a fitted model")
    merged, n_threads = states[0], resolve_threads(dfm.n_threads)
    for state in states[1:]:
        merged = merged.merge(state, n_threads=n_threads)
    return dfm.with_state(merged)
