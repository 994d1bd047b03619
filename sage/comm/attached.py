"""A wire for scripts that call `init_process_group` themselves, under torchrun or any other launcher."""

import os

import torch
import torch.distributed as dist

from sage.comm import torch_names
from sage.comm.failure_monitor import FailureMonitor
from sage.comm.process import GroupWire, first_line
from sage.comm.rendezvous import Place
from sage.comm.store_messages import StoreMessages
from sage.comm.transport import WireError


class AttachedWire(GroupWire):
    """A wire over new process groups with the same ranks as an existing group.

    The script may use its own group at the same time, also from another thread. All ranks must create their
    wires in the same order.

    Args:
        group: The existing process group; None: the default group.
        device: Device of the gradients; determines the backend.
        timeout: Seconds after which a collective that has not completed is an error on every rank.

    Raises:
        ValueError: if the script has not called `init_process_group`.
        WireError: if not all ranks create the groups within the timeout.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        device: torch.device,
        timeout: float = 300.0,
        guard: bool = False,
    ) -> None:
        if not dist.is_initialized():
            raise ValueError(
                "no process group is initialised: call torch.distributed.init_process_group first"
            )
        host = group or dist.group.WORLD
        assert host is not None
        store = torch_names.store_of(host)
        place = _place(host, store)
        super().__init__(place, device=device, timeout=timeout, guard=guard)
        try:
            self._group = self._beside(host, self._backend)
            self._control = self._beside(host, "gloo")
            messages = StoreMessages(store.clone(), name=f"sage/{self._control.group_name}")
        except (RuntimeError, ValueError) as error:
            raise WireError(
                f"rank {place.rank} of {place.world_size} could not create its own process group within "
                f"{timeout:g} s: {first_line(error)}. Check that all ranks reach this call"
            ) from error
        self._monitor = FailureMonitor(
            place,
            messages,
            lambda: self._inside,
            store_host="the launcher" if "TORCHELASTIC_RUN_ID" in os.environ else "rank 0",
            is_over=lambda: not dist.is_initialized(),
        )

    def _beside(self, host: dist.ProcessGroup, backend: str) -> dist.ProcessGroup:
        """Create a new group with the same ranks as `host`.

        If `host` does not contain all ranks, the ranks outside it do not take part in the call.
        """
        ranks = dist.get_process_group_ranks(host)
        group = dist.new_group(
            ranks,
            timeout=self._timeout,
            backend=backend,
            use_local_synchronization=len(ranks) < dist.get_world_size(),
        )
        assert isinstance(group, dist.ProcessGroup)
        return group

    def _leave(self) -> None:
        for group in (self._group, self._control):
            dist.destroy_process_group(group)


def _place(group: dist.ProcessGroup, store: dist.Store) -> Place:
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    tcp = store if isinstance(store, dist.TCPStore) else None
    return Place(
        rank=group.rank(),
        world_size=group.size(),
        hostip=tcp.host if tcp else "a file",
        port=tcp.port if tcp else 0,
        source="the script's own group",
    )
