"""A seeded fuzz: damaged files through all verbs, each in a forked process with limits.

Whatever a file holds, a verb ends with status 0, or with status 2 and one line; within seconds, in
less than 2 GB, and without a traceback. Anything else is a finding, and its files are kept.
"""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import h5py
import numpy as np
from PIL import Image

import mutations as m

ROOT = Path(__file__).parents[1]
CPU, WALL = 30, 60  # s of one verb; others may run beside it
MEMORY = 2 << 30  # bytes
SPACE = 12 << 30  # bytes of address space, beyond which a process is not let
GOOD = (0, 2)
CODED = "--set code.name=replication --set code.r=1 --set code.quality=quality.json"

JOB = """\
seed = 7
[model]
name = "lenet5"
weights = "base.safetensors"
args = {classes = 10}
[input]
data = "images.h5"
split = "all"
size = [32, 32]
limit = 4
repeat = 1
batch = 1
mean = [0.0]
std = [1.0]
[plan]
split = "width"
stages = ["pool2"]
weights = [1.0, 1.0]
[code]
name = "uncoded"
k = 2
r = 0
[gather]
deadline = "adaptive"
patience = 2.0
give_up = 30.0
retries = 2
[runtime]
window = 4
wire = "float32"
answers = "float32"
threads = 1
start_limit = 120.0
suspect_after = 0.5
[[faults]]
kind = "slow"
rank = 1
start = 0.0
stop = 0.5
factor = 1.5
[results]
file = "run.h5"
flush = 1.0
unsplit = true
[train]
kind = "base"
out = "new.safetensors"
epochs = 1
batch = 2
rate = 3e-3
validation = 0.3
shift = 0.1
"""
PLAIN = re.sub(r"(?s)\[\[faults\]\].*?(?=\[results\])", "", JOB)
PLAIN = PLAIN.replace("weights = [1.0, 1.0]\n", "")
CLUSTER = """\
medium = "switched"
abreast = 2
[[device]]
ranks = [0]
host = "pi0"
flops = 7.8e9
dense = 1.5e9
values = 1e9
pack = 1e8
unpack = 1e8
sends = 5.2e6
receives = 5.2e6
latency = 1e-3
blocks.conv1 = { speed = 1e9, fixed = 1e-4 }
[[device]]
ranks = [1, 2, 3]
flops = 7.8e9
sends = 5.2e6
receives = 5.2e6
"""


@dataclass(frozen=True)
class Subject:
    """One kind of file: its name in the folder, how it is damaged, and the verbs that read it."""

    file: str
    mutations: Sequence[m.Mutation]
    verbs: Sequence[str]


TRAIN = "train --set input.limit=12"
CALIBRATE = f"calibrate --held-back 3 {CODED}"
VERBS = ("plan", "run --overwrite", "evaluate", CALIBRATE, TRAIN)
READS = (*VERBS[:2], *VERBS)  # the two that are quick, more often


def reading(data: str) -> tuple[str, ...]:
    return tuple(f"{verb} plain.toml --set input.data={data}" for verb in READS)


SIMULATE = "simulate plain.toml --overwrite --cluster cluster.toml"
CIFAR = "plan plain.toml --set input.data=cifar-10 --set input.split=train"
SUBJECTS = (
    Subject(
        "job.toml",
        (m.of_toml,) * 6 + (m.of_bytes, m.of_kind),
        (*(f"{verb} job.toml" for verb in READS), "launch job.toml --dry-run", "profile job.toml",
         SIMULATE.replace("plain", "job")),
    ),
    Subject("hosts", (m.of_words, m.of_words, m.of_bytes, m.of_kind),
            ("launch plain.toml --dry-run --hostfile hosts",)),
    Subject(
        "cluster.toml",
        (m.of_toml, m.of_toml, m.of_toml, m.of_bytes, m.of_kind),
        ("plan plain.toml --set plan.cluster=cluster.toml",
         "plan plain.toml --set plan.cluster=cluster.toml --set plan.stages=auto",
         "run plain.toml --overwrite --set plan.cluster=cluster.toml",
         "plan plain.toml --choose-k --set plan.cluster=cluster.toml", SIMULATE),
    ),
    Subject(
        "quality.json",
        (m.of_json, m.of_json, m.of_json, m.of_bytes, m.of_kind),
        tuple(f"{verb} plain.toml {CODED} "
              "--set gather.min_accuracy=1e-9" for verb in READS[:2]),
    ),
    Subject("base.safetensors", (m.of_bytes, m.of_bytes, m.of_bytes, m.of_kind),
            tuple(f"{verb} plain.toml" for verb in READS)),
    Subject("base.pt", (m.of_bytes, m.of_kind),
            tuple(f"{verb} plain.toml --set model.weights=base.pt" for verb in READS[:2])),
    Subject(
        "code.safetensors",
        (m.of_bytes, m.of_bytes, m.of_bytes, m.of_kind),
        tuple(f"{verb} plain.toml --set code.name=learned --set code.k=6 --set code.r=2 --set "
              "plan.weights=[1,1,1,1,1,1] --set code.weights=code.safetensors"
              for verb in (*READS[:2], "evaluate")),
    ),
    Subject("images.h5", (m.new_h5, m.new_h5, m.new_h5, m.of_bytes, m.of_bytes, m.of_kind),
            reading("images.h5")),
    Subject("images.npy", (m.new_npy, m.new_npy, m.of_bytes, m.of_kind), reading("images.npy")),
    Subject("pictures", (m.of_folder,), reading("pictures")),
    Subject("data/mnist/train-images-idx3-ubyte.gz", (m.of_bytes, m.inside_gzip, m.of_kind),
            reading("mnist")),
    Subject("data/mnist/t10k-labels-idx1-ubyte.gz", (m.of_bytes, m.inside_gzip, m.of_kind),
            reading("mnist")),
    Subject("evaluation.h5", (m.of_bytes, m.of_kind),
            ("report evaluation.h5", "report evaluation.h5 --figure f.png")),
    Subject("new.training.h5", (m.of_bytes, m.of_kind),
            ("report new.training.h5", "report new.training.h5 --figure f.png")),
    Subject("data/cifar-10/cifar-10-batches-py/data_batch_2", (m.of_bytes, m.of_kind),
            (CIFAR, CIFAR.replace("train", "all"))),
    Subject(
        "whole.h5",
        (m.of_bytes,) * 5 + (m.of_kind,),
        ("report whole.h5", "report whole.h5 --breakdown", "report whole.h5 --trace trace.json",
         "report whole.h5 --query 0 --figure f.png", "report whole.h5 whole.h5",
         "run plain.toml --resume --set results.file=whole.h5"),
    ),
)  # fmt: skip


