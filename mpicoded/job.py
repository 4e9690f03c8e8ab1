"""Job: the strict model of a job file, jobs/*.toml. A misspelt key is an error with the near miss.

Every section is one small model below; its fields are the keys, with their types, limits and
defaults. What depends on two keys is in :func:`_conflicts`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from mpicoded import paths
from mpicoded.errors import JobError
from mpicoded.faults import LAB_KINDS, Kind
from mpicoded.jobfile import Key, explain, override, parse, place, read_text, spell, unknown_name

if TYPE_CHECKING:
    from mpicoded.cluster import Cluster

# Every number has an upper limit, far above what is of use and below where something would break.
UNITS = 4096  # of a plan: each is a rank's
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
# seconds of a wait: never for ever
Finite = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
Units = Annotated[int, Field(gt=0, le=UNITS)]
# TOML has arrays only, and they are lists: let them in as tuples, their elements stay strict
Tiles = Annotated[tuple[Units, Units], Field(strict=False)]
Normalize = Annotated[int, Field(gt=0, le=4096)]  # a model is tried at this size at the start
Sizes = Annotated[tuple[Normalize, Normalize], Field(strict=False)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Numbers = Annotated[tuple[Mean, ...], Field(strict=False, min_length=1, max_length=UNITS)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Spreads = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=UNITS)]
Speed = Annotated[float, Field(ge=1e-6, le=1e15)]  # shares may be the ranks' FLOP/s
Shares = Annotated[tuple[Speed, ...], Field(strict=False, min_length=1, max_length=UNITS)]
Names = Annotated[tuple[str, ...], Field(strict=False, max_length=UNITS)]
PathName = Annotated[str, AfterValidator(paths.check_name)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSpec(_Section):
    """[model]: the network that is served, one of ours or ``package.module:factory``."""

    name: str
    args: dict[str, Any] = {}
    weights: PathName | None = None


class InputSpec(_Section):
    """[input]: where the images come from; ``mean`` and ``std`` are of values scaled to 0..1."""

    data: PathName
    split: Literal["all", "train", "test"] = "all"
    size: Sizes | None = None  # (rows, columns) to resize to
    limit: Count | None = None
    repeat: Count = 1
    batch: Annotated[int, Field(gt=0, le=65536)] = 1  # images a query
    mean: Numbers = (0.0,)
    std: Spreads = (1.0,)


class PlanSpec(_Section):
    """[plan]: how the work is cut. ``stages`` names the last block of each stage.

    "auto" takes the stages that are fastest on ``cluster``, a file that ``mpicoded profile`` makes.
    ``linear`` is for exact codes: every stage is one of those blocks without its activation, its
    shards are all of one size, and the leader runs what lies between.
    """

    split: str = "height"
    stages: Literal["auto"] | Names = ()
    cluster: PathName | None = None
    tiles: Tiles | None = None  # (down, across)
    weights: Shares | None = None  # the k shares
    linear: bool = False


class CodeSpec(_Section):
    """[code]: k data units and r parity units; ``args`` are the named code's own options.

    ``untrained`` takes a code that learns as the seed makes it: its times are those of a trained
    one, what it fills in is of no use. ``quality`` is a .json file that ``mpicoded calibrate``
    makes of a code without weights; that of a code with weights is in their file.
    """

    name: str = "uncoded"
    k: Units = 1
    r: Annotated[int, Field(ge=0, le=UNITS)] = 0
    weights: PathName | None = None
    args: dict[str, Any] = {}
    untrained: bool = False
    quality: PathName | None = None


class GatherSpec(_Section):
    """[gather]: how long to wait, in seconds. ``patience`` multiplies what is measured.

    With ``min_accuracy`` a stage waits for no more once its answer is expected to be that good.
    """

    deadline: Literal["adaptive"] | Annotated[float, Field(ge=0)] = "adaptive"
    patience: Factor = 2.0
    min_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    give_up: Finite = 30.0
    retries: Annotated[int, Field(ge=0, le=1000)] = 2


class RuntimeSpec(_Section):
    """[runtime]: queries in flight, what travels, and the limits of every wait in seconds."""

    window: Annotated[int, Field(gt=0, le=4096)] = 4
    wire: Literal["float32", "float16", "uint8", "int8"] = "float32"  # as inputs travel
    parity: Literal["float32", "float16", "int8"] | None = None  # those of parity; None: as wire
    answers: Literal["float32", "float16", "int8"] = "float32"  # as outputs travel back
    sharing: bool = False
    placement: Literal["adaptive", "fixed"] = "adaptive"  # fixed: a unit stays on its rank
    threads: Annotated[int, Field(gt=0, le=1024)] | Literal["auto"] = 1
    start_limit: Finite = 120.0
    end_limit: Finite = 10.0
    suspect_after: Finite = 0.5


class FaultSpec(_Section):
    """[[faults]]: one injected fault; ``start`` and ``stop`` are fractions of the queries.

    ``reboot``, ``cpu``, ``rate``, ``link`` and ``loss`` are done by ``mpicoded lab run``. What each
    kind may say is in FAULT_KEYS.
    """

    kind: Kind
    rank: Count | Literal["all"] | None = None  # None: drawn from the seed
    start: Share = 0.0
    stop: Share = 1.0
    factor: Factor = 10.0
    seconds: Finite | None = None
    probability: Share = 1.0
    tail: Literal["fixed", "exponential"] = "fixed"
    # workers that are silent, others in every query
    missing: Annotated[int, Field(ge=0, le=UNITS)] = 1
    share: Share = 0.1  # of the CPU that is left, or of the packets that are lost
    mbit: Positive = 10.0  # Mbit/s of the link


class ResultsSpec(_Section):
    """[results]: the file, how often it is flushed (seconds), and whether to run F unsplit too."""

    file: PathName | None = None
    flush: Seconds = 1.0
    unsplit: bool = True


class TrainSpec(_Section):
    """[train]: what ``mpicoded train`` makes: the base model's weights, or a code's.

    Images are jittered: moved by up to ``shift`` of their size, turned by up to ``rotate`` degrees,
    resized by up to ``scale``, half of them mirrored with ``flip``. ``precision`` is what networks
    compute in; weights are float32. ``smoothing`` of labels is for a base model; ``loss``, and in
    "mixture" how much an error of the ``features`` counts beside one of the logits, for a code;
    for one of shards, how much answers from ``alone`` one parity unit count beside them.
    ``schedule`` is how the rate goes, ``patience`` after how many epochs without a better
    validation loss the training ends. A code may ``start`` from the weights of another job.
    """

    kind: Literal["base", "code"]
    out: PathName
    start: PathName | None = None
    epochs: Annotated[int, Field(gt=0, le=10**6)] = 30
    batch: Annotated[int, Field(gt=0, le=65536)] = 64
    rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 3e-3  # the highest
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    patience: Count | None = None
    weight_decay: Weight = 1e-4
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the training images
    shift: Share = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Share = 0.0
    flip: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss: Literal["mixture", "mse-base", "kl-base", "xent-label"] = "mixture"
    features: Weight = 1.0
    alone: Weight = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA if there is any


class Job(_Section):
    """A whole job file. Sections that are left out have their defaults."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelSpec
    input: InputSpec
    plan: PlanSpec = PlanSpec()
    code: CodeSpec = CodeSpec()
    gather: GatherSpec = GatherSpec()
    runtime: RuntimeSpec = RuntimeSpec()
    faults: Annotated[tuple[FaultSpec, ...], Field(strict=False, max_length=1000)] = ()
    results: ResultsSpec = ResultsSpec()
    train: TrainSpec | None = None
    _file: Path = PrivateAttr()
    _text: str = PrivateAttr()

    @classmethod
    def read(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        *,
        training: bool = False,
        light: bool = False,
    ) -> Job:
        """Read a job file; ``overrides`` are ``section.key=value``, the value in TOML.

        ``training`` is for the verb train: it needs [train], and a code without weights is fine.
        ``light`` does not check the names of codes and planners, who need torch.

        Raises
        ------
        JobError
            One line: the file, the key, its value and what is allowed.
        """
        path = Path(path)
        text = read_text(path)
        data = parse(path, text)
        places = dict(override(data, each) for each in overrides)
        try:
            job = cls.model_validate(data)
        except ValidationError as error:
            raise JobError(explain(cls, path, places, error)) from None
        names = () if light else _unknown_names(job)
        for key, why in (*names, *_conflicts(job, training)):
            raise JobError(f"{place(path, places, key)}: {spell(key)}: {why}")
        job._file = path.absolute()
        job._text = text + "".join(f"\n# --set {each}" for each in overrides)
        return job

    @property
    def file(self) -> Path:
        """The job file."""
        return self._file

    @property
    def text(self) -> str:
        """The job file word for word, and each override as a comment after it."""
        return self._text

    def measured(self) -> Cluster | None:
        """Return the cluster as it was measured, if the job names its file; read it now.

        Raises
        ------
        JobError
            If it cannot be read or says something wrong.
        """
        from mpicoded import clusterfile

        return None if self.plan.cluster is None else clusterfile.read(self.path(self.plan.cluster))

    def path(self, name: str) -> Path:
        """Return a path of the job file, which is relative to the job file's folder.

        Raises
        ------
        JobError
            If its links lead in a circle.
        """
        try:
            return paths.locate(self._file.parent, name)
        except OSError as error:
            raise JobError(f"{self._file}: {name}: {error.strerror}; mend the path") from None

    def output(self, name: str) -> Path:
        """Return the path of a file to write: its own name is not followed if it is a link.

        Raises
        ------
        JobError
            If the links of its folder lead in a circle.
        """
        folder, last = os.path.split(Path(os.path.expanduser(name)))
        return self.path(folder or ".") / last

    @property
    def results_path(self) -> Path:
        """The results file; where the job names none, ``<job>.h5`` beside the job file."""
        return self.output(self.results.file or f"./{self._file.stem}.h5")


