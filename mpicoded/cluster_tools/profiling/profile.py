"""Measure a cluster for one network: the cost of every block on every rank, and the links."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median

import torch
from torch import Tensor

from mpicoded.cluster import HEAD, Cluster, Device, Link, Rate, Work
from mpicoded.cluster_tools.profiling.bench import VALUES, Bench, Reply, Sample, fit, seconds
from mpicoded.errors import RemoteError
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.environment import check_parent
from mpicoded.runtime.lab_line import LabLine
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.setup import Run, Setup, own_parts
from mpicoded.runtime.wire import Backoff, Kind, Message
from mpicoded.scheduling.turns import ABREAST
from mpicoded.settings import RuntimeSpec

LARGE = 1 << 20  # bytes of a large message
ROUNDS = 12  # small messages there and back
LIMIT = 300.0  # s for one answer
COMPUTE, REPLY = 0, 1  # stages: programs to time, messages to send back
TINY, HUGE = 0, 1  # units of REPLY: the answer's size


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
        programs: tuple[tuple[Run, ...], ...] = ((bench,), (Reply(4), Reply(LARGE)))
        shapes = tuple(((1,),) * len(each) for each in programs)
        setup = Setup(programs, shapes, None, LARGE, threads)
        self.pool.send_setup(setup, own_parts(dict.fromkeys(self.wire.peers, ()), (), 0))

    def measure(self, say: Callable[[str], None]) -> Cluster:
        """Return the cluster with all its devices and links."""
        workers = tuple(self.wire.peers)
        say(f"blocks in pieces of two sizes, on {len(workers)} workers at once")
        devices = self._workers(workers)
        say("whole blocks and head, on the leader")
        leader = self._leader()
        say(f"messages of {LARGE >> 10} KiB, to and from each worker")
        trip = {rank: self._median({rank: (REPLY, TINY, 1)}, ROUNDS) for rank in workers}
        links = {rank: Link(*self._rates([rank], trip[rank]), trip[rank] / 2) for rank in workers}
        say("messages to and from all workers at once")
        home = Link(*reversed(self._rates(workers, max(trip.values()))))
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
        answers = self._ask(dict.fromkeys(ranks, (COMPUTE, 0, 1)))
        return {rank: self._device(seconds(tensor)) for rank, (tensor, _) in answers.items()}

    def _device(self, times: list[float]) -> Device:
        fine, coarse = self.samples
        count = len(fine.names)
        blocks = {
            name: fit((fine.works[i].amount, times[i]), (coarse.works[i].amount, times[count + i]))
            for i, name in enumerate(fine.names)
        }
        return _device(blocks, fine.works, times)

    def _leader(self) -> Device:
        sample, plan, head = Sample.of(self.whole), self.whole.plan, self.whole.head
        programs, shapes = sample.programs, sample.shapes
        works = dict(zip(sample.names, sample.works, strict=True))
        if head is not None:
            programs = (*programs, head)
            shapes = (*shapes, (plan.batch, *plan.stages[-1].output_shape))
            flops = plan.head_flops * plan.batch
            works[HEAD] = Work(flops, flops)
        times = seconds(Bench(programs, shapes, self.itemtype)(torch.zeros(1)))
        blocks = {
            name: Rate(work.amount / times[i]) if work.amount else Rate(inf, times[i])
            for i, (name, work) in enumerate(works.items())
        }
        return _device(blocks, sample.works, times)

    # ---- links

    def _rates(self, ranks: Sequence[int], trip: float) -> tuple[float, float]:
        """Return the bytes a second that these ranks send, and receive, all at once."""
        there = self._median(dict.fromkeys(ranks, (REPLY, TINY, LARGE)))
        back = self._median(dict.fromkeys(ranks, (REPLY, HUGE, 1)))
        size = LARGE * len(ranks)
        return size / max(back - trip, 1e-6), size / max(there - trip, 1e-6)

    def _is_shared(self, one: int, other: int) -> bool:
        """True if a message there and one back take as long together as one after the other."""
        there, back = {one: (REPLY, TINY, LARGE)}, {other: (REPLY, HUGE, 1)}
        return self._median(there | back) > 0.75 * (self._median(there) + self._median(back))

    # ---- messages

    def _median(self, asks: Mapping[int, tuple[int, int, int]], rounds: int = 3) -> float:
        """Return the seconds until all have answered, the median of some rounds."""
        return median(max(t for _, t in self._ask(asks).values()) for _ in range(rounds))

    def _ask(self, asks: Mapping[int, tuple[int, int, int]]) -> dict[int, tuple[Tensor, float]]:
        """Post (stage, unit, bytes) to each rank; return its answer and after how many seconds."""
        began, answers = time.perf_counter(), dict[int, tuple[Tensor, float]]()
        for rank, (stage, unit, size) in asks.items():
            x = torch.zeros(size, dtype=torch.uint8)
            self.wire.post(
                rank, Kind.UNIT, x, paced=True, query=self._number, stage=stage, unit=unit, oldest=0
            )
        self._number += 1
        self._backoff.reset()
        while len(answers) < len(asks):
            check_parent()
            for message in self.wire.poll():
                self._check(message)
                answers[message.peer] = message.tensor().clone(), message.at - began
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


def _device(blocks: dict[str, Rate], works: Sequence[Work], times: Sequence[float]) -> Device:
    """Return a device; ``times`` are those of its blocks and, last, of packing and unpacking."""
    heavy = [(w.flops, t) for w, t in zip(works, times, strict=False) if w.flops]
    light = [(w.values, t) for w, t in zip(works, times, strict=False) if not w.flops]
    return Device(
        flops=_total_rate(heavy),
        values=_total_rate(light),
        pack=VALUES / times[-2],
        unpack=VALUES / times[-1],
        blocks=blocks,
    )


def _total_rate(parts: Sequence[tuple[int, float]]) -> float:
    return sum(work for work, _ in parts) / sum(took for _, took in parts) if parts else inf
