"""Bad input, end to end: one clear line on rank 0, status 2, nobody left, no file touched."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from digits import TRAINED
from launching import Ended
from many_jobs import LiveRanks, Outcome
from mpicoded import __main__ as program
from running import write_run

DATA = Path(__file__).parents[1] / "data"
BASE = DATA / "lenet5-digits.safetensors"
CODE = DATA / "learned-digits-k6r2.safetensors"
RANKS = 3  # two workers

JOB = f"""\
{TRAINED}
limit = 4
[plan]
split = "width"
[code]
k = 2
[runtime]
end_limit = 600.0
[results]
file = "run.h5"
"""

NETS = """\
from torch import nn

class ImageEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1024, 10)
    def forward(self, x):
        return self.fc(x.flatten(1))

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def double(module, inputs, output):
    return output * 2

def hooked(hook=double):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(900, 10))
    net[0].register_forward_hook(hook)
    return net

def locally_hooked():
    return hooked(lambda module, inputs, output: output * 2)

class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 9)
    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).squeeze())

def failing():
    raise ValueError("first line\\nsecond line")

number = 3
"""


@dataclass(frozen=True)
class Case:
    """``sets`` go to --set, ``flags`` after them; the error must have all of ``says``, in order."""

    says: tuple[str, ...]
    sets: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    job: str = "job.toml"

    @property
    def args(self) -> list[str]:
        sets = [text for each in self.sets for text in ("--set", each)]
        return ["run", *self.job.split(), *sets, *self.flags]


def case(*says: str, sets: str | tuple[str, ...] = (), **more: Any) -> Case:
    return Case(says, (sets,) if isinstance(sets, str) else sets, **more)


def results(name: str, *says: str, flags: tuple[str, ...] = ()) -> Case:
    return case(*says, sets=f"results.file={name}", flags=flags)


def learned(*says: str, sets: tuple[str, ...] = (), weights: Path | str = CODE) -> Case:
    code = ("code.name=learned", "code.k=6", "code.r=2", f"code.weights={weights}")
    return case(*says, sets=(*code, "runtime.sharing=true", *sets))


def bare(*says: str, sets: str | tuple[str, ...]) -> Case:
    """A job whose model has no weights."""
    return case(*says, sets=sets, job="bare.toml")


RESUME, OVERWRITE = ("--resume",), ("--overwrite",)

CASES = {
    # the job file
    "unknown key": case("gather.zzzz=1", "zzzz is not a key", "the keys here are deadline",
                        sets="gather.zzzz=1"),
    "misspelt key": case("[code] kk is not a key (did you mean 'k'?)", job="misspelt.toml"),
    "key elsewhere": case("window is not a key; it belongs to [runtime]", sets="code.window=2"),
    "unknown section": case("gathr is not a key (did you mean 'gather'?)", sets="gathr.deadline=1"),
    "wrong type": case("[code] k = 'two': should be an integer", sets='code.k="two"'),
    "accuracy at once": case("deadline: is 0 s, and min_accuracy = 0.9",
                             sets=("gather.min_accuracy=0.9", "gather.deadline=0")),
    "accuracy of nobody's": case("min_accuracy = 0.9: nobody has measured", "calibrate JOB",
                                 sets="gather.min_accuracy=0.9"),
    "no TOML": case("notes.toml: is not TOML: ", "(at line 1, column ", job="notes.toml"),
    "no job file": case("none.toml: there is no such job file", job="none.toml"),
    "folder for a job": case("is a folder; name a job file in it", job="."),
    "set without value": case("--set nonsense: should be section.key=value", sets="nonsense"),
    "set nothing": case("--set code.k=: has no value", sets="code.k="),
    "set below a value": case("[model] name is not a section", sets="model.name.x=3"),
    "set a fault": case("0 is not there: there are 0", sets="faults.0.rank=1"),
    # the command line
    "no argument": case("Missing argument 'JOB'; see mpicoded run --help", job=""),
    "unknown option": case("No such option: --resum", "mpicoded run --help", flags=("--resum",)),
    "second job file": case("unexpected extra argument(s) (two.toml)", flags=("two.toml",)),
    # plan, code and ranks
    "too few workers": case("k + r = 2 + 1 = 3 units need 3 workers, there are 2",
                            "start 4 ranks (mpirun -n 4)", "sharing = true in [runtime]",
                            sets=("code.name=replication", "code.r=1")),
    "k larger than the axis": case("the width, 6 long, into k = 7 shards: use k from 1 to 6",
                                   sets=("code.k=7", "runtime.sharing=true",
                                         'plan.stages=["pool2"]')),
    "tiles that do not make k": case("[2, 2] makes 4 tiles and k = 2 in [code]",
                                     sets=("plan.split=tiles", "plan.tiles=[2, 2]")),
    "unknown stage": case("no block 'pool3' that can be cut; the blocks are conv1, pool1, conv2",
                          sets='plan.stages=["pool3"]'),
    "stages out of order": case("in the network's order, conv1, pool1, conv2, pool2",
                                sets='plan.stages=["pool2", "pool1"]'),
    "batch that does not divide": case("4 images do not fill queries of batch = 3: set limit = 3",
                                       sets="input.batch=3"),
    "batch of too many": case("4 images do not fill queries of batch = 30: lower batch",
                              sets="input.batch=30"),
    "batch not dealt out": case("3 images cannot be dealt out to k = 2 units; set a multiple of k",
                                sets=("plan.split=batch", "input.batch=3")),
    "fault on no worker": case("[[faults]] rank = 3 is no worker: name one of ranks 1 to 2",
                               sets='faults=[{kind="crash", rank=3}]'),
    "more faults than workers": case("3 without a rank", "2 are free",
                                     sets='faults=[{kind="slow"}, {kind="slow"}, {kind="crash"}]'),
    # weights
    "weights of another model": case(f"{BASE} does not fit ResNet: 106 missing tensors",
                                     "name its own weights file", sets="model.name=resnet20"),
    "weights of another width": case("fc3.bias (10,) where the model has (7,)",
                                     sets="model.args={classes=7}"),
    "weights missing": case("none.safetensors does not exist; train the model, or mend the path",
                            sets="model.weights=none.safetensors"),
    "weights cut short": case("cut.safetensors is not a whole safetensors file", "copy it again",
                              sets="model.weights=cut.safetensors"),
    "code of another k": learned(f"{CODE}: ", "window = 1 32 16 where the job needs 1 32 20",
                                 "python -m mpicoded train JOB", sets=("code.k=5",)),
    "code of another plan": learned("window = 1 32 16 where the job needs 1 16 32",
                                    sets=("plan.split=height",)),
    "code of another base": learned("was trained for weights ", "and the job's model has ",
                                    "train the code again",
                                    sets=("model.weights=other.safetensors",)),
    "code of no code": learned(f"{BASE}: these are no weights of a code",
                               "(a base model's belong in [model])", weights=BASE),
    "code missing": learned("none.safetensors does not exist", "python -m mpicoded train JOB",
                            weights="none.safetensors"),
    # models
    "unknown model": bare("no model 'lenet' (did you mean 'lenet5'?); known: base-mlp, inc",
                          sets="model.name=lenet"),
    "unknown argument": bare("unexpected keyword argument 'clases' (did you mean 'classes'?)",
                             sets="model.args={clases=7}"),
    "no such module": bare("module nix is not found from", "start in the folder that holds it",
                           sets="model.name=nix:Net"),
    "no such factory": bare("module nets has no failling (did you mean 'failing'?)",
                            sets="model.name=nets:failling"),
    "module that raises": bare("importing raises failed: RuntimeError: no GPU",
                               sets="model.name=raises:net"),
    "factory that raises": bare("failed: ValueError: first line second line",
                                sets="model.name=nets:failing"),
    "factory that is none": bare("number is int and cannot be called",
                                 sets="model.name=nets:number"),
    "model that cannot be cut": bare("no block of this model can be cut", "flatten",
                                     'Use split = "batch"', sets="model.name=nets:ImageEncoder"),
    "model that branches": bare("torch.fx cannot follow Branching", "branches on values",
                                "nets.py, line 12: return x if x.sum",
                                sets="model.name=nets:Branching"),
    "model with a hook": bare("Sequential computes something else than its operations",
                              "layer 0 (Conv2d) has a forward hook", sets="model.name=nets:hooked"),
    "model with a local hook": bare("layer 0 (Conv2d) has a forward hook and cannot be sent to "
                                    "workers", "forward()", sets="model.name=nets:locally_hooked"),
    "model that squeezes": bare("Squeezing gives (9,) instead of (1, 9) for 1 image: squeeze",
                                "x.flatten(1)", sets="model.name=nets:Squeezing"),
    # images
    "no images": case("no file 'none.npy'", "known: digits, mnist", sets="input.data=none.npy"),
    "unknown data set": case("no file 'digit' (did you mean 'digits'?)", sets="input.data=digit"),
    "data set not here": case("'mnist' is not in ", "python -m mpicoded data fetch mnist",
                              "MPICODED_DATA", sets="input.data=mnist"),
    "broken array": case("broken.npy is not a whole .npy array", "copy it again",
                         sets="input.data=broken.npy"),
    "text for an array": case("text.npy is not a whole .npy array of numbers (it does not begin",
                              sets="input.data=text.npy"),
    "foreign HDF5 as input": case("foreign.h5 has no data set 'images'; it has: x",
                                  sets="input.data=foreign.h5"),
    "empty folder": case("empty holds no pictures", sets="input.data=empty"),
    "too many channels": case("LeNet5 does not take 2 images of shape (3, 32, 32)",
                              "have 1 channels, but got 3", sets="input.data=three.npy"),
    "size of no use": case("does not take 2 images of shape (1, 64, 64)", "size in [input]",
                           sets="input.size=[64, 64]"),
    "bytes of floats": case('wire = "uint8" needs 8-bit images, float.npy holds float32: use',
                            sets=("input.data=float.npy", "runtime.wire=uint8")),
    "mean of floats": case("mean and std are for 8-bit images, float.npy holds float32",
                           "leave them out", sets=("input.data=float.npy", "input.mean=[0.5]")),
    "mean of bytes": case("[input] mean: has 123.7, and is of pixels from 0 to 1",
                          "divide by 255", sets=("input.mean=[123.7]", "input.std=[0.2]")),
    "mean of no channels": case("mean and std are of 2 channels, and digits has 1",
                                sets="input.mean=[0.1, 0.2]"),
    # the results file
    "results exist": results("whole.h5", "whole.h5: exists; give --resume", "--overwrite"),
    "results are the job file": results("job.toml", "the job reads this", flags=OVERWRITE),
    "results are the weights": case("cut.safetensors: the job reads this file; name another one",
                                    sets=("model.weights=cut.safetensors",
                                          "results.file=cut.safetensors"), flags=OVERWRITE),
    "results are a folder": results("empty", "is a folder; name a file", flags=OVERWRITE),
    "results below a file": results("text.npy/run.h5", "text.npy is a file, not a folder"),
    "no write permission": results("/sys/run.h5", "/sys/run.h5: "),
    "resume another job": results("whole.h5", "is of another job", "seed = 7", flags=RESUME),
    "resume cut short": results("cut.h5", "is cut short: 5000 bytes are there", flags=RESUME),
    "resume foreign": results("foreign.h5", "but no results file of mpicoded", flags=RESUME),
    "resume text": results("text.h5", "is not an HDF5 file", flags=RESUME),
    "resume and overwrite": case("give one of them", flags=RESUME + OVERWRITE),
}  # fmt: skip


def make_files(folder: Path) -> None:
    """Put the good files and the bad ones into ``folder``."""
    (folder / "job.toml").write_text(JOB)
    (folder / "bare.toml").write_text(re.sub("weights = .*\n", "", JOB))
    (folder / "misspelt.toml").write_text(JOB.replace("k = 2", "kk = 2"))
    (folder / "notes.toml").write_text("dear diary,\n")
    (folder / "nets.py").write_text(NETS)
    (folder / "raises.py").write_text("raise RuntimeError('no GPU')\n")
    (folder / "empty").mkdir()
    np.save(folder / "three.npy", np.zeros((4, 3, 32, 32), np.uint8))
    np.save(folder / "float.npy", np.zeros((4, 32, 32), np.float32))
    (folder / "broken.npy").write_bytes((folder / "float.npy").read_bytes()[:100])
    (folder / "text.npy").write_text("not an array")
    (folder / "text.h5").write_text("not HDF5")
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["x"] = 1
    write_run(folder / "whole.h5", queries=10).close(finished=False)
    (folder / "cut.h5").write_bytes((folder / "whole.h5").read_bytes()[:5000])
    shutil.copy(BASE, folder / "cut.safetensors")
    os.truncate(folder / "cut.safetensors", 1000)
    tensors = load_file(BASE)
    save_file({**tensors, "fc3.bias": tensors["fc3.bias"] + 1}, folder / "other.safetensors")


def contents(folder: Path) -> dict[str, bytes | None]:
    """What is in the folder, to the byte; a folder is None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Ran:
    """All cases, run one after the other by the same ranks, and the folder before and after."""

    outcomes: dict[str, Outcome]
    before: dict[str, bytes | None]
    after: dict[str, bytes | None]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, ranks: LiveRanks) -> Ran:
    folder = tmp_path_factory.mktemp("bad")
    make_files(folder)
    outside = {name: str(folder / "empty") for name in ("MPICODED_DATA", "MPICODED_CACHE")}
    before = contents(folder)
    outcomes = {
        name: ranks.run(RANKS, *each.args, cwd=folder, **outside) for name, each in CASES.items()
    }
    return Ran(outcomes, before, contents(folder))


