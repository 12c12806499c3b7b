"""Optuna over Dask, as the teams wrote it who calibrate on Kubernetes.

Three forms, after the three that their reports measure:

- ``batched-12``: asks for a batch of trials, simulates each trial's replicates anew for
  every target, waits for all of the batch, tells all of it.
- ``threads-12``: one thread per trial in flight, each with a loop of its own: ask,
  simulate and score for one target, then again for the next, tell.
- ``threads-7``: the same threads, but a trial is simulated once; both scores are
  submitted with the simulations' futures as arguments and waited for together.

Runs in an environment of its own (dask, distributed, optuna, numpy), and writes one
JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import distributed
import model
import numpy as np
import optuna
from distributed.deploy.subprocess import SubprocessCluster

Forms = {
    "batched-12": "run_batched",
    "threads-12": "run_twice",
    "threads-7": "run_once",
}


class Peer:
    """A study and a cluster, and what both are asked for."""

    def __init__(self, client: distributed.Client, options: argparse.Namespace) -> None:
        self.client = client
        self.options = options
        self.data = model.observe()
        self.simulations = 0
        self.scores = 0
        self.asked = 0
        self.began = 0.0  # the first submit
        self.ended = 0.0  # the last result
        self.lock = threading.Lock()
        sampler = optuna.samplers.TPESampler(
            seed=options.seed,
            n_startup_trials=options.startup,
            n_ei_candidates=options.candidates,
        )
        self.study = optuna.create_study(
            storage=open_storage(options.journal), sampler=sampler, study_name="peer"
        )

    def ask(self) -> optuna.Trial | None:
        """Ask for one more trial with its parameters; None where there are enough."""
        with self.lock:
            if self.asked == self.options.trials:
                return None
            self.asked += 1
        trial = self.study.ask()
        for name, (low, high, scale) in model.RANGES.items():
            trial.suggest_float(name, low, high, log=scale == "log")
        return trial

    def simulate(self, trial: optuna.Trial) -> list[distributed.Future]:
        """Submit the replicates of a trial."""
        with self.lock:
            self.began = self.began or time.time()
            self.simulations += self.options.replicates
        return [
            self.client.submit(
                model.simulate,
                f"trial={trial.number}",
                replicate,
                **trial.params,
                scale=self.options.scale,
                pure=False,
            )
            for replicate in range(self.options.replicates)
        ]

    def score(
        self, target: str, simulated: list[distributed.Future]
    ) -> distributed.Future:
        """Submit a score; Dask hands it the results of the simulations."""
        with self.lock:
            self.scores += 1
        return self.client.submit(
            model.score, target, self.data[target], *simulated, pure=False
        )

    def gather(self, futures: list[distributed.Future]) -> list[float]:
        """Wait for all, then collect: the teams' remedy against blocking in line."""
        distributed.wait(futures)
        losses = [future.result() for future in futures]
        self.ended = time.time()
        return losses

    def run_batched(self) -> None:
        """Ask for a batch, wait for all of it, tell all of it."""
        while trials := [
            trial
            for _ in range(self.options.batch)
            if (trial := self.ask()) is not None
        ]:
            futures = [
                self.score(target, self.simulate(trial))
                for trial in trials
                for target in model.TARGETS
            ]
            losses = self.gather(futures)
            for trial, own in zip(
                trials, np.reshape(losses, (len(trials), -1)), strict=True
            ):
                self.study.tell(trial, float(np.mean(own)))

    def run_twice(self) -> None:
        """In each thread: one target after the other, each simulated for."""

        def evaluate(trial: optuna.Trial) -> list[float]:
            losses = []
            for target in model.TARGETS:
                losses += self.gather([self.score(target, self.simulate(trial))])
            return losses

        self.run_threads(evaluate)

    def run_once(self) -> None:
        """In each thread: simulate once, score all targets together."""

        def evaluate(trial: optuna.Trial) -> list[float]:
            simulated = self.simulate(trial)
            return self.gather([self.score(t, simulated) for t in model.TARGETS])

        self.run_threads(evaluate)

    def run_threads(self, evaluate: Callable[[optuna.Trial], list[float]]) -> None:
        """Let as many threads as a batch has trials ask, evaluate and tell."""

        def loop() -> None:
            while (trial := self.ask()) is not None:
                self.study.tell(trial, float(np.mean(evaluate(trial))))

        with ThreadPoolExecutor(self.options.batch) as pool:
            for done in [pool.submit(loop) for _ in range(self.options.batch)]:
                done.result()


def open_storage(path: str | None) -> Any:
    """Return Optuna's storage: a journal file, or else this process's memory."""
    if path is None:
        return optuna.storages.InMemoryStorage()
    backend = optuna.storages.journal.JournalFileBackend(path)
    return optuna.storages.JournalStorage(backend)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Optuna over Dask, for run.py.")
    parser.add_argument("--form", choices=Forms, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--replicates", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--startup", type=int, required=True)
    parser.add_argument("--candidates", type=int, required=True)
    parser.add_argument("--journal", help="a journal file, instead of memory")
    return parser.parse_args()


def main() -> None:
    """Run one form on a cluster of subprocesses, the scheduler in one of its own."""
    options = parse_options()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with (
        SubprocessCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            worker_class="distributed.Worker",  # no nannies, which cost CPU time
            dashboard_address=":0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(options.workers)
        client.run(model.observe)  # each worker has imported model and numpy
        peer = Peer(client, options)
        getattr(peer, Forms[options.form])()
    result = {
        "began": peer.began,
        "ended": peer.ended,
        "trials": len(peer.study.trials),
        "simulations": peer.simulations,
        "scores": peer.scores,
        "best": peer.study.best_value,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