# what the good files are made with, beside make()
PREPARE = (
    "run plain.toml --set results.file=whole.h5",
    f"{CALIBRATE} plain.toml",
    "evaluate plain.toml --out evaluation.h5",
    "train plain.toml --set input.limit=12",
)


def make(folder: Path) -> None:
    """Write the good files."""
    import torch
    from safetensors.torch import load_file, save_file

    rng = np.random.default_rng(0)
    with h5py.File(ROOT / "data" / "digits.h5") as file:
        labels = file["labels"][:12]
        images = file["images"][:12].repeat(4, axis=2).repeat(4, axis=3)  # (12, 1, 32, 32)
    (folder / "job.toml").write_text(JOB)
    (folder / "plain.toml").write_text(PLAIN)
    (folder / "hosts").write_text("# two\npi0\npi1 slots=2\n10.0.0.7 slots = 4\n")
    (folder / "cluster.toml").write_text(CLUSTER)
    base = load_file(ROOT / "data" / "lenet5-digits.safetensors")  # without what it says of itself
    save_file(base, folder / "base.safetensors")
    torch.save(base, folder / "base.pt")
    shutil.copy(ROOT / "data" / "learned-digits-k6r2.safetensors", folder / "code.safetensors")
    np.save(folder / "images.npy", images)
    with h5py.File(folder / "images.h5", "w") as file:
        file["images"], file["labels"] = images, labels
        file["held_out"] = np.arange(12) % 4 == 0
    for number, suffix in enumerate(("png", "jpg", "bmp", "tif", "pgm", "jpg", "tif", "png")):
        name = folder / "pictures" / str(number // 2) / f"{number}.{suffix}"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number, 0]).save(name)
    _make_mnist(folder / "data" / "mnist", rng)
    _make_cifar(folder / "data" / "cifar-10" / "cifar-10-batches-py")
    os.mkfifo(folder / "fifo")
    os.mkfifo(folder / "fifo.npy")
    (folder / "loop").symlink_to("loop")
    (folder / "loop.h5").symlink_to("loop.h5")
    (folder / "dangling.npy").symlink_to("nowhere")
    (folder / "empty").mkdir()


def _make_mnist(folder: Path, rng: np.random.Generator) -> None:
    import gzip
    import struct

    folder.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 4)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(count) % 10)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            raw = head + array.astype(np.uint8).tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(raw))


def _make_cifar(folder: Path) -> None:
    import pickle

    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(batch | {b"batch_label": b"x"}, 4))


@dataclass(frozen=True)
class Ended:
    """How a verb ended: its status (negative: of a signal), what it printed, and what it took."""

    status: int
    text: str
    seconds: float
    memory: int

    def fault(self) -> str | None:
        """Say what is wrong with that; None if nothing is."""
        if self.status in (-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGALRM):
            return "hang"
        if self.status < 0:
            return f"signal {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.text:
            return "traceback"
        if self.memory > MEMORY:
            return f"memory: {self.memory >> 20} MB"
        if self.status not in GOOD:
            return f"status {self.status}"
        ours = [line for line in self.text.splitlines() if line.startswith("error: ")]
        if self.status == 2 and (len(ours) != 1 or not self.text.endswith(ours[0] + "\n")):
            return "not one line"
        return None


