"""Measure a cluster for one network: the cost of every block on every rank, and the links."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.cluster import HEAD, SHARES, Cluster, Device, Link, Rate, Work
from mpicoded.cluster_tools.profiling.bench import (
    VALUES,
    Bench,
    Brief,
    Reply,
    Sample,
    fit,
    seconds,
    spread,
)
from mpicoded.errors import RemoteError
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.engine import Engine
from mpicoded.runtime.environment import check_parent
from mpicoded.runtime.lab_line import LabLine
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.setup import Run, Setup, own_parts
from mpicoded.runtime.wire import Backoff, Kind, Message
from mpicoded.scheduling.turns import ABREAST
from mpicoded.settings import RuntimeSpec

MIDDLE, LARGE = 1 << 15, 1 << 20  # bytes of messages
LITTLE = 1 << 12  # bytes of a burst that may be none
ROUNDS = 12  # small messages there and back
LIMIT = 300.0  # s for one answer
TINY, HUGE, BRIEF, BENCH = range(4)  # units: two sizes of an answer, one program, all programs


class Answer(NamedTuple):
    """A rank's answer, after how many seconds it came, and how many of them it computed."""

    tensor: Tensor
    after: float
    computed: float


class Profiler:
    """Measures the workers of a WorkerPool and the leader, which calls it.

    Blocks are cut in three ways: in pieces of two sizes, for the workers; the leader runs whole
    ones, and the head behind them.
    """

    def __init__(
        self, pool: WorkerPool, hosts: Sequence[str], cut: Sequence[Deployment], spec: RuntimeSpec
    ) -> None:
        self.pool, self.wire, self.hosts = pool, pool.wire, hosts
        fine, coarse, self.whole = cut
        self.samples = Sample.of(fine), Sample.of(coarse)
        self.itemtype = torch.float32 if spec.wire == "float32" else torch.float16
        self._number = 0
        self._backoff = Backoff()
        self._send_setup(spec.threads)
        pool.recv_each(Kind.READY, spec.start_limit, lambda message: None)
        self._lab = LabLine((), hosts, lambda *about: None)
        self._lab.ready()

    def _send_setup(self, threads: int | str) -> None:
        self.wire.expect(LARGE)
        fine, coarse = self.samples
        bench = Bench(fine.programs + coarse.programs, fine.shapes + coarse.shapes, self.itemtype)
        by_work = sorted(range(len(fine.works)), key=lambda i: fine.works[i].amount)
        middle = by_work[len(by_work) // 2]
        brief = Brief(fine.programs[middle], fine.shapes[middle])
        units: tuple[Run, ...] = (Reply(4), Reply(LARGE), brief, bench)
        setup = Setup((units,), (((1,),) * len(units),), None, LARGE, threads)
        self.pool.send_setup(setup, own_parts(dict.fromkeys(self.wire.peers, ()), (), 0))

    def measure(self, say: Callable[[str], None]) -> Cluster:
        """Return the cluster with all its devices and links."""
        workers = tuple(self.wire.peers)
        say(f"blocks in pieces of two sizes, on {len(workers)} workers at once")
        devices = self._workers(workers)
        say("whole blocks and head, on the leader")
        leader = self._leader()
        say(f"messages of {LARGE >> 10} KiB, to and from each worker")
        trip = {rank: self._median({rank: (TINY, 1)}, ROUNDS) for rank in workers}
        rates = {rank: self._rates([rank], trip[rank]) for rank in workers}
        say("messages to and from all workers at once")
        sends, receives = reversed(self._rates(workers, max(trip.values())))
        burst = {rank: self._burst(rank, rates[rank][1], trip[rank]) for rank in workers}
        say("short units, on each worker and on all at once")
        alone = np.hstack([self._besides([rank]) for rank in workers])
        usual = np.median(alone, axis=0)
        late = tuple(np.quantile(np.maximum(alone - usual, 0), SHARES).tolist())
        delay = dict(zip(workers, usual.tolist(), strict=True))
        links = {p: Link(*rates[p], delay[p] / 2, late, burst[p]) for p in workers}
        more = max(0.0, float(np.median(self._besides(workers)) - np.median(alone)))
        home = Link(sends, receives, more / 2, burst=median(burst.values()))
        shared = len(workers) > 1 and self._is_shared(workers[0], workers[1])
        self._lab.close()
        return Cluster(
            tuple(self.hosts),
            (leader, *(devices[rank] for rank in workers)),
            (home, *(links[rank] for rank in workers)),
            shared,
            ABREAST,
        )

    # ---- devices

    def _workers(self, ranks: Sequence[int]) -> dict[int, Device]:
        answers = self._ask(dict.fromkeys(ranks, (BENCH, 1)))
        return {rank: self._device(answer.tensor) for rank, answer in answers.items()}

    def _device(self, measured: Tensor) -> Device:
        fine, coarse = self.samples
        times = seconds(measured)
        count = len(fine.names)
        blocks = {
            name: fit((fine.works[i].amount, times[i]), (coarse.works[i].amount, times[count + i]))
            for i, name in enumerate(fine.names)
        }
        return _device(blocks, fine.works, times, spread(measured, times))

    def _leader(self) -> Device:
        sample, plan, head = Sample.of(self.whole), self.whole.plan, self.whole.head
        programs, shapes = sample.programs, sample.shapes
        works = dict(zip(sample.names, sample.works, strict=True))
        if head is not None:
            programs = (*programs, head)
            shapes = (*shapes, (plan.batch, *plan.stages[-1].output_shape))
            flops = plan.head_flops * plan.batch
            works[HEAD] = Work(flops, flops)
        measured = self._beside_messages(Bench(programs, shapes, self.itemtype))
        times = seconds(measured)
        blocks = {
            name: Rate(work.amount / times[i]) if work.amount else Rate(inf, times[i])
            for i, (name, work) in enumerate(works.items())
        }
        return _device(blocks, sample.works, times, spread(measured, times))

    def _beside_messages(self, bench: Bench) -> Tensor:
        """Run a bench on this rank, which looks for messages meanwhile, as it does in a run."""
        engine = Engine(self._backoff.wake)
        engine.submit(None, lambda: bench(torch.zeros(1)))
        while not (done := engine.poll()):
            check_parent()
            self.wire.poll()
            self._backoff.rest()
        engine.close()
        if done[0].error is not None:
            raise done[0].error
        measured: Tensor = done[0].result
        return measured

    # ---- links

    def _rates(self, ranks: Sequence[int], trip: float) -> tuple[float, float]:
        """Return the bytes a second that these ranks send, and receive, all at once."""
        there = self._median(dict.fromkeys(ranks, (TINY, LARGE)))
        back = self._median(dict.fromkeys(ranks, (HUGE, 1)))
        size = LARGE * len(ranks)
        return size / max(back - trip, 1e-6), size / max(there - trip, 1e-6)

    def _burst(self, rank: int, rate: float, trip: float) -> float:
        """Return the bytes that pass at once: that a message is faster than by its link's rate."""
        took = self._median({rank: (TINY, MIDDLE)}, ROUNDS) - trip
        burst = MIDDLE - max(0.0, took) * rate
        return burst if burst > LITTLE else 0.0

    def _is_shared(self, one: int, other: int) -> bool:
        """True if a message there and one back take as long together as one after the other."""
        there, back = {one: (TINY, LARGE)}, {other: (HUGE, 1)}
        return self._median(there | back) > 0.75 * (self._median(there) + self._median(back))

    def _besides(self, ranks: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the seconds of a short unit besides computing (rounds, ranks), all at once.

        A rank that has just computed is slower to answer than one that has rested, and rank 0 is
        when many answer.
        """
        rounds = [self._ask(dict.fromkeys(ranks, (BRIEF, 1))) for _ in range(1 + ROUNDS)][1:]
        return np.array([[each[p].after - each[p].computed for p in ranks] for each in rounds])

    # ---- messages

    def _median(self, asks: Mapping[int, tuple[int, int]], rounds: int = 3) -> float:
        """Return the seconds until all have answered, the median of some rounds."""
        return median(max(a.after for a in self._ask(asks).values()) for _ in range(rounds))

    def _ask(self, asks: Mapping[int, tuple[int, int]]) -> dict[int, Answer]:
        """Post (unit, bytes) to each rank; return its answers."""
        began, answers = time.perf_counter(), dict[int, Answer]()
        for rank, (unit, size) in asks.items():
            x = torch.zeros(size, dtype=torch.uint8)
            self.wire.post(
                rank, Kind.UNIT, x, paced=True, query=self._number, stage=0, unit=unit, oldest=0
            )
        self._number += 1
        self._backoff.reset()
        while len(answers) < len(asks):
            check_parent()
            for message in self.wire.poll():
                self._check(message)
                _, started, stopped = message.clock
                tensor = message.tensor().clone()
                answers[message.peer] = Answer(tensor, message.at - began, stopped - started)
                self.wire.release(message)
                self._backoff.reset()
            if time.perf_counter() - began > LIMIT:
                silent = sorted(asks.keys() - answers.keys())
                raise RemoteError(f"ranks {silent} did not answer within {LIMIT:g} s")
            self._backoff.sleep()
        return answers

    def _check(self, message: Message) -> None:
        if message.kind is not Kind.ANSWER:
            rank = f"rank {message.peer} on {self.pool.hosts[message.peer]}"
            raise RemoteError(f"{rank}: {message.kind.name}:\n{message.text()}")


def _device(
    blocks: dict[str, Rate],
    works: Sequence[Work],
    times: Sequence[float],
    varies: tuple[tuple[float, ...], ...],
) -> Device:
    """Return a device; ``times`` are those of its blocks and, last, of packing and unpacking."""
    heavy = [(w.flops, t) for w, t in zip(works, times, strict=False) if w.flops]
    light = [(w.values, t) for w, t in zip(works, times, strict=False) if not w.flops]
    return Device(
        flops=_total_rate(heavy),
        values=_total_rate(light),
        pack=VALUES / times[-2],
        unpack=VALUES / times[-1],
        blocks=blocks,
        spread=varies,
    )


def _total_rate(parts: Sequence[tuple[int, float]]) -> float:
    return sum(work for work, _ in parts) / sum(took for _, took in parts) if parts else inf
