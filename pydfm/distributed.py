"""Models of several processes made one, over torch.distributed.

Every process fits its share of the data, with `DFM.fit` or `DFM.partial_fit`; then each gets the
model of all rows. What is sent is what a merge takes: of each layer and class the fewer of rows and
moments, so min(N, D) x D numbers.
"""

import copy
from typing import TYPE_CHECKING, Any

from pydfm.dfm import DFM

if TYPE_CHECKING:
    import torch.distributed


def all_reduce(dfm: DFM, group: "torch.distributed.ProcessGroup | None" = None) -> DFM:
    """Return the model of the rows that all processes of a group have fitted.

    Parameters
    ----------
    dfm : DFM
        Fitted by this process, or not at all where it had no data; settings are the same in all.
    group : torch.distributed.ProcessGroup, optional
        Default the group that ``torch.distributed.init_process_group`` made. Of any backend: with
        nccl what is sent goes over the GPUs.

    Returns
    -------
    DFM
        A new one with the parameters of `dfm`; the same in every process, to the bit.

    Raises
    ------
    RuntimeError
        If there is no group of processes.
    ValueError
        If settings or features differ between processes, or none has fitted anything.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "there is no group of processes; call torch.distributed.init_process_group first"
        )
    mine = None
    if dfm.__sklearn_is_fitted__():
        # Parameters that say where features come from are in the specification, which is compared.
        mine = copy.copy(dfm)
        mine.set_params(backbone=None, device=None)
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, mine, group=group)
    first, *others = [part for part in parts if part is not None] or [None]
    if first is None:
        raise ValueError("no process of the group has a fitted model")
    merged: DFM = first.merge(*others)
    merged.set_params(**dfm.get_params(deep=False))
    if dfm.__sklearn_is_fitted__():
        merged._extractor = dfm._extractor
    return merged