def check(text: str, says: tuple[str, ...]) -> None:
    """One line, which begins with "error: " and has all of ``says`` in their order."""
    assert text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n"), text
    assert re.search(".*".join(map(re.escape, says)), text), text


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line_on_rank_0(ran: Ran, name: str) -> None:
    outcome = ran.outcomes[name]
    check(outcome.stderr, CASES[name].says)
    assert (outcome.status, outcome.stdout, outcome.others) == (2, "", "")
    assert not outcome.started, "the leader began to work before the error was found"
    assert outcome.seconds < 100  # no limit was waited for; the shortest is start_limit


def test_no_file_is_damaged_or_left(ran: Ran) -> None:
    assert ran.after == ran.before


# the command itself


def errors(text: str) -> list[str]:
    """Our lines; mpirun may add its own about the status."""
    return [line + "\n" for line in text.splitlines() if "error: " in line]


@pytest.mark.parametrize(
    ("mpi", "ft"), [("openmpi", True), ("openmpi", False), ("mpich", False)], ids=str
)
def test_mpirun_ends_with_status_2(mpirun, tmp_path: Path, mpi: str, ft: bool) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    args = ["-m", "mpicoded", "run", "job.toml", "--set", "code.k=3"]
    ended: Ended = mpirun(RANKS, args, timeout=60, mpi=mpi, ft=ft, cwd=tmp_path)
    assert (ended.status, ended.left) == (2, ()), ended.output
    (line,) = errors(ended.stderr)
    check(line, ("3 units need 3 workers, there are 2",))
    assert not (tmp_path / "run.h5").exists()


