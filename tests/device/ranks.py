"""One rank of several on the fake device: a process group that sends nothing, and what DDP needs."""
import os
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from torch.distributed import _meta_registrations
from torch.nn.parallel import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

# collectives of several tensors that PyTorch gives no shapes for
COALESCED = ("allreduce_coalesced_", "allgather_coalesced_", "allgather_into_tensor_coalesced_",
             "reduce_scatter_tensor_coalesced_")


def join(world_size, gradients):
    """From now on be rank 0 of world_size, as torchrun starts it. gradients(bucket) is called for DDP's buckets."""
    names = {"RANK": 0, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in names.items()}
    if dist.is_initialized():
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    for name in COALESCED:
        _meta_registrations.lib_impl.impl(
            name, lambda *given: _meta_registrations.create_fakework(given, return_first_arg=False), "Meta")
    wrap_ddp(gradients)


class Reducer:
    """DDP's reducer without what reads memory."""

    def __init__(self, own):
        self.own = own

    def __getattr__(self, name):
        return getattr(self.own, name)

    def _rebuild_buckets(self):
        return False


def wrap_ddp(gradients):
    ddp = distributed.DistributedDataParallel
    build, forward = ddp.__init__, ddp.forward
    distributed._verify_param_shape_across_processes = distributed._sync_module_states = lambda *given, **more: None

    def reduce(state, bucket):
        gradients(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def init(self, *given, **more):
        build(self, *given, **more)
        self.register_comm_hook(None, reduce)
        self.logger, self.reducer = MagicMock(), Reducer(self.reducer)
    ddp.__init__ = init
    ddp.forward = lambda self, *inputs, **more: forward(self, *[x.clone() for x in inputs], **more)
