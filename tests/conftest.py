"""Hypothesis' settings: no deadline (the machine may be busy), the same examples in every run; which tests are core,
and which need CUDA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("mtopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("mtopt")

# Tests of several ranks, of a browser, and of what stands around the core: they need more packages, or more time.
RANKS = {"cuda_ranks", "faults", "fsdp", "ranks", "resume"}
AROUND = {
    "batched",
    "benchmark_data",
    "command",
    "compare",
    "compile",
    "cost_page",
    "demo",
    "docs",
    "docs_frontier",
    "docs_graddrop",
    "evidence",
    "gpu",
    "examples",
    "monitor",
    "overfit_benchmark",
    "pictures",
    "ppo_benchmark",
    "programs",
    "project",
    "promise_benchmark",
    "release",
    "scaling",
    "site",
    "survey",
}
APART = {f"test_{name}.py" for name in RANKS | AROUND}


def _only_the_core(config):
    return config.option.markexpr.split() == ["core"]


def pytest_ignore_collect(collection_path, config):
    """What is not looked at need not be importable: a light install does for the core."""
    if _only_the_core(config) and collection_path.name in APART:
        return True
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name not in APART:
            item.add_marker("core")
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="module")
def one_thread():
    """More would only wait for each other on tensors as small as those of some tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
