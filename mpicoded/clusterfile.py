"""A cluster file: how fast ranks and links are. Written by ``mpicoded profile``, or by hand.

    medium = "switched"          # or "shared", as WiFi is
    abreast = 2                  # messages that leave the leader at a time

    [[device]]                   # one or more ranks that are alike
    ranks = [0, 1, 2]
    flops = 7.8e9                # FLOP/s of what is cut
    dense = 1.5e9                # FLOP/s of the head
    sends = 5.2e6                # byte/s, to the switch
    receives = 5.2e6
    latency = 1e-3               # s a message
    memory = 4e8                 # bytes for weights, maps and messages, besides Python and torch
    spread = [[0.1, 0.9, 0.95, 0.98, 1.0, 1.05, 1.1, 1.2]]  # of what usually takes 0.1 s: its time
                                                 # over that at 0, 5, 25, 50, 75, 95 and 100 %
    late = [0.0, 0.0, 0.0, 0.0, 1e-3, 5e-3, 0.01]  # s by which messages come late, likewise
    burst = 3e4                  # bytes that pass at once after a pause

All keys are those of :class:`mpicoded.cluster.Device` and :class:`mpicoded.cluster.Link`; what is
left out costs nothing.
"""

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from mpicoded.cluster import Cluster, Device, Link, Rate
from mpicoded.errors import JobError, short
from mpicoded.jobfile import explain, parse, read_text
from mpicoded.section import Section

MOST = 65536  # ranks
Speed = Annotated[float, Field(ge=1e-3)]  # a second; inf: costs nothing
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Bytes = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Spread = Annotated[tuple[Speed, ...], Field(strict=False, min_length=8, max_length=8)]
Spreads = Annotated[tuple[Spread, ...], Field(strict=False, max_length=16)]
Late = Annotated[tuple[Seconds, ...], Field(strict=False, min_length=7, max_length=7)]
Rank = Annotated[int, Field(ge=0, lt=MOST)]
Ranks = Annotated[tuple[Rank, ...], Field(strict=False, min_length=1, max_length=MOST)]
Spec = TypeVar("Spec", bound=Section)


class RateSpec(Section):
    """[device.blocks.NAME]: one block that was measured."""

    speed: Speed
    fixed: Seconds = 0.0


class DeviceSpec(Section):
    """[[device]]: ranks that are alike."""

    ranks: Ranks
    host: str = ""
    flops: Speed
    dense: Speed | None = None
    values: Speed = inf
    pack: Speed = inf
    unpack: Speed = inf
    memory: Speed = inf
    sends: Speed
    receives: Speed
    latency: Seconds = 0.0
    spread: Spreads = ()
    late: Late = ()
    burst: Bytes = 0.0
    watts: Seconds = 0.0
    radio: Seconds = 0.0
    blocks: dict[str, RateSpec] = {}


class ClusterSpec(Section):
    """The whole file."""

    medium: Literal["switched", "shared"] = "switched"
    abreast: Annotated[int, Field(gt=0, le=MOST)] = 2
    device: Annotated[tuple[DeviceSpec, ...], Field(strict=False, min_length=1)]


def read(path: Path) -> Cluster:
    """Read a cluster file; JobError names the file, the key and the allowed values."""
    spec = _load(ClusterSpec, path, "cluster file")
    by_rank = dict(_by_rank(path, spec))
    if missing := [p for p in range(max(2, len(by_rank))) if p not in by_rank]:
        raise JobError(
            f"{path}: ranks {short(missing)} are in no [[device]], which should name "
            f"{len(by_rank)} or more ranks from 0, the leader, without a gap"
        )
    specs = [by_rank[p] for p in range(len(by_rank))]
    return Cluster(
        hosts=tuple(each.host for each in specs),
        devices=tuple(_device(each) for each in specs),
        links=tuple(Link(s.sends, s.receives, s.latency, s.late, s.burst) for s in specs),
        shared=spec.medium == "shared",
        abreast=spec.abreast,
    )


def _by_rank(path: Path, spec: ClusterSpec) -> Iterator[tuple[int, DeviceSpec]]:
    seen = set[int]()
    for each in spec.device:
        for rank in each.ranks:
            if rank in seen:
                raise JobError(
                    f"{path}: rank {rank} is named twice in [[device]] ranks; once, please"
                )
            seen.add(rank)
            yield rank, each


def _device(spec: DeviceSpec) -> Device:
    blocks = {name: Rate(rate.speed, rate.fixed) for name, rate in spec.blocks.items()}
    speeds = spec.flops, spec.dense, spec.values, spec.pack, spec.unpack
    return Device(*speeds, spec.memory, blocks, spec.spread, spec.watts, spec.radio)


def _load(model: type[Spec], path: Path, kind: str) -> Spec:
    try:
        return model.model_validate(parse(path, read_text(path, kind)))
    except ValidationError as error:
        raise JobError(explain(model, error, path)) from None


def write(cluster: Cluster, about: str) -> str:
    """Return a cluster as the text of its file, which begins with ``about`` as a comment."""
    lines = [f"# {line}" for line in about.splitlines()]
    medium = "shared" if cluster.shared else "switched"
    lines += ["", f'medium = "{medium}"', f"abreast = {cluster.abreast}"]
    for rank, (device, link) in enumerate(zip(cluster.devices, cluster.links, strict=True)):
        lines += ["", "[[device]]", f"ranks = [{rank}]", f'host = "{cluster.hosts[rank]}"']
        known = {k: v for k, v in (vars(device) | vars(link)).items() if v not in (None, ())}
        lines += [f"{key} = {_text(known[key])}" for key in known if key != "blocks"]
        for name, rate in device.blocks.items():
            lines.append(
                f'blocks."{name}" = {{ speed = {rate.speed:.4g}, fixed = {rate.fixed:.3g} }}'
            )
    return "\n".join(lines) + "\n"


def _text(value: float | tuple[Any, ...]) -> str:
    """Spell numbers so that TOML reads floats."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    text = f"{value:.4g}"
    return text if any(c in text for c in ".en") else f"{text}.0"
