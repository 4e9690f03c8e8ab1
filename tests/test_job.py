"""Job files: what they mean, and that every mistake is one line with the way out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mpicoded.codes import CODES
from mpicoded.errors import JobError
from mpicoded.job import Job
from mpicoded.jobfile import override

TEXT = """\
seed = 7
[model]
name = "lenet5"
weights = "../data/lenet5.safetensors"
[input]
data = "digits"
size = [32, 32]
mean = [0.5]
[plan]
split = "width"
stages = ["pool2"]
[code]
name = "learned"
k = 6
r = 2
weights = "code.safetensors"
[gather]
deadline = 0
[[faults]]
kind = "slow"
start = 0.2
stop = 0.5
factor = 10
[[faults]]
kind = "crash"
start = 0.6
[results]
file = "../results/run.h5"
[train]
kind = "code"
out = "code.safetensors"
"""

Read = Callable[..., Job]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(*overrides: str, text: str = TEXT, **how: Any) -> Job:
        path = tmp_path / "jobs" / "digits.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return Job.read(path, overrides, **how)

    return read


def complaint(read: Read, *overrides: str, **how: Any) -> str:
    with pytest.raises(JobError) as error:
        read(*overrides, **how)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_values_and_defaults(read: Read) -> None:
    job = read()
    assert (job.seed, job.model.name, job.input.size, job.plan.stages) == (
        7,
        "lenet5",
        (32, 32),
        ("pool2",),
    )
    assert (job.code.k, job.code.r, job.gather.deadline) == (6, 2, 0)
    assert [fault.kind for fault in job.faults] == ["slow", "crash"]
    assert (job.faults[0].factor, job.faults[1].rank) == (10.0, None)
    assert (job.runtime.window, job.runtime.wire, job.results.flush) == (4, "float32", 1.0)
    assert job.train
    assert job.train.kind == "code"


def test_the_least_job() -> None:
    job = Job.model_validate({"model": {"name": "lenet5"}, "input": {"data": "digits"}})
    assert (job.code.name, job.code.k, job.code.r, job.train) == ("uncoded", 1, 0, None)
    assert job.gather.deadline == "adaptive"


def test_a_job_cannot_be_changed(read: Read) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read().code.k = 3


def test_paths_are_relative_to_the_job_file(read: Read, tmp_path: Path) -> None:
    job = read()
    assert job.file == tmp_path / "jobs" / "digits.toml"
    assert job.path("../data/x.npy") == tmp_path / "data" / "x.npy"
    assert job.path("/x.npy") == Path("/x.npy")
    assert job.results_path == tmp_path / "results" / "run.h5"
    assert read(text=TEXT.replace("file = ", "# ")).results_path == tmp_path / "jobs/digits.h5"


def test_shares_may_be_speeds(read: Read) -> None:
    speeds = (7.8e9, 2.1e12, 1.0, 1.0, 1.0, 1.0)
    assert read(f"plan.weights={list(speeds)}").plan.weights == speeds


def test_a_path_to_write_is_a_path_too(read: Read, tmp_path: Path) -> None:
    job = read()
    for name in ("loop", "link"):
        (tmp_path / "jobs" / name).symlink_to("loop")
    assert job.output("link") == tmp_path / "jobs" / "link", "the writer refuses it"
    assert job.output("link/") == tmp_path / "jobs" / "link"
    assert job.output("~/x.h5") == Path("~/x.h5").expanduser().resolve()
    with pytest.raises(JobError, match=r"digits\.toml: loop: its links lead in a circle; mend"):
        job.output("loop/x.h5")
    (tmp_path / "~x.toml").write_text(TEXT.replace("file = ", "# "))
    assert Job.read(tmp_path / "~x.toml").results_path == tmp_path / "~x.h5"


def test_a_relative_job_file_survives_a_change_of_folder(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read()
    monkeypatch.chdir(tmp_path)
    job = Job.read("jobs/digits.toml")
    monkeypatch.chdir("/")
    assert job.results_path == tmp_path / "results" / "run.h5"


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "get", "value"),
        [
            ("gather.deadline=0.1", lambda j: j.gather.deadline, 0.1),
            ("gather.deadline=inf", lambda j: j.gather.deadline, float("inf")),
            ("gather.deadline=adaptive", lambda j: j.gather.deadline, "adaptive"),
            ('gather.deadline = "adaptive"', lambda j: j.gather.deadline, "adaptive"),
            ("runtime.sharing=true", lambda j: j.runtime.sharing, True),
            ("input.size=[8, 9]", lambda j: j.input.size, (8, 9)),
            ("faults.1.rank=3", lambda j: j.faults[1].rank, 3),
            ("faults=[]", lambda j: j.faults, ()),
            ("model.args.depth=3", lambda j: j.model.args, {"depth": 3}),
            ("results.file=/tmp/x.h5", lambda j: j.results.file, "/tmp/x.h5"),
            ("seed=8", lambda j: j.seed, 8),
        ],
    )
    def test_replace_a_value(
        self, read: Read, text: str, get: Callable[[Job], Any], value: Any
    ) -> None:
        assert get(read(text)) == value

    def test_the_last_one_counts(self, read: Read) -> None:
        assert read("code.k=4", "code.k=5").code.k == 5

    def test_stand_in_the_text(self, read: Read) -> None:
        assert read().text == TEXT
        assert read("seed=8").text == TEXT + "\n# --set seed=8"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("seed", "--set seed: should be section.key=value"),
            ("=3", "--set =3: should be section.key=value"),
            (
                "seed=1,2",
                "--set seed=1,2: the value is not TOML; a string with spaces needs quotes",
            ),
            ("seed.x=1", "--set seed.x=1: seed is not a section"),
            ("faults.2.rank=1", "there are 2, counted from 0"),
            ("faults.rank=1", "faults is not a section"),
            ("plan=3", "--set plan=3: plan = 3: should be a section"),
            ("gather.deadlin=1", "--set gather.deadlin=1: [gather] deadlin is not a key"),
            ("gather.give_up=-1", "--set gather.give_up=-1: [gather] give_up = -1: should be"),
            ("gather.deadline=31", "--set gather.deadline=31: [gather] deadline: 31.0 s is after"),
        ],
    )
    def test_that_are_wrong_are_named(self, read: Read, text: str, message: str) -> None:
        assert message in complaint(read, text)

    def test_return_their_key(self) -> None:
        data: dict[str, Any] = {}
        assert override(data, "a.b=1") == (("a", "b"), "--set a.b=1")
        assert data == {"a": {"b": 1}}


# (what to replace in TEXT, by what, the whole complaint after the file's name)
MISTAKES = {
    "misspelt key": (
        "deadline",
        "deadlin",
        "[gather] deadlin is not a key (did you mean 'deadline'?)",
    ),
    "misspelt section": ("[gather]", "[gahter]", "gahter is not a key (did you mean 'gather'?)"),
    "key of another section": (
        "r = 2",
        "r = 2\nwindow = 3",
        "[code] window is not a key; it belongs to [runtime]",
    ),
    "no near key": (
        "r = 2",
        "r = 2\nzzzz = 3",
        "[code] zzzz is not a key; the keys here are name, k, r, weights, args, untrained, quality",
    ),
    "in a fault": ("factor", "faktor", "[[faults]] 0 faktor is not a key (did you mean 'factor'?)"),
    "number as text": ("k = 6", 'k = "6"', "[code] k = '6': should be an integer"),
    "float for integer": ("k = 6", "k = 6.0", "[code] k = 6.0: should be an integer"),
    "boolean for integer": ("k = 6", "k = true", "[code] k = True: should be an integer"),
    "too small": ("k = 6", "k = 0", "[code] k = 0: should be greater than 0"),
    "negative": ("r = 2", "r = -1", "[code] r = -1: should be greater than or equal to 0"),
    "wrong word": (
        'kind = "slow"',
        'kind = "slo"',
        "[[faults]] 0 kind = 'slo': should be 'slow', 'crash', 'silence', 'delay', "
        "'freeze', 'pattern', 'reboot', 'cpu', 'rate', 'link' or 'loss'",
    ),
    "wrong split": (
        '"width"',
        '"widht"',
        "[plan] split: 'widht' is not one of height, width, tiles, channels, batch "
        "(did you mean 'width'?)",
    ),
    "wrong code": (
        '"learned"',
        '"lerned"',
        f"[code] name: 'lerned' is not one of {', '.join(CODES)} (did you mean 'learned'?)",
    ),
    "either of two": (
        "deadline = 0",
        'deadline = "soon"',
        "[gather] deadline = 'soon': should be 'adaptive' or a number",
    ),
    "no number": (
        "deadline = 0",
        "deadline = nan",
        "[gather] deadline = nan: should be 'adaptive' or greater than or equal to 0",
    ),
    "for ever": (
        "deadline = 0",
        "give_up = inf",
        "[gather] give_up = inf: should be a finite number",
    ),
    "missing key": ('data = "digits"\n', "", "[input] data is missing"),
    "short array": ("[32, 32]", "[32]", "[input] size = [32]: has too few numbers"),
    "no array": ("[32, 32]", "32", "[input] size = 32: should be an array"),
    "uncoded with parity": (
        '"learned"',
        '"uncoded"',
        "[code] r: is 2, but uncoded means r = 0; name another code or set r = 0",
    ),
    "code without parity": (
        "r = 2",
        "r = 0",
        '[code] r: is 0, which is no redundancy; set r, or name = "uncoded"',
    ),
    "untrained and trained": (
        'weights = "code.safetensors"\n',
        'weights = "code.safetensors"\nuntrained = true\n',
        '[code] untrained: goes with no weights, and weights = "code.safetensors"; leave one of '
        "them out",
    ),
    "two ends of a fault": (
        'kind = "crash"\nstart = 0.6\n',
        'kind = "link"\nstop = 0.5\nseconds = 3.0\n',
        "[[faults]] 1 seconds: = 3 and stop = 0.5 both say when it ends; give one",
    ),
    "start after stop": (
        "stop = 0.5",
        "stop = 0.1",
        "[[faults]] 0 start: 0.2 is not before stop = 0.1",
    ),
    "start is no share": (
        "start = 0.2",
        "start = 20",
        "[[faults]] 0 start = 20: should be less than or equal to 1",
    ),
    "key of another kind": (
        "start = 0.6",
        "factor = 3.0",
        '[[faults]] 1 factor: does not belong to kind = "crash", which has rank, start',
    ),
    "leader as a fault's rank": (
        "start = 0.6",
        "rank = 0",
        "[[faults]] 1 rank = 0: should be greater than 0 or 'all'",
    ),
    "tiles without the split": (
        'split = "width"',
        'split = "width"\ntiles = [2, 3]',
        '[plan] tiles: goes with split = "tiles" and only with it: tiles = [down, across]',
    ),
    "neighbours of images": (
        'split = "width"',
        'split = "batch"\nexchange = "neighbours"',
        '[plan] exchange: "neighbours" is of strips and tiles, which have halos, and split = '
        '"batch" has none: set split = "height", or leave exchange out',
    ),
    "neighbours of linear stages": (
        'split = "width"',
        'split = "width"\nexchange = "neighbours"\nlinear = true',
        '[plan] exchange: "neighbours" keeps maps from the leader, and with linear = true it runs '
        "what lies between two stages: leave one of them out",
    ),
    "neighbours with a code that needs all maps": (
        'stages = ["pool2"]\n[code]\nname = "learned"',
        'exchange = "neighbours"\n[code]\nname = "zerofill"',
        '[plan] exchange: "neighbours" keeps maps from the leader, and "zerofill" needs them after '
        "every stage: set name = learned, r = 0, or leave exchange out",
    ),
    "neither of two exchanges": (
        'split = "width"',
        'split = "width"\nexchange = "ring"',
        "[plan] exchange = 'ring': should be 'leader' or 'neighbours'",
    ),
    "tiles that are not k": (
        'split = "width"',
        'split = "tiles"\ntiles = [2, 4]',
        "[plan] tiles: [2, 4] makes 8 tiles and k = 6 in [code]",
    ),
    "shares that are not k": (
        'split = "width"',
        'split = "width"\nweights = [1.0, 2.0]',
        "[plan] weights: has 2 shares and k = 6 in [code]",
    ),
    "images that are not dealt out": (
        '"width"',
        '"batch"',
        "[input] batch: 1 images cannot be dealt out to k = 6 units; set a multiple of k",
    ),
    "std per channel": (
        "mean = [0.5]",
        "mean = [0.5, 0.5]\nstd = [1.0, 1.0, 1.0]",
        "[input] std: has 3 values and mean has 2; give one a channel each",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_with_the_way_out(read: Read, name: str, tmp_path: Path) -> None:
    old, new, message = MISTAKES[name]
    assert old in TEXT
    text = complaint(read, text=TEXT.replace(old, new, 1))
    assert text.startswith(f"{tmp_path}/jobs/digits.toml: ")
    assert text.removeprefix(f"{tmp_path}/jobs/digits.toml: ") == message


def test_of_several_mistakes_the_unknown_key_comes_first(read: Read) -> None:
    text = TEXT.replace("k = 6", "k = 0").replace("data =", "dat =")
    message = complaint(read, text=text)
    assert "[input] dat is not a key (did you mean 'data'?) (and 2 more)" in message


class TestTraining:
    def test_needs_no_weights_of_the_code(self, read: Read) -> None:
        text = TEXT.replace('weights = "code.safetensors"\n', "")
        assert read(text=text, training=True).code.weights is None

    def test_needs_its_section(self, read: Read) -> None:
        text = TEXT[: TEXT.index("[train]")]
        assert "train: is missing; it says what to train" in complaint(
            read, text=text, training=True
        )

    def test_of_a_code_needs_parity(self, read: Read) -> None:
        text = TEXT.replace('"learned"', '"uncoded"').replace("r = 2", "r = 0")
        message = complaint(read, text=text, training=True)
        assert "[code] r: r = 0 leaves nothing to train" in message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed = \n", r"\(at line 1, column 8\)"),
        ("seed = 1\n[model\n", r"\(at line 2, column 7\)"),
        ("seed = 1\nseed = 2\n", r"\(at line 2, column 9\)"),
        ("a = 1\nb = [1,", r"\(at line 2, column 8\)"),
    ],
)
def test_bad_toml_is_told_with_line_and_column(read: Read, text: str, place: str) -> None:
    assert re.search("is not TOML: .*" + place, complaint(read, text=text))


class TestFile:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match=r"none\.toml: there is no such job file"):
            Job.read(tmp_path / "none.toml")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match=r"is a folder; name a job file in it"):
            Job.read(tmp_path)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n")
        with pytest.raises(JobError, match=r"is not text in UTF-8 \(byte 0\)"):
            Job.read(tmp_path / "x.h5")

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        with pytest.raises(JobError, match="cannot be read: Not a directory"):
            Job.read(tmp_path / "x" / "job.toml")


D, N = "[" * 3000, "9" * 5000
EXTREMES = {
    f"seed = {N}": "line 1, 'seed = 999",
    f"x = {D}": "line 1, 'x = [[[",
    f"x.{'a.' * 5000}b = 1": "line 1, 'x.a.a.",
    f"[code.args]\nx = {'[' * 40}{']' * 40}": "[code] args is nested too deep",
    f"[code.args]\nx.{'y.' * 30}z = 1": "[code] args is nested too deep",
    "seed = 18446744073709551616": "seed = 18446744073709551616: is beyond every limit, 2^63",
    "seed = -1": "seed = -1: should be greater than or equal to 0",
    "[code]\nr = 1000000000000000000000000000000": "[code] r = 10000",
    "[code]\nk = 1000000": "[code] k = 1000000: should be less than or equal to 4096",
    "[input]\nrepeat = 18446744073709551616": "[input] repeat = 1844",
    "[input]\nrepeat = 4294967296": "[input] repeat = 4294967296: should be less than or equal",
    "[input]\nbatch = 1000000000": "[input] batch = 1000000000: should be less than or equal",
    "[input]\nsize = [1000000, 1000000]": "[input] size = 1000000: should be less",
    "[input]\nmean = [nan]": "[input] mean = nan: should be a finite number",
    "[input]\nstd = [inf]": "[input] std = inf: should be a finite number",
    "[runtime]\nthreads = 4294967296": "[runtime] threads = 4294967296: should be less than",
    "[runtime]\nwindow = 1000000000": "[runtime] window = 1000000000: should be less than",
    "[gather]\ngive_up = 1e300": "[gather] give_up = 1e+300: should be less than",
    "[gather]\npatience = nan": "[gather] patience = nan: should be ",
    "[plan]\nweights = [1e-300, 1.0]": "[plan] weights = 1e-300: should be ",
    '[results]\nfile = "a\\u0000b"': "[results] file = 'a\\x00b': holds a NUL character",
    '[results]\nfile = "~nouser/x.h5"': "file = '~nouser/x.h5': there is no user 'nouser'",
    f'[results]\nfile = "{"x" * 300}"': "255 between two slashes",
    f'[model]\nweights = "{"x" * 9000}"': "[model] weights = 'xxx",
    '[model]\nname = "\\u0000"': "[model] name = '\\x00': holds a NUL character",
    '"\\u0000" = 1': "holds a NUL character",
    "seed = 1\nseed = 2": "is not TOML: Cannot overwrite a value",
}


@pytest.mark.parametrize("text", EXTREMES, ids=lambda text: text[:30])
def test_extremes_are_one_short_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.toml"
    whole = text
    for header, line in {"[model]": 'name = "lenet5"', "[input]": 'data = "digits"'}.items():
        if header not in text:
            whole += f"\n{header}\n{line}"
        elif "name" not in text:
            whole = whole.replace(header, f"{header}\n{line}")
    path.write_text(whole)
    for light in (False, True):
        with pytest.raises(JobError) as error:
            Job.read(path, light=light)
        assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 500
        assert EXTREMES[text] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"seed={N}", "--set 'seed=999"),
        (f"x={D}", "arrays nested too deep"),
        (f"faults.{N}.rank=1", "is not there: there are 2"),
        (".".join("a" * 3000) + "=1", "nested too deep"),
        ('results.file="\udcff.h5"', "is not text in UTF-8"),
        ("seed=1e400", "seed = inf: should be an integer"),
        ("0=1", "is not a key"),
        (".=1", "is not a key"),
    ],
)
def test_extreme_overrides(read: Read, override: str, message: str) -> None:
    text = complaint(read, override)
    assert message in text and len(text) < 500


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "bytes", "large"])
def test_what_is_no_job_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "job.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "bytes":
        path.write_bytes(b"seed = \xff")
    elif kind == "large":
        path.write_text("# " * (3 << 20))
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    said = {"fifo": "it is a FIFO", "device": "it is a device", "folder": "is a folder; name",
            "loop": "Too many levels", "bytes": "is not text in UTF-8 (byte 7)",
            "large": "it has more than the 4,194,304 bytes"}  # fmt: skip
    with pytest.raises(JobError, match=re.escape(said[kind])):
        Job.read(path)


def test_marks_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    text = '[model]\nname = "lenet5"\n[input]\ndata = "digits"\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert Job.read(path).model.name == "lenet5"


@pytest.mark.parametrize("text", ["a", "[ " * 60 + " " * 10**4, "9" * 600 + " ", "a." * 60, "'"])
def test_time_is_that_of_the_length(tmp_path: Path, text: str) -> None:
    """None of the patterns that look for extremes takes time of a higher order."""
    path = tmp_path / "job.toml"
    path.write_text(text * (10**6 // len(text)))
    began = time.process_time()
    with pytest.raises(JobError):
        Job.read(path)
    assert time.process_time() - began < 20