def _unknown_names(job: Job) -> Iterator[tuple[Key, str]]:
    """Yield (key, what is wrong) for the names of what is chosen by name."""
    from mpicoded.codes import CODES
    from mpicoded.split import SPLITS

    if job.plan.split not in SPLITS:
        yield ("plan", "split"), unknown_name(job.plan.split, list(SPLITS))
    if job.code.name not in CODES:
        yield ("code", "name"), unknown_name(job.code.name, list(CODES))


def _conflicts(job: Job, training: bool) -> Iterator[tuple[Key, str]]:
    """Yield (key, what is wrong) for all that one key alone does not show."""
    yield from _plan_conflicts(job.plan, job.code, job.input)
    yield from _code_conflicts(job.code)
    if training and job.train is None:
        yield ("train",), 'is missing; it says what to train: kind = "base" or "code", and out'
    if training and job.train and job.train.kind == "code" and job.code.r == 0:
        yield ("code", "r"), 'r = 0 leaves nothing to train; set r, and name = "learned"'
    if job.train and job.train.kind == "base" and job.train.loss != "mixture":
        yield (
            ("train", "loss"),
            f'"{job.train.loss}" is for kind = "code"; a base model has its own: leave it out',
        )
    if job.train and job.train.kind == "base" and job.train.start is not None:
        yield (
            ("train", "start"),
            'is for kind = "code"; name a base model\'s weights in [model] and leave it out',
        )
    if job.train and job.train.alone and (job.train.kind == "base" or job.plan.split == "batch"):
        yield ("train", "alone"), "is for a code of shards: leave it out"
    if job.train and not job.train.out.endswith(".safetensors"):
        yield ("train", "out"), f"{job.train.out!r} is no weights file: let it end in .safetensors"
    mean, std = len(job.input.mean), len(job.input.std)
    if mean != std and 1 not in (mean, std):
        yield ("input", "std"), f"has {std} values and mean has {mean}; give one a channel each"
    for key, values in (("mean", job.input.mean), ("std", job.input.std)):
        wrong = [value for value in values if not 0 <= value <= 1]
        if wrong:
            yield (
                ("input", key),
                f"has {wrong[0]:g}, and is of pixels from 0 to 1, not 0 to 255: divide by 255",
            )
    gather = job.gather
    if gather.deadline != "adaptive" and gather.give_up < gather.deadline < float("inf"):
        yield (
            ("gather", "deadline"),
            f"{gather.deadline} s is after give_up = {gather.give_up} s; lower it or raise give_up",
        )
    if gather.min_accuracy is not None and gather.deadline == 0:
        yield (
            ("gather", "deadline"),
            f"is 0 s, and min_accuracy = {gather.min_accuracy:g}: at the deadline any answer will "
            "do, so nothing would be waited for; raise the deadline or leave it out",
        )
    for number, fault in enumerate(job.faults):
        yield from _fault_conflicts(number, fault)


