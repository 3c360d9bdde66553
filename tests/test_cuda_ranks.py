"""Ranks on NCCL, two where there are two devices: what they give is what one process gives on one device.

The same functions run on the CPU with a single rank, as on a machine with a single device.
"""

from __future__ import annotations

import pytest
import test_fsdp
import test_ranks
import torch
from ranks import run_ranks
from test_ranks import METHODS, OF_PAPERS, assert_equal, attempt

pytestmark = pytest.mark.timeout(280)

N_STEPS = 5
SOME = ("MGDA, activations", "MGDA, parameters", "GradDrop, parameters")
NAMES = [*METHODS, *(name for name in OF_PAPERS if name in SOME)]


def ddp(rank, size, device):
    settings = {"n_steps": N_STEPS, "device": device, "wrapped": True}
    return {name: attempt(test_ranks.train, name, rank, size, **settings) for name in NAMES}


def fsdp2(rank, size, device):
    return {name: attempt(test_fsdp.train, name, size, rank, n_steps=N_STEPS, device=device) for name in NAMES}


WRAPPED = {"DistributedDataParallel": ddp, "FSDP2": fsdp2}
BACKENDS = ["gloo", pytest.param("nccl", marks=pytest.mark.cuda)]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=WRAPPED)
def trained(request, backend):
    """What each rank trained; and the device that it trained on."""
    size, device = (min(2, torch.cuda.device_count()), "cuda") if backend == "nccl" else (1, "cpu")
    return run_ranks(WRAPPED[request.param], size, size, device, timeout=240, backend=backend), device


@pytest.mark.parametrize("name", NAMES)
def test_n_ranks_are_one_process_on_all_batches(trained, name):
    results, device = trained
    assert_equal([result[name] for result in results], test_ranks.train(name, n_steps=N_STEPS, device=device))
