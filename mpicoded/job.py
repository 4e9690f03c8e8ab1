"""Job: the strict model of a job file, jobs/*.toml. A misspelt key is an error with the near miss.

Fields are keys, with a sentence each, from which docs/job.md is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError

from mpicoded import paths
from mpicoded.arrivals import CLOSED, Seconds, schedule
from mpicoded.conflicts import conflicts
from mpicoded.errors import JobError, unknown_name
from mpicoded.faults import KINDS, Fault, assign, moved
from mpicoded.jobfile import Key, Places, explain, override, parse, place, read_text, spell
from mpicoded.section import (
    UNITS,
    Count,
    Factor,
    Finite,
    OneOf,
    PathName,
    Positive,
    Section,
    Share,
    Units,
    Weight,
    key,
)
from mpicoded.settings import GatherSpec, RuntimeSpec, Settings

if TYPE_CHECKING:
    from mpicoded.cluster import Cluster

# TOML has arrays only, and they are lists: let them in as tuples, their elements stay strict
Tiles = Annotated[tuple[Units, Units], Field(strict=False)]
Size = Annotated[int, Field(gt=0, le=4096)]  # a model is tried at this size at the start
Sizes = Annotated[tuple[Size, Size], Field(strict=False)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Means = Annotated[tuple[Mean, ...], Field(strict=False, min_length=1, max_length=UNITS)]
Spreads = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=UNITS)]
Speed = Annotated[float, Field(ge=1e-6, le=1e15)]  # shares may be the ranks' FLOP/s
Shares = Annotated[tuple[Speed, ...], Field(strict=False, min_length=1, max_length=UNITS)]
DRIFT = 1.5
Ratio = Annotated[float, Field(gt=1, le=1e6)]
Names = Annotated[tuple[str, ...], Field(strict=False, max_length=UNITS)]


class ModelSpec(Section):
    """[model]: the base model."""

    name: str = key("Model of the package, or `package.module:factory` of your own.")
    args: dict[str, Any] = key("Arguments of the model.", {})
    weights: PathName | None = key("File of weights: safetensors, or a state dict.", None)


class InputSpec(Section):
    """[input]: the images, and when they are asked."""

    data: PathName = key("Data set by name, an array (`x.npy`, `x.h5:dataset`), or a folder.")
    split: Literal["all", "train", "test"] = key("Part of the data; test is held out.", "all")
    size: Sizes | None = key("Rows and columns to resize images to. Default: as they are.", None)
    limit: Count | None = key("Take the first images only. Default: all.", None)
    repeat: Count = key("Times that all of them are asked.", 1)
    batch: int = key("Images a query.", 1, gt=0, le=65536)
    mean: Means = key("Mean of 8-bit images scaled to 0..1, of each channel or of all.", (0.0,))
    std: Spreads = key("Standard deviation of the same.", (1.0,))
    arrivals: PathName = key(
        '"closed" asks a query when one of the window is answered. An open loop asks on a schedule,'
        ' and counts latency from it: "poisson", "constant", or a file with a second a line (or a'
        " `.npy` array), rising.",
        "closed",
    )
    rate: Positive | None = key("Queries a second of poisson or constant arrivals.", None)


class PlanSpec(Section):
    """[plan]: how stages are cut, and which maps the leader gathers."""

    planner: str | None = key(
        "Planner that decides stages, ranks and cuts for the measured cluster, instead of the keys"
        ' below; "auto" takes the best of all.',
        None,
    )
    objective: Literal["latency", "throughput", "p99", "memory", "energy"] = key(
        'What planner = "auto" makes best: seconds of a query, or between two; the p99 of a'
        ' simulated run; bytes of the rank that needs most. "energy" is of planner = "coedge".',
        "latency",
    )
    latency_limit: Positive | None = key(
        'Seconds a query may take, of planner = "pico" or objective = "energy". Default: no limit.',
        None,
    )
    split: str = key("Units: strips or tiles of a map, groups of filters, or images.", "height")
    stages: Literal["auto"] | Names = key(
        'Last block of every stage; "auto" takes the stages that are fastest on the measured'
        " cluster. Default: one stage, as far as each unit gets a row or column of the map.",
        (),
    )
    cluster: PathName | None = key("Cluster file of `mpicoded profile`, for predictions.", None)
    tiles: Tiles | None = key('Rows and columns of tiles, for split = "tiles".', None)
    weights: Shares | None = key("Unequal shares of the k shards. Default: equal ones.", None)
    linear: bool = key(
        "Whether every stage is one convolution without its activation, as exact codes need; the"
        " leader runs what lies between.",
        False,
    )
    exchange: Literal["leader", "neighbours"] = key(
        '"leader" gathers the map after every stage; with "neighbours" units exchange halos'
        " directly, and only the last map is gathered.",
        "leader",
    )
    switch: str | None = key(
        "Planner of a second plan: queries go by that of the two with the least mean latency at the"
        ' rate at which they arrive; "pico" or "replicas" for many. Default: none.',
        None,
    )
    lost_halo: Literal["recompute", "restart"] = key(
        'With a code, if a halo is late or its rank dead: "recompute" it from the input, of which '
        'each rank is sent more for that, or "restart" the query without that rank.',
        "recompute",
    )
    replan: Ratio | None = key(
        "Times that paces of ranks, against one another, may drift from those of the plan: then"
        " further queries go by a new one, if that is predicted to be faster. Default: 1.5 with"
        ' planner = "auto", else never.',
        None,
    )
    fallback: bool | None = key(
        "Whether rank 0 runs queries unsplit while the plan measures slower than one device."
        ' Default: with planner = "auto".',
        None,
    )

    @property
    def bound(self) -> float | None:
        """Times that paces may drift until another plan is made; None: as much as they will."""
        return self.replan or (DRIFT if self.planner == "auto" and not self.switch else None)

    @property
    def falls_back(self) -> bool:
        """True if the plan is to be compared with one device."""
        default = self.planner == "auto" and not self.switch
        return default if self.fallback is None else self.fallback


class CodeSpec(Section):
    """[code]: the redundancy."""

    name: str = key("Name of the code.", "uncoded")
    k: Units = key("Data units.", 1)
    r: int = key("Parity units.", 0, ge=0, le=UNITS)
    weights: PathName | None = key("File of a trained code, of `mpicoded train`.", None)
    args: dict[str, Any] = key("Options of the code.", {})
    untrained: bool = key(
        "Take a code that learns without its weights: times are real, degraded answers useless.",
        False,
    )
    quality: PathName | None = key("File (.json) of `mpicoded calibrate`, without weights.", None)


class FaultSpec(Section):
    """[[faults]]: injected faults, each an entry of its own; their kinds stand below."""

    kind: Annotated[str, OneOf(KINDS)] = key("Kind of the fault.")
    rank: Count | Literal["all"] | None = key(
        'Rank that it strikes; "all" are all workers. Default: drawn from the seed.', None
    )
    start: Share = key("Share of the queries after which it begins.", 0.0)
    stop: Share = key("Share of the queries after which it ends.", 1.0)
    factor: Factor = key("Times that a rank computes slower.", 10.0)
    seconds: Finite | None = key("How long it lasts, or a delay. Default: of the kind.", None)
    probability: Share = key("Share of the queries that it strikes.", 1.0)
    tail: Literal["fixed", "exponential"] = key(
        "Distribution of a delay: always `seconds`, or exponential with that mean.", "fixed"
    )
    missing: int = key("Workers that are silent at a time.", 1, ge=0, le=UNITS)
    share: Share = key("Share of the CPU that is left, or of packets that are lost.", 0.1)
    mbit: Positive = key("Mbit/s of the link.", 10.0)

    def faults(self, queries: int, ranks: int) -> Iterator[Fault]:
        """Yield the faults of a run: queries by number, one for every rank."""
        kind, first = KINDS[self.kind], round(self.start * queries)
        numbers = {"share": self.share, "mbit": 1e6 * self.mbit}
        for rank in range(1, ranks) if self.rank == "all" else [self.rank]:
            yield Fault(
                kind=self.kind,
                rank=rank,
                first=first,
                last=max(round(self.stop * queries), first + 1),
                factor=self.factor,
                seconds=self.seconds or kind.seconds,
                probability=self.probability,
                tail=self.tail == "exponential",
                missing=self.missing,
                value=sum(numbers[name] for name in numbers if name in kind.keys),
            )


class ResultsSpec(Section):
    """[results]: the results file."""

    file: PathName | None = key("HDF5 file. Default: the job file's name with .h5.", None)
    flush: float = key("Seconds between two writes.", 1.0, ge=0, le=1e7, allow_inf_nan=False)
    unsplit: bool = key("Whether the base model answers every query too, to compare.", True)


class TrainSpec(Section):
    """[train]: training of the base model, or of a code and its parity models."""

    kind: Literal["base", "code"] = key("Train the base model, or the code.")
    out: PathName = key("File of the weights (.safetensors); checkpoint and curves lie beside it.")
    start: PathName | None = key("For a code: weights to begin with, also of another plan.", None)
    epochs: int = key("Epochs.", 30, gt=0, le=10**6)
    batch: int = key("Images a step.", 64, gt=0, le=65536)
    rate: float = key("Highest learning rate.", 3e-3, gt=0, le=1e6, allow_inf_nan=False)
    schedule: Literal["cosine", "constant", "step"] = key(
        "Course of the rate: rise and fall to 0; constant; a tenth at 1/2, a hundredth at 3/4.",
        "cosine",
    )
    patience: Count | None = key("Epochs without a better loss till it ends. Default: never.", None)
    weight_decay: Weight = key("Weight decay.", 1e-4)
    validation: float = key("Share of the training images that is held back.", 0.1, gt=0, lt=1)
    shift: Share = key("Share of its size by which an image is moved, at most.", 0.0)
    rotate: float = key("Degrees by which an image is turned, at most.", 0.0, ge=0, le=180)
    scale: Share = key("Share by which an image is resized, at most.", 0.0)
    flip: bool = key("Whether half of the images are mirrored.", False)
    precision: Literal["float32", "bfloat16"] = key(
        "Type of computations; weights are float32.", "float32"
    )
    smoothing: float = key("Smoothing of labels, for a base model.", 0.0, ge=0, lt=1)
    loss: Literal["mixture", "mse-base", "kl-base", "xent-label"] = key(
        "Loss of a code: a mixture of features and logits, or of the logits alone.", "mixture"
    )
    features: Weight = key("Weight of the features' error in the mixture.", 1.0)
    alone: Weight = key("Weight of answers from one parity unit alone, of a code of shards.", 0.0)
    device: Literal["auto", "cpu", "cuda"] = key('"auto" is CUDA if there is any.', "auto")


class Job(Section):
    """A whole job file. Sections that are left out have their defaults."""

    seed: int = key("Seed of all that is drawn.", 0, ge=0, lt=2**63)
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
    _ranks: tuple[int, ...] | None = PrivateAttr(default=None)

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
        ``light`` does not check the names of codes and planners, who need torch. A JobError is one
        line: the file, the key, its value and what is allowed.
        """
        path = Path(path)
        text = read_text(path)
        data = parse(path, text)
        places = dict(override(data, each) for each in overrides)
        job = cls._checked(data, path, places, training, light)
        job._text = text + "".join(f"\n# --set {each}" for each in overrides)
        return job

    @classmethod
    def given(cls, code: str = "uncoded", batch: int = 1, **keys: Any) -> Job:
        """Make a job of keys from [plan] to [runtime]; JobError as for a file."""
        known: dict[str, type[Section]]
        known = {"plan": PlanSpec, "code": CodeSpec, "gather": GatherSpec, "runtime": RuntimeSpec}
        data: dict[str, dict[str, Any]] = {section: {} for section in known}
        data |= {"model": {"name": "given"}, "input": {"data": "given", "batch": batch}}
        for name, value in (("name", code), *keys.items()):
            has = (section for section, model in known.items() if name in model.model_fields)
            data[next(has, "runtime")][name] = value
        return cls._checked(data, None, {}, False, False)

    @classmethod
    def _checked(
        cls, data: Any, path: Path | None, places: Places, training: bool, light: bool
    ) -> Job:
        try:
            job = cls.model_validate(data)
        except ValidationError as error:
            raise JobError(explain(cls, error, path, places)) from None
        names = () if light else _unknown_names(job)
        for where, why in (*names, *conflicts(job, training)):
            raise JobError(f"{place(path, places, where)}{spell(where)}: {why}")
        job._file = (path or Path("program")).absolute()
        return job

    @property
    def file(self) -> Path:
        """The job file."""
        return self._file

    @property
    def text(self) -> str:
        """The job file word for word, and each override as a comment after it."""
        return self._text

    @property
    def settings(self) -> Settings:
        """[gather] and [runtime] in one."""
        return Settings(**self.gather.model_dump(), **self.runtime.model_dump())

    def injected(self, queries: int, ranks: int, before: Sequence[int]) -> tuple[Fault, ...]:
        """Return [[faults]] as a run has them: in queries by number, each with its rank.

        They are drawn for the ``ranks`` that the run began with; rank i now was ``before[i]`` then.
        Raises JobError if there are too few ranks for them.
        """
        workers = len(before) - 1
        for spec in self.faults:
            if spec.kind == "pattern" and spec.missing >= workers > 0:
                raise JobError(
                    f"[[faults]] missing = {spec.missing} of {workers} workers leaves nobody to "
                    "answer: lower it, or start more ranks"
                )
        faults = [fault for spec in self.faults for fault in spec.faults(queries, ranks)]
        return moved(assign(faults, range(1, ranks), self.seed), before)

    def schedule(self, queries: int) -> Seconds | None:
        """Return the second at which every query is asked, None in a closed loop; JobError."""
        given = self.input
        if given.arrivals == CLOSED:
            return None
        file = self.path(given.arrivals)
        return schedule(given.arrivals, given.rate, queries, self.seed, file)

    def on(self, ranks: Sequence[int]) -> Self:
        """Return the job for a run on these ranks alone, by their numbers in the cluster file."""
        job = self.model_copy()
        job._ranks = tuple(ranks)
        return job

    def measured(self) -> Cluster | None:
        """Read the measured cluster, None if the job names none; JobError if it is wrong."""
        from mpicoded import clusterfile

        if self.plan.cluster is None:
            return None
        cluster = clusterfile.read(self.path(self.plan.cluster))
        present = cluster.only(self._ranks or ())
        return present if present.workers else cluster  # rank 0 alone needs no plan

    def path(self, name: str) -> Path:
        """Return a path relative to the job file; JobError if its links lead in a circle."""
        try:
            return paths.locate(self._file.parent, name)
        except OSError as error:
            raise JobError(f"{self._file}: {name}: {error.strerror}; mend the path") from None

    def output(self, name: str) -> Path:
        """Return the path of a file to write; its own name is not followed if it is a link."""
        folder, last = os.path.split(Path(os.path.expanduser(name)))
        return self.path(folder or ".") / last

    @property
    def results_path(self) -> Path:
        """The results file; where the job names none, ``<job>.h5`` beside the job file."""
        return self.output(self.results.file or f"./{self._file.stem}.h5")


def _unknown_names(job: Job) -> Iterator[tuple[Key, str]]:
    """Yield (key, what is wrong) for the names of what is chosen by name."""
    from mpicoded.codes import CODES
    from mpicoded.planners import PLANNERS
    from mpicoded.split import SPLITS

    for name in ("planner", "switch"):
        if (given := getattr(job.plan, name)) is not None and given not in PLANNERS:
            yield ("plan", name), unknown_name(given, list(PLANNERS))
    if job.plan.split not in SPLITS:
        yield ("plan", "split"), unknown_name(job.plan.split, list(SPLITS))
    if job.code.name not in CODES:
        yield ("code", "name"), unknown_name(job.code.name, list(CODES))