def _plan_conflicts(plan: PlanSpec, code: CodeSpec, given: InputSpec) -> Iterator[tuple[Key, str]]:
    if plan.stages == "auto" and plan.split == "batch":
        yield ("plan", "stages"), '"auto" cuts maps; split = "batch" has one stage: leave it out'
    elif plan.stages == "auto" and plan.cluster is None:
        yield (
            ("plan", "cluster"),
            'is missing; stages = "auto" needs a measured cluster: make its file with '
            "`mpirun … python -m mpicoded profile JOB --out cluster.toml`",
        )
    if (plan.tiles is not None) != (plan.split == "tiles"):
        yield (
            ("plan", "tiles"),
            'goes with split = "tiles" and only with it: tiles = [down, across]',
        )
    if plan.tiles and plan.tiles[0] * plan.tiles[1] != code.k:
        product = plan.tiles[0] * plan.tiles[1]
        yield (
            ("plan", "tiles"),
            f"{list(plan.tiles)} makes {product} tiles and k = {code.k} in [code]",
        )
    if plan.weights and len(plan.weights) != code.k:
        yield ("plan", "weights"), f"has {len(plan.weights)} shares and k = {code.k} in [code]"
    if plan.linear and plan.split == "batch":
        yield ("plan", "linear"), 'cuts a network, and split = "batch" runs it whole: leave it out'
    if plan.linear and plan.weights and plan.split != "channels":
        yield ("plan", "weights"), "make shards of many sizes, and linear = true is of one size"
    if plan.split == "batch" and given.batch % code.k:
        yield (
            ("input", "batch"),
            f"{given.batch} images cannot be dealt out to k = {code.k} units; set a multiple of k",
        )


