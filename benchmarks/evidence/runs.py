"""The runs of a problem: which there are, how they are spread over processes, and where the finished ones are kept."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from problems import problem

from mtopt._comparison.records import Records

from .methods import Setting
from .training import Record, Training, ours
from .variants import methods_and_variants

TUNING_SEED = 1000  # of the one run with each setting; the runs that are tested have the seeds 0, 1, 2, ...


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        kind: "tuning", "test" or "peer".
        problem: Its name.
        method: Its name; of a peer, that of the pair.
        setting: Of the method.
        steps: How many.
        seed: Of the first weights, the batches and the draws.
        side: Of a pair.
    """

    kind: str
    problem: str
    method: str
    setting: Setting
    steps: int
    seed: int
    side: str = ""

    @property
    def key(self) -> str:
        """The same for the same job, in any process."""
        return json.dumps(asdict(self), sort_keys=True)


def run(job: Job) -> Record:
    """Do it, in this process."""
    torch.manual_seed(job.seed)  # TorchJD draws from the global numbers
    known = problem(job.problem)
    if job.kind == "peer":
        from .peers import update_of

        make_update = update_of(job.method, job.side, job.setting, job.steps, job.seed)
    else:
        make_update = ours(methods_and_variants(known)[job.method], job.setting, job.steps, job.seed)
    split = "validation" if job.kind == "tuning" else "test"
    return Training(known, make_update, job.setting, job.steps, job.seed).record(split)


def steps_in_time(steps: int, ratio: float) -> int:
    """How many steps take as long as `steps` of the plain sum, if one takes `ratio` times as long."""
    return max(1, round(steps / ratio))


class Finished:
    """The finished runs of a problem, in a file whose name has a digest of all that they depend on."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.records = Records(folder / f"{name}-{digest}.jsonl", settings)
        self.by_key = {record["key"]: record for record in self.records.runs}

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        """What is known of `key`, made if it is not known yet."""
        if key not in self.by_key:
            self.add(key, make())
        return self.by_key[key]

    def add(self, key: str, record: Record) -> None:
        self.by_key[key] = {"key": key, **record}
        self.records.add(self.by_key[key])

    def all_of(
        self, jobs: Iterable[Job], pool: ProcessPoolExecutor, advance: Callable[[Job], None]
    ) -> dict[Job, Record]:
        """The records of all jobs; those that are missing are run."""
        jobs = list(jobs)
        waiting: dict[Future[Record], Job] = {}
        for job in jobs:
            if job.key in self.by_key:
                advance(job)
            else:
                waiting[pool.submit(run, job)] = job
        for future in as_completed(waiting):
            self.add(waiting[future].key, future.result())
            advance(waiting[future])
        return {job: self.by_key[job.key] for job in jobs}


def best(jobs: Sequence[Job], records: dict[Job, Record], larger_is_better: bool) -> Job | None:
    """The one with the best score; `None` if all have diverged."""
    finished = [job for job in jobs if "score" in records[job]]
    if not finished:
        return None
    pick = max if larger_is_better else min
    return pick(finished, key=lambda job: float(records[job]["score"]))


@contextmanager
def workers(n: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each. When this is left by an error or by Ctrl-C, what has not begun is dropped."""
    pool = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    warnings.simplefilter("ignore")  # that vmap has no rule for some operation costs time, and is said elsewhere
    torch.set_num_threads(1)
