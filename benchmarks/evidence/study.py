"""One problem from its costs to its results: measure, tune, test, compare with peers. No statistics."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from problems import QUICK, problem
from problems.base import Problem

import mtopt

from . import peers
from .cost import costs_of, measured
from .methods import AGAIN, PLAIN, TRIALS, Setting, at_edge, methods_of, settings_of
from .runs import TUNING_SEED, Finished, Job, best, steps_in_time
from .summary import by_task, summarize_by_family
from .training import Record
from .variants import FAMILIES, methods_and_variants

QUICK_TRIALS, QUICK_REPEATS, REPEATS = 2, 3, 31
REPEATS_IN_STEPS = 11  # the costs decide nothing there
TIME, STEPS = "time", "steps"

Advance = Callable[[Job], None]


@dataclass
class Study:
    """All runs of one problem.

    Attributes:
        name: Of the problem.
        only: The methods, beside the plain sum; all, if empty.
        seeds: How many; the problem's own number, if 0.
        folder: Where finished runs are kept.
        equal: What all methods have as much of: time or steps.
        beside: The families, or single ones of them, that stand beside the methods in equal steps.
    """

    name: str
    only: tuple[str, ...]
    seeds: int
    folder: Path
    equal: str = TIME
    beside: tuple[str, ...] = FAMILIES

    def __post_init__(self) -> None:
        self.problem: Problem = problem(self.name)
        self.quick = self.name in QUICK
        self.trials = QUICK_TRIALS if self.quick else TRIALS
        self.repeats = QUICK_REPEATS if self.quick else REPEATS_IN_STEPS if self.in_steps else REPEATS
        self.methods = (methods_and_variants if self.in_steps else methods_of)(self.problem)
        self.n_seeds = self.seeds or self.problem.seeds
        # Neither the methods, nor what stands beside them, nor the number of seeds: a study may grow.
        self.finished = Finished(self.folder, self.name, self.described())

    @property
    def in_steps(self) -> bool:
        return self.equal == STEPS

    def described(self) -> dict[str, Any]:
        """What all runs depend on."""
        known = self.problem
        return {
            "problem": self.name,
            "about": known.about,
            "tasks": list(known.tasks),
            "metric": known.metric,
            "larger_is_better": known.larger_is_better,
            "at": known.at,
            "equal": self.equal,
            "steps": known.steps,
            "lrs": list(known.lrs),
            "trials": self.trials,
            "tuning_seed": TUNING_SEED,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "mtopt": mtopt.__version__},
        }

    def results(self, pool: ProcessPoolExecutor, advance: Advance) -> dict[str, Any]:
        """Do what is not done yet; everything that is known, JSON-able."""
        found = self.finished.once("costs", self._costs)
        costs, refused = found["costs"], found["refused"]
        names = [name for name in self._names() if name in costs]
        steps = {name: self._steps(costs[name]["ratio"]) for name in names}

        tuning = {name: self._tuning(name, steps[name]) for name in names}
        tried = self.finished.all_of([job for jobs in tuning.values() for job in jobs], pool, advance)
        chosen = {name: best(jobs, tried, self.problem.larger_is_better) for name, jobs in tuning.items()}
        for name in names:
            if (other := self.methods[name].setting_of) is not None and (job := chosen[other]) is not None:
                chosen[name] = replace(job, method=name, steps=steps[name])
        tests = {name: self._tests(job) for name, job in chosen.items() if job is not None}
        tested = self.finished.all_of([job for jobs in tests.values() for job in jobs], pool, advance)
        runs = {name: [_run(job, tested[job]) for job in jobs] for name, jobs in tests.items()}
        families = {name: self.methods[name].family for name in names}
        summary = summarize_by_family(runs, families, self.problem.larger_is_better)

        methods = {}
        for name, job in chosen.items():
            method = self.methods[name]
            entry: dict[str, Any] = {"steps": steps[name], **costs[name]}
            entry |= {key: value for key in ("family", "partner") if (value := getattr(method, key))}
            entry["tuning"] = [{**_set(trial), **_known(tried[trial])} for trial in tuning[name]]
            if job is not None:
                edge = at_edge(self.problem, self.methods[method.setting_of or name], job.setting.lr)
                entry |= {"setting": _set(job), "at_edge": edge, "tasks": by_task(runs[name])}
                entry |= {"runs": runs[name], "summary": summary[name]}
            methods[name] = entry
        return {
            "noise": costs[AGAIN]["ratio"],
            "refused": refused,
            "seeds": list(range(self.n_seeds)),
            "methods": methods,
            "peers": self._peers(chosen, pool, advance) if self._has_peers else {},
        }

    def n_jobs(self) -> int:
        """How many runs there will be, at most."""
        wanted = [self.methods[name] for name in self._names()]
        tuned = [method for method in wanted if method.setting_of is None]
        peer = 3 * len([pair for pair in peers.PAIRS if self._wanted(pair)]) * self.n_seeds
        return len(tuned) * self.trials + len(wanted) * self.n_seeds + (peer if self._has_peers else 0)

    @property
    def _has_peers(self) -> bool:
        return self.problem.peers and not self.in_steps

    def _steps(self, ratio: float) -> int:
        return self.problem.steps if self.in_steps else steps_in_time(self.problem.steps, ratio)

    def _names(self) -> list[str]:
        families = ("", *self.beside)
        kept = [name for name, method in self.methods.items() if method.family in families or name in self.beside]
        return [name for name in kept if self._wanted(name)]

    def _wanted(self, name: str) -> bool:
        return not self.only or name == PLAIN or name in self.only

    def _costs(self) -> Record:
        costs, refused = costs_of(self.problem, self.methods, self.repeats, processor=self.in_steps)
        return {"costs": costs, "refused": refused}

    def _tuning(self, name: str, steps: int) -> list[Job]:
        if self.methods[name].setting_of is not None:
            return []
        settings = settings_of(self.problem, self.methods[name], self.trials)
        return [Job("tuning", self.name, name, setting, steps, TUNING_SEED) for setting in settings]

    def _tests(self, job: Job) -> list[Job]:
        return [Job("test", self.name, job.method, job.setting, job.steps, seed) for seed in range(self.n_seeds)]

    # -- peers ---------------------------------------------------------------------------------------------------------

    def _peers(self, chosen: dict[str, Job | None], pool: ProcessPoolExecutor, advance: Advance) -> dict[str, Any]:
        """Each pair with the learning rate that was best for ours: equal steps on both sides, then equal time."""
        settings = {pair: job.setting for pair in peers.PAIRS if (job := chosen.get(pair)) is not None}
        name = f"peers' costs: {sorted(settings)}"
        found = self.finished.once(name, lambda: self._peer_costs(settings, self.repeats))
        costs, peaks = found["costs"], found["peaks"]
        jobs = []
        for pair, setting in settings.items():
            of_ours, of_peer = (
                steps_in_time(self.problem.steps, costs[_of(pair, side)]["ratio"])
                for side in (peers.OURS, peers.THEIRS)
            )
            for side, steps in ((peers.OURS, of_ours), (peers.THEIRS, of_ours), (peers.IN_TIME, of_peer)):
                jobs += [Job("peer", self.name, pair, setting, steps, seed, side) for seed in range(self.n_seeds)]
        records = self.finished.all_of(jobs, pool, advance)
        result: dict[str, Any] = {}
        for job in jobs:
            side = result.setdefault(job.method, {"lr": job.setting.lr}).setdefault(job.side, {"steps": job.steps})
            side.setdefault("runs", []).append(_run(job, records[job]))
            cell = _of(job.method, peers.OURS if job.side == peers.OURS else peers.THEIRS)
            side |= {**costs[cell], "peak": peaks[cell]}
        return result

    def peer_costs_anew(self, known: dict[str, Any]) -> dict[str, Any]:
        """The results with what the peers' steps and ours cost now, beside what they cost when these trained."""
        settings = {pair: Setting(sides["lr"]) for pair, sides in known["peers"].items()}
        found = self._peer_costs(settings, 5 * self.repeats)
        for pair, sides in known["peers"].items():
            for side in (peers.OURS, peers.THEIRS):
                cell = _of(pair, side)
                sides[side]["now"] = {**found["costs"][cell], "peak": found["peaks"][cell]}
        return known

    def _peer_costs(self, settings: dict[str, Setting], repeats: int) -> Record:
        updates = {
            _of(pair, side): peers.update_of(pair, side, setting, self.problem.steps, 0)
            for pair, setting in settings.items()
            for side in (peers.OURS, peers.THEIRS)
        }
        setting = settings[PLAIN]
        plain = updates[_of(PLAIN, peers.THEIRS)]  # the loop by hand
        costs, refused = measured(self.problem, {PLAIN: plain, **updates}, setting, repeats)
        if refused:
            raise RuntimeError(f"A step of a peer has failed: {refused}")
        peaks = {name: peers.peak(self.problem, make, setting) for name, make in updates.items()}
        return {"costs": costs, "peaks": peaks}


def torchjd_version() -> str:
    """Of the peer."""
    return version("torchjd")


def _of(pair: str, side: str) -> str:
    return f"{pair} | {side}"


def _set(job: Job) -> dict[str, Any]:
    """The setting, but for what is not set."""
    return {name: value for name, value in asdict(job.setting).items() if value or name == "lr"}


def _known(record: Record) -> Record:
    return {name: value for name, value in record.items() if name in ("score", "diverged")}


def _run(job: Job, record: Record) -> dict[str, Any]:
    return {"seed": job.seed, **{name: value for name, value in record.items() if name != "key"}}