WITHOUT_PARITY = ("uncoded", "zerofill")


def _code_conflicts(code: CodeSpec) -> Iterator[tuple[Key, str]]:
    if code.name in WITHOUT_PARITY and code.r:
        yield (
            ("code", "r"),
            f"is {code.r}, but {code.name} means r = 0; name another code or set r = 0",
        )
    if code.name not in WITHOUT_PARITY and not code.r:
        yield ("code", "r"), 'is 0, which is no redundancy; set r, or name = "uncoded"'
    if code.quality and not code.quality.endswith(".json"):
        yield ("code", "quality"), f"{code.quality!r} is no quality table: let it end in .json"
    if code.quality and code.weights:
        yield (
            ("code", "quality"),
            f'goes with no weights, and weights = "{code.weights}": what the code is worth is in '
            "that file; leave it out",
        )
    if code.untrained and code.weights:
        yield (
            ("code", "untrained"),
            f'goes with no weights, and weights = "{code.weights}"; leave one of them out',
        )


# what belongs to which kind of fault, beside start
FAULT_KEYS = {
    "slow": {"rank", "stop", "factor"},
    "crash": {"rank"},
    "silence": {"rank", "stop", "probability"},
    "delay": {"rank", "stop", "seconds", "probability", "tail"},
    "freeze": {"rank", "seconds"},
    "pattern": {"stop", "missing"},
    "reboot": {"rank", "seconds"},
    "cpu": {"rank", "stop", "share", "seconds"},
    "rate": {"rank", "stop", "mbit", "seconds"},
    "link": {"rank", "stop", "seconds"},
    "loss": {"rank", "stop", "share", "seconds"},
}


def _fault_conflicts(number: int, fault: FaultSpec) -> Iterator[tuple[Key, str]]:
    foreign = fault.model_fields_set - FAULT_KEYS[fault.kind] - {"kind", "start"}
    for key in sorted(foreign):
        allowed = ", ".join(sorted({"start"} | FAULT_KEYS[fault.kind]))
        yield (
            ("faults", number, key),
            f'does not belong to kind = "{fault.kind}", which has {allowed}',
        )
    if fault.start >= fault.stop:
        yield ("faults", number, "start"), f"{fault.start} is not before stop = {fault.stop}"
    if fault.seconds and "stop" in fault.model_fields_set and fault.kind in LAB_KINDS:
        yield (
            ("faults", number, "seconds"),
            f"= {fault.seconds:g} and stop = {fault.stop:g} both say when it ends; give one",
        )