def call(args: Sequence[str], folder: Path) -> Ended:
    """Run one verb in a forked process, in ``folder``."""
    log = folder / "log"
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_the_verb(args, folder, log)
    while True:
        done, state, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > WALL:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    status = os.waitstatus_to_exitcode(state)
    seconds = time.monotonic() - began
    return Ended(status, log.read_text(errors="replace"), seconds, used.ru_maxrss << 10)


def _be_the_verb(args: Sequence[str], folder: Path, log: Path) -> None:
    status = 99
    faulthandler.disable()  # pytest's would write over pytest's own lines
    try:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, handle in enumerate((nothing, to, to)):
            os.dup2(handle, number)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w") for number in (1, 2))
        os.chdir(folder)
        os.environ |= {"MPICODED_DATA": str(folder / "data"), "MPICODED_CACHE": str(folder / "c")}
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 5))
        resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        status = _verb(args)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _verb(args: Sequence[str]) -> int:
    from mpi4py import MPI

    from mpicoded import __main__ as program
    from mpicoded import commands

    sys.argv = ["mpicoded", *args]
    if args[0] not in ("run", "profile"):
        return commands.main()
    MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return program._lead(MPI.COMM_WORLD, limit=60.0)


def load_verbs() -> None:
    """Import all that verbs need, once: each then starts in the time of a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMPI_MCA_btl": "^ofi", "PYTHONWARNINGS": "ignore"}
    import mpi4py

    mpi4py.rc.initialize = False
    import torch

    from mpicoded import commands

    torch.set_num_threads(1)
    commands._add_verbs()
    import matplotlib.figure  # noqa: F401

    import mpicoded.study.calibrate
    import mpicoded.study.evaluate
    import mpicoded.study.report.figure
    import mpicoded.study.train  # noqa: F401


@dataclass(frozen=True)
class Finding:
    """What went wrong, in which round, and where its files are kept."""

    round: int
    what: str
    command: str
    files: Path
    last: str

    def __str__(self) -> str:
        return f"{self.what} | round {self.round} | {self.command} | {self.files} | {self.last}"


class Fuzz:
    """Round ``i`` of seed ``s`` is always the same; ``kept`` gets the folder of each finding."""

    def __init__(self, seed: int, scratch: Path, kept: Path, only: str = "") -> None:
        self.seed, self.scratch, self.kept = seed, scratch, kept
        self.subjects = [s for s in (*SUBJECTS, None) if only in (s.file if s else "--set")]
        self.good = scratch / "good"
        self.good.mkdir(parents=True)
        make(self.good)
        load_verbs()
        for args in PREPARE:
            ended = call(args.split(), self.good)
            assert ended.status == 0, ended.text

    def one(self, number: int) -> Finding | None:
        """Damage one file and run one verb on it."""
        random = Random(f"{self.seed} {number}")
        folder = self.scratch / f"round-{number}"
        _copy(self.good, folder)
        subject = random.choice(self.subjects)
        if subject is None:
            args = [*random.choice(VERBS).split(), "plain.toml"]
            for _ in range(random.choice((1, 1, 2))):
                args += ["--set", _set(random)]
        else:
            random.choice(subject.mutations)(folder / subject.file, random)
            args = random.choice(subject.verbs).split()
        ended = call([arg for arg in args if "\0" not in arg], folder)
        what = ended.fault()
        if what is None or (ended.status == -signal.SIGXCPU and _at_work(folder)):
            shutil.rmtree(folder)
            return None
        kept = self.kept / f"{self.seed}-{number}"
        shutil.move(folder, kept)
        (kept / "command").write_text(" ".join(args) + "\n")
        last = (ended.text.strip().splitlines() or [""])[-1]
        return Finding(number, what, " ".join(args)[:200], kept, last[:200])


def _at_work(folder: Path) -> bool:
    """Whether a run or a training was in full swing: it may be told to do 10^6 epochs."""
    return any((folder / name).exists() for name in ("run.h5", "new.checkpoint"))


def _copy(good: Path, folder: Path) -> None:
    """Copy the files; FIFOs and links stay what they are."""
    shutil.copytree(
        good, folder, symlinks=True, ignore=lambda _, names: [n for n in names if "fifo" in n]
    )
    for name in ("fifo", "fifo.npy"):
        os.mkfifo(folder / name)


def _set(random: Random) -> str:
    sections = [
        f"{section}.{line.partition(' = ')[0]}"
        for section, text in re.findall(r"(?m)^\[(\w+)\]\n((?:[^\[].*\n)+)", PLAIN)
        for line in text.splitlines()
    ]
    key = random.choice((*sections, "seed", "faults", "faults.0.rank", "x", "a.b.c", ".", "0"))
    value = random.choice((random.choice(m.NUMBERS), f'"{random.choice(m.STRINGS)}"'))
    return f"{key}={value}"
