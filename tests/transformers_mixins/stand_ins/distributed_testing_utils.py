"""Stand-in for a module that the source distribution of transformers leaves out: rank processes on the CPU."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing

import tests.transformers_mixins.registration  # noqa: F401  (ranks import this module, and need our classes)


def _get_distributed_device_type():
    return "cpu"


def _get_distributed_backend():
    return "gloo"


def _get_rank_device(rank):
    return torch.device("cpu")


def _set_rank_device(rank):
    torch.set_num_threads(1)


def _start_rank_processes(function, args, nprocs):
    torch.multiprocessing.start_processes(function, args=args, nprocs=nprocs, start_method="spawn")


def _rank(rank, function, world_size, port, args, kwargs):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    _set_rank_device(rank)
    dist.init_process_group(_get_distributed_backend(), rank=rank, world_size=world_size)
    function(rank, *args, **kwargs)
    dist.destroy_process_group()


def run_distributed(world_size):
    """`run_distributed(2)(function)(*args)` calls `function(rank, *args)` in two new processes of one group."""

    def start(function):
        def run(*args, **kwargs):
            with socket.create_server(("localhost", 0)) as server:
                port = server.getsockname()[1]
            _start_rank_processes(_rank, (function, world_size, port, args, kwargs), world_size)

        return run

    return start
