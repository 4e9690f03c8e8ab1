"""Summarize a run in numbers, from its results file alone.

Names and formula are those of learning-based coded computation (Kosaian et al.): available accuracy
A_a of own answers, degraded accuracy A_d of reconstructed ones, and overall accuracy
A_o = (1 - f) A_a + f A_d with f the share that was reconstructed. A lost answer counts as wrong,
a refused query as not asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mpicoded.answer import Mode
from mpicoded.classes import NONE, agree, why_none
from mpicoded.results import Loaded
from mpicoded.study.report.load import ANSWERED, Load, load, rate
from mpicoded.study.report.spans import Array, Bools, Events
from mpicoded.trace import Action

SENT = (Action.SEND, Action.RESEND)
CAME = (Action.ARRIVE, Action.LATE, Action.EXTRA)
FATE = (Action.SUSPECT, Action.RETURN, Action.FAIL)


@dataclass(frozen=True)
class Score:
    """Shares (0..1, NaN of nothing) over some images; ``own`` + ``rebuilt`` + lost = ``images``."""

    images: int
    own: int  # images whose answer is the base model's own
    rebuilt: int  # images whose answer is reconstructed
    available: float  # A_a: own answers against the label
    degraded: float  # A_d: reconstructed answers against the label
    recovery: float  # reconstructed answers against the unsplit model's
    overall: float  # A_o: all answers against the label, a lost one is wrong
    unsplit: float  # the unsplit model's answers against the label
    agreement: float  # all answers against the unsplit model's
    expected: float = np.nan  # A_o that a calibration expects of the units that came


@dataclass(frozen=True)
class RankLine:
    """The trace of one worker in numbers; ``compute`` is a median in seconds, NaN of nothing."""

    rank: int
    host: str
    sent: int
    arrived: int
    late: int
    extra: int
    bytes_to: int
    bytes_from: int
    compute: float
    state: str


@dataclass(frozen=True)
class Summary:
    """The numbers of the table: times in seconds, ``size`` in bytes.

    ``held_out`` is None where the file does not tell held-out images from others. ``difference`` is
    the largest one from the unsplit model, relative to its largest output, of own and of
    reconstructed answers: for outputs that are no class scores, and ``why_no_classes`` says why
    they are none where there are labels. ``not_finite`` are images with an answer that is NaN or
    infinite, and those of the unsplit model.
    """

    file: str
    size: int
    about: str
    finished: bool
    queries: int
    available: int
    degraded: int
    lost: int
    refused: int
    pending: int
    labels: bool
    base: bool
    all: Score | None
    held_out: Score | None
    not_finite: tuple[int, int]
    why_no_classes: str
    difference: tuple[float, float]
    latency: tuple[float, float, float]  # p50, p95, p99
    own: float  # median
    rate: float  # queries a second
    load: Load | None  # of an open loop
    ranks: tuple[RankLine, ...]
    turns: tuple[str, ...] = ()  # from when on queries went which way, unsplit or by a plan


def summary(loaded: Loaded) -> Summary:
    """Return the numbers of a results file."""
    mode = loaded.queries["mode"]
    counts = np.bincount(mode, minlength=len(Mode)).tolist()
    done = np.isin(mode, ANSWERED)
    p50, p95, p99 = _quantiles(loaded.queries["latency"][done], 50, 95, 99)
    (own,) = _quantiles(loaded.queries["own"][done], 50)
    labels = "label" in loaded.labels
    classless = labels and not loaded.layout.scores
    return Summary(
        file=str(loaded.path),
        size=loaded.size,
        about=_about(loaded),
        finished=loaded.finished,
        queries=len(mode),
        available=counts[Mode.AVAILABLE],
        degraded=counts[Mode.DEGRADED],
        lost=counts[Mode.LOST],
        refused=counts[Mode.REFUSED],
        pending=counts[Mode.PENDING],
        labels=labels,
        base=_has_base(loaded),
        all=_score(loaded, np.ones_like(loaded.predictions["mode"], bool)),
        held_out=_held_out(loaded),
        not_finite=_not_finite(loaded),
        why_no_classes=why_none(loaded.layout.outputs, loaded.labels["label"]) if classless else "",
        difference=_differences(loaded),
        latency=(p50, p95, p99),
        own=own,
        rate=rate(loaded, done, done),
        load=load(loaded),
        ranks=tuple(_rank(loaded, rank) for rank in range(1, loaded.cluster["host"].shape[1])),
        turns=tuple(_turns(loaded)),
    )


def _about(loaded: Loaded) -> str:
    """Name the MPI library, ranks and hosts in a few words."""
    attrs = loaded.attrs
    library = " ".join(str(attrs["mpi_library"]).partition("\n")[0].partition(",")[0].split())
    hosts = [str(host) for host in loaded.cluster["host"][-1] if host]
    where = hosts[0] if len(set(hosts)) == 1 else f"{len(set(hosts))} hosts"
    ranks = "1 rank" if len(hosts) == 1 else f"{len(hosts)} ranks"
    clock = "" if attrs["clock"] == "wall" else f"{attrs['clock']} clock, "
    starts = "" if loaded.layout.starts == 1 else f", resumed {loaded.layout.starts - 1}x"
    return f"{clock}{ranks} on {where}, {library}, seed {attrs['seed']}{starts}"


def _has_base(loaded: Loaded) -> bool:
    finite = loaded.predictions.get("base_finite")
    return finite is not None and (loaded.finished or bool(finite.any()))


def _not_finite(loaded: Loaded) -> tuple[int, int]:
    """Count images with an answer, and with one of the unsplit model, that is not all numbers."""
    there = np.isin(loaded.predictions["mode"], ANSWERED)
    base = loaded.predictions.get("base_finite")
    others = 0  # unless it was run for all, what is not finite may not be there yet
    if loaded.finished and base is not None:
        others = int((there & ~base).sum())
    return int((there & ~loaded.predictions["finite"]).sum()), others


def _held_out(loaded: Loaded) -> Score | None:
    """Score the held-out images, if these are some but not all."""
    held_out = loaded.labels.get("held_out")
    if held_out is None or not held_out.any():
        return None
    there = loaded.labels["label"] >= 0
    return None if held_out[there].all() else _score(loaded, held_out.astype(bool))


def _score(loaded: Loaded, chosen: Bools) -> Score | None:
    """Return shares over the ``chosen`` images (queries, batch) that have been served."""
    if not loaded.layout.scores:
        return None
    mode, answer = loaded.predictions["mode"], loaded.predictions["class"]
    unknown = np.full_like(answer, NONE)
    label = loaded.labels.get("label", unknown)
    base = loaded.predictions.get("base_class", unknown)
    served = chosen & ~np.isin(mode, (Mode.PENDING, Mode.REFUSED))
    own, rebuilt = served & (mode == Mode.AVAILABLE), served & (mode == Mode.DEGRADED)
    known = base >= 0
    if loaded.finished and _has_base(loaded):  # what has no class then is not finite, and wrong
        known |= served
    either, labelled = known & ((base >= 0) | (answer >= 0)), served & (label >= 0)
    return Score(
        images=int(served.sum()),
        own=int(own.sum()),
        rebuilt=int(rebuilt.sum()),
        available=_share(answer, label, own & labelled),
        degraded=_share(answer, label, rebuilt & labelled),
        recovery=_share(answer, base, rebuilt & either),
        overall=_share(answer, label, labelled),
        unsplit=_share(base, label, labelled & known),
        agreement=_share(answer, base, served & either),
        expected=_expected(loaded, served),
    )


def _expected(loaded: Loaded, served: Bools) -> float:
    """Return the mean expected accuracy of the images, 0 of a lost one; NaN if one is unknown."""
    unknown = np.full(len(served), np.nan, "f4")
    expected = np.asarray(loaded.queries.get("expected", unknown), "f8")[:, None]
    lost = loaded.predictions["mode"] == Mode.LOST
    found = np.where(lost, 0.0, np.broadcast_to(expected, served.shape))[served]
    return float(found.mean()) if found.size else np.nan


def _share(answer: Array, truth: Array, where: Bools) -> float:
    """Return the share of ``answer`` that agrees with ``truth``, NaN of nothing."""
    return float(agree(answer, truth)[where].mean()) if where.any() else np.nan


def _differences(loaded: Loaded) -> tuple[float, float]:
    """Return the largest difference of available and of degraded answers, NaN of none."""
    if loaded.layout.scores or not _has_base(loaded):
        return np.nan, np.nan
    mode, relative = loaded.predictions["mode"], loaded.predictions["apart"]
    own, rebuilt = (relative[(mode == m) & np.isfinite(relative)] for m in ANSWERED)
    return _quantiles(own, 100)[0], _quantiles(rebuilt, 100)[0]


def _quantiles(values: Array, *percent: float) -> list[float]:
    if not values.size:
        return [np.nan] * len(percent)
    return [float(value) for value in np.percentile(values, percent)]


def _rank(loaded: Loaded, rank: int) -> RankLine:
    """Return the line of one worker, from the trace."""
    hosts, events = loaded.cluster["host"][:, rank], loaded.events[loaded.events["rank"] == rank]
    action = events["action"]
    sent, came = np.isin(action, SENT), np.isin(action, CAME)
    compute = events[action == Action.COMPUTE]
    (median,) = _quantiles(compute["stop"] - compute["start"], 50)
    return RankLine(
        rank=rank,
        host=next((str(host) for host in reversed(hosts) if host), ""),  # resumed: maybe not there
        sent=int(sent.sum()),
        arrived=int((action == Action.ARRIVE).sum()),
        late=int((action == Action.LATE).sum()),
        extra=int((action == Action.EXTRA).sum()),
        bytes_to=int(events["bytes"][sent].sum()),
        bytes_from=int(events["bytes"][came].sum()),
        compute=median,
        state=_state(events, loaded.cluster["began"]) if hosts[-1] else "not in the last start",
    )


def _turns(loaded: Loaded) -> Iterator[str]:
    """Yield when queries went another way, and which."""
    ways = {Action.ALONE: "one device, faster than the plan", Action.REPLAN: "the plan, anew"}
    for event in loaded.events[np.isin(loaded.events["action"], list(ways))]:
        yield f"from {event['stop']:.1f} s, query {event['query']} on: {ways[event['action']]}"


def _state(events: Events, began: Array) -> str:
    """Return the state of the rank since the last start."""
    fate = events[np.isin(events["action"], FATE) & (events["stop"] >= began[-1])]
    failed = fate[fate["action"] == Action.FAIL]
    if failed.size:
        return f"failed at {failed['stop'][0]:.1f} s"
    times = int((fate["action"] == Action.SUSPECT).sum())
    if times and fate["action"][-1] == Action.SUSPECT:
        return "suspect"
    return f"alive, suspect {times}x" if times else "alive"
