"""What a planner is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from mpicoded.network.graph import Chain


@dataclass(frozen=True)
class Request:
    """A plan for ``chain`` with k data and r parity units.

    ``stages`` names the last block of every stage; empty means one stage to the last block that
    can be cut. ``tiles`` is the grid (rows, columns) of tiles, ``weights`` the k shares of an
    unequal split, ``batch`` the number of images a query. ``first`` is the block that the first
    stage begins with: a part of a plan, for its price.

    ``linear`` is for exact codes, on a chain whose blocks are ``opened``: every block that
    ``stages`` names is a stage by itself (empty: every linear one), all of its shards have one
    size, and the leader runs what lies between.

    ``direct``: the stages are one segment, whose units exchange halos without the leader; empty
    ``stages`` are then single blocks, as far as each unit gets a row or column of their maps.
    """

    chain: Chain
    k: int
    r: int
    stages: tuple[str, ...] = ()
    tiles: tuple[int, int] | None = None
    weights: tuple[float, ...] | None = None
    batch: int = 1
    first: int = 0
    linear: bool = False
    direct: bool = False