def test_unknown_verb(mpirun) -> None:
    ended: Ended = mpirun(RANKS, ["-m", "mpicoded", "rnu", "job.toml"], timeout=60)
    assert (ended.status, ended.stdout, ended.left) == (2, "", ())
    check(ended.stderr, ("No such command 'rnu'. Did you mean 'run'?; see ", "mpicoded --help"))


def test_help_is_printed_once(mpirun) -> None:
    ended: Ended = mpirun(RANKS, ["-m", "mpicoded", "run", "--help"], timeout=60)
    assert (ended.status, ended.stderr, ended.left) == (0, "", ())
    assert ended.stdout.count("Usage") == 1
    assert ended.stdout.count("resume") == 1


# the other verbs, which need one process

TRAIN = """\
[train]
kind = "base"
out = "{}"
batch = 2
"""

OTHERS = {
    "report nothing": (["report", "none.h5"], "none.h5: there is no such results file"),
    "report cut short": (["report", "cut.h5"], "cut.h5: is cut short: 5000 bytes are there"),
    "report foreign": (["report", "foreign.h5"], "is HDF5, but no results file of mpicoded"),
    "report text": (["report", "text.h5"], "text.h5: is not an HDF5 file"),
    "plan too few": (["plan", "job.toml", "-n", "2"], "2 units need 2 workers, there are 1"),
    "plan no ranks": (["plan", "job.toml", "-n", "0"], "Invalid value for '-n' / '--ranks'"),
    "plan no data": (["plan", "job.toml", "--set", "input.data=mnist"], "data fetch mnist"),
    "train nothing": (["train", "job.toml"], "train: is missing; it says what to train"),
    "train into a folder": (["train", "folder.toml"], "empty.safetensors is a folder; name a"),
    "train into no weights": (["train", "pt.toml"], "'x.pt' is no weights file: let it end in"),
    "train no further": (["train", "new.toml", "--resume"], "there is no checkpoint"),
    "evaluate no weights": (["evaluate", "job.toml", "--set", "model.weights=x"], "does not exist"),
    "fetch unknown": (["data", "fetch", "mnits"], "no data set 'mnits' (did you mean 'mnist'?)"),
    "no verb of data": (["data", "lst"], "No such command 'lst'. Did you mean 'list'?"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    make_files(folder)
    (folder / "empty.safetensors").mkdir()
    for name, out in [("folder", "empty.safetensors"), ("pt", "x.pt"), ("new", "x.safetensors")]:
        (folder / f"{name}.toml").write_text(JOB + TRAIN.format(out))
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_other_verbs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, says = OTHERS[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mpicoded", *args])
    monkeypatch.setenv("MPICODED_CACHE", str(folder / "empty"))
    monkeypatch.delenv("MPICODED_DATA", raising=False)
    before = contents(folder)
    assert program._alone() == 2
    printed = capsys.readouterr()
    check(printed.err, (says,))
    assert printed.out == ""
    assert contents(folder) == before
