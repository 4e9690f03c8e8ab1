"""Conflicts of a job: all that one key alone does not show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mpicoded.arrivals import CLOSED, CONSTANT, POISSON
from mpicoded.faults import KINDS
from mpicoded.jobfile import Key

if TYPE_CHECKING:
    from mpicoded.job import CodeSpec, FaultSpec, InputSpec, Job, PlanSpec, TrainSpec

WITHOUT_PARITY = ("uncoded", "zerofill")
OVER_SEGMENTS = ("learned",)  # run the whole of a segment by themselves
DECIDED = ("split", "stages", "tiles", "weights", "linear", "exchange", "lost_halo")  # by a planner
NO_CLUSTER = (
    "is missing; {} needs a measured cluster: make its file with "
    "`mpirun … python -m mpicoded profile JOB --out cluster.toml`"
)
Conflicts = Iterator[tuple[str, str]]  # a key and what is wrong with it


def conflicts(job: Job, training: bool) -> Iterator[tuple[Key, str]]:
    """Yield (key, what is wrong) for all that two keys say against each other."""
    if training and job.train is None:
        yield ("train",), 'is missing; it says what to train: kind = "base" or "code", and out'
    sections = {
        "plan": (
            *_planner(job.plan, job.code),
            *_plan(job.plan, job.code),
            *_exchange(job.plan, job.code),
        ),
        "input": _input(job.input, job.plan, job.code),
        "code": _code(job.code, training and job.train is not None and job.train.kind == "code"),
        "train": () if job.train is None else _train(job.train, job.plan),
        "gather": job.gather.conflicts(),
        "runtime": _runtime(job),
    }
    for section, found in sections.items():
        yield from (((section, key), why) for key, why in found)
    for number, fault in enumerate(job.faults):
        yield from ((("faults", number, key), why) for key, why in _fault(fault))


def _planner(plan: PlanSpec, code: CodeSpec) -> Conflicts:
    name = plan.planner
    if name is None:
        if plan.objective != "latency":
            yield "objective", f'= "{plan.objective}" is of a planner: set planner = "auto" too'
        if plan.switch is not None:
            yield "switch", f'= "{plan.switch}" needs planner, that of the first plan: name it too'
        if plan.latency_limit is not None:
            yield "latency_limit", f'= {plan.latency_limit:g} is of planner = "pico": set that too'
        return
    for key, field in type(plan).model_fields.items():
        if key in DECIDED and getattr(plan, key) != field.default:
            yield key, f'is what planner = "{name}" decides: leave one of them out'
    if plan.cluster is None:
        yield "cluster", NO_CLUSTER.format(f'planner = "{name}"')
    if plan.switch is not None and (plan.replan or plan.fallback):
        key = "replan" if plan.replan else "fallback"
        yield key, f'changes plans for slow ranks, and switch = "{plan.switch}": leave one out'
    if plan.switch is not None and code.name != "uncoded":
        yield "switch", f'is of plans without a code, and here is "{code.name}": leave one out'
    its = "coedge" if plan.objective == "energy" else "auto"
    if plan.objective != "latency" and name != its:
        yield "objective", f'is of planner = "{its}", and planner = "{name}": leave it out'
    limited = plan.objective == "energy" or {name, plan.switch} & {"pico", "auto"}
    if plan.latency_limit is not None and not limited:
        yield "latency_limit", 'is of planner = "pico" or objective = "energy": set one of them'
    if code.k > 1:
        yield "planner", f'= "{name}" decides k, and k = {code.k} in [code]: leave one of them out'
    if code.r:
        yield (
            "planner",
            f'= "{name}" makes plans of data units alone, and r = {code.r} in [code]: set r = 0 '
            'and name = "uncoded", or leave planner out (stages = "auto" takes parity units)',
        )


def _plan(plan: PlanSpec, code: CodeSpec) -> Conflicts:
    if plan.stages == "auto" and plan.split == "batch":
        yield "stages", '"auto" cuts maps; split = "batch" has one stage: leave it out'
    elif plan.stages == "auto" and plan.cluster is None:
        yield "cluster", NO_CLUSTER.format('stages = "auto"')
    if (plan.tiles is not None) != (plan.split == "tiles"):
        yield "tiles", 'goes with split = "tiles" and only with it: tiles = [down, across]'
    if plan.tiles and (product := plan.tiles[0] * plan.tiles[1]) != code.k:
        yield "tiles", f"{list(plan.tiles)} makes {product} tiles and k = {code.k} in [code]"
    if plan.weights and len(plan.weights) != code.k:
        yield "weights", f"has {len(plan.weights)} shares and k = {code.k} in [code]"
    if plan.replan is not None and plan.cluster is None:
        yield (
            "cluster",
            f"is missing; replan = {plan.replan:g} needs the speeds that ranks began with: make "
            "its file with `mpirun … python -m mpicoded profile JOB --out cluster.toml`",
        )
    if plan.replan is not None and (code.r or plan.exchange != "leader"):
        why = f"r = {code.r} in [code]" if code.r else f'exchange = "{plan.exchange}"'
        yield "replan", f"is of gathered stages without a code, and here is {why}: leave it out"
    if plan.linear and plan.split == "batch":
        yield "linear", 'cuts a network, and split = "batch" runs it whole: leave it out'
    if plan.linear and plan.weights and plan.split != "channels":
        yield "weights", "make shards of many sizes, and linear = true is of one size"


def _exchange(plan: PlanSpec, code: CodeSpec) -> Conflicts:
    if plan.lost_halo == "restart" and (plan.exchange == "leader" or not code.r):
        yield (
            "lost_halo",
            'is of exchange = "neighbours" with a code (r >= 1): leave it out',
        )
    if plan.exchange == "leader":
        return
    if plan.split in ("batch", "channels"):
        yield (
            "exchange",
            f'"neighbours" is of strips and tiles, which have halos, and split = "{plan.split}" '
            'has none: set split = "height", or leave exchange out',
        )
    if plan.linear:
        yield (
            "exchange",
            '"neighbours" keeps maps from the leader, and with linear = true it runs what lies '
            "between two stages: leave one of them out",
        )
    if code.r and code.name not in OVER_SEGMENTS:
        yield (
            "exchange",
            f'"neighbours" keeps maps from the leader, and "{code.name}" needs them after every '
            f"stage: set name = {' or '.join(OVER_SEGMENTS)}, r = 0, or leave exchange out",
        )


def _input(given: InputSpec, plan: PlanSpec, code: CodeSpec) -> Conflicts:
    if plan.split == "batch" and given.batch % code.k:
        yield (
            "batch",
            f"{given.batch} images cannot be dealt out to k = {code.k} units; set a multiple of k",
        )
    mean, std = len(given.mean), len(given.std)
    if mean != std and 1 not in (mean, std):
        yield "std", f"has {std} values and mean has {mean}; give one a channel each"
    for key, values in (("mean", given.mean), ("std", given.std)):
        if wrong := [value for value in values if not 0 <= value <= 1]:
            yield (
                key,
                f"has {wrong[0]:g}, and is of pixels from 0 to 1, not 0 to 255: divide by 255",
            )
    drawn = given.arrivals in (POISSON, CONSTANT)
    if drawn and given.rate is None:
        yield "rate", f'is missing; arrivals = "{given.arrivals}" needs it, in queries a second'
    if given.rate is not None and not drawn:
        yield (
            "rate",
            f'= {given.rate:g} is of arrivals = "poisson" or "constant", and arrivals = '
            f'"{given.arrivals}": leave one of them out',
        )


def _code(code: CodeSpec, training: bool) -> Conflicts:
    if code.name in WITHOUT_PARITY and code.r:
        yield "r", f"is {code.r}, but {code.name} means r = 0; name another code or set r = 0"
    if code.name not in WITHOUT_PARITY and not code.r:
        yield "r", 'is 0, which is no redundancy; set r, or name = "uncoded"'
    if training and not code.r:
        yield "r", 'r = 0 leaves nothing to train; set r, and name = "learned"'
    if code.quality and not code.quality.endswith(".json"):
        yield "quality", f"{code.quality!r} is no quality table: let it end in .json"
    if code.quality and code.weights:
        yield (
            "quality",
            f'goes with no weights, and weights = "{code.weights}": what the code is worth is in '
            "that file; leave it out",
        )
    if code.untrained and code.weights:
        yield (
            "untrained",
            f'goes with no weights, and weights = "{code.weights}"; leave one of them out',
        )


def _train(train: TrainSpec, plan: PlanSpec) -> Conflicts:
    base = train.kind == "base"
    if base and train.loss != "mixture":
        yield "loss", f'"{train.loss}" is for kind = "code"; a base model has its own: leave it out'
    if base and train.start is not None:
        yield (
            "start",
            'is for kind = "code"; name a base model\'s weights in [model] and leave it out',
        )
    if train.alone and (base or plan.split == "batch"):
        yield "alone", "is for a code of shards: leave it out"
    if not train.out.endswith(".safetensors"):
        yield "out", f"{train.out!r} is no weights file: let it end in .safetensors"


def _runtime(job: Job) -> Conflicts:
    if job.runtime.queue is not None and job.input.arrivals == CLOSED:
        yield (
            "queue",
            f'= {job.runtime.queue} is of an open loop, and arrivals = "closed" in [input]: leave '
            'it out, or set arrivals = "poisson"',
        )


def _fault(fault: FaultSpec) -> Conflicts:
    keys = KINDS[fault.kind].keys | {"start"}
    for key in sorted(fault.model_fields_set - keys - {"kind"}):
        allowed = ", ".join(sorted(keys))
        yield key, f'does not belong to kind = "{fault.kind}", which has {allowed}'
    if fault.start >= fault.stop:
        yield "start", f"{fault.start} is not before stop = {fault.stop}"
    if fault.seconds and "stop" in fault.model_fields_set and KINDS[fault.kind].by_lab:
        yield (
            "seconds",
            f"= {fault.seconds:g} and stop = {fault.stop:g} both say when it ends; give one",
        )
