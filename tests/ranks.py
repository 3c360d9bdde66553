"""Runs a function on several ranks: on 127.0.0.1, a free port each time, every process ends with exit code 0."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

CONTEXT = multiprocessing.get_context("forkserver")  # processes start fast from one that has only imported things
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "mtopt"]
)
SECONDS = 20  # how long a collective waits for a rank that does not come


def run_ranks(function, n_ranks, *args, timeout=120.0, lost=(), backend="gloo"):
    """What `function(rank, *args)` returned on each rank, or the text of its error, as "Type: message".

    `lost` are ranks that are meant to die; all the others must end with exit code 0. With the backend "nccl" each rank
    has the CUDA device of its own number.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(n_ranks)]
    processes = [
        CONTEXT.Process(target=_run, args=(function, rank, n_ranks, port, pipes[rank][1], args, backend))
        for rank in range(n_ranks)
    ]
    deadline = time.monotonic() + timeout
    try:
        for process, (_, writer) in zip(processes, pipes, strict=True):
            process.start()
            writer.close()
        results = [_receive(reader, deadline) for reader, _ in pipes]
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = {rank: process.exitcode for rank, process in enumerate(processes) if rank not in lost}
        assert set(codes.values()) == {0}, f"exit codes {codes}; {results}"
        return results
    finally:
        for process in processes:
            process.kill()


def _receive(reader, deadline):
    if not reader.poll(max(0.0, deadline - time.monotonic())):
        return "TimeoutError: no result"
    try:
        return reader.recv()
    except EOFError:
        return "EOFError: the process ended without a result"


def _run(function, rank, n_ranks, port, writer, args, backend):
    torch.set_num_threads(1)
    seconds = timedelta(seconds=120 if backend == "nccl" else SECONDS)  # it begins slowly
    address = f"tcp://127.0.0.1:{port}"
    device = None
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(backend, address, timeout=seconds, rank=rank, world_size=n_ranks, device_id=device)
    try:
        result = function(rank, *args)
    except Exception as error:
        if "MTOPT_TRACEBACK" in os.environ:
            traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    writer.send(result)
    dist.destroy_process_group()
