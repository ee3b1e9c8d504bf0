"""One rank of several on the fake device: a process group that sends nothing."""
import os

import torch.distributed as dist
from torch.distributed import _meta_registrations
from torch.testing._internal.distributed.fake_pg import FakeStore

# collectives of several tensors that PyTorch gives no shapes for
COALESCED = ("allreduce_coalesced_", "allgather_coalesced_", "allgather_into_tensor_coalesced_",
             "reduce_scatter_tensor_coalesced_")


def join(world_size):
    """From now on be rank 0 of world_size, as torchrun starts it."""
    names = {"RANK": 0, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in names.items()}
    if dist.is_initialized():
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    for name in COALESCED:
        _meta_registrations.lib_impl.impl(
            name, lambda *given: _meta_registrations.create_fakework(given, return_first_arg=False), "Meta")
