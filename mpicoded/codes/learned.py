"""The learned code for shards: parity units see the whole map, and only holes are filled.

The learning-based coded computation of Kosaian et al. (arXiv 1806.01259; IEEE JSAIT 1(1), 2020) and
their parity models (SOSP 2019), for units that are pieces of one map (as Wang et al., ICDCSW 2024):
an encoder makes r views of the map as large as a window, parity workers run a small network each
on a view, by default of half the cost of a data unit (:mod:`.learned_parity`), and a decoder fills
holes from what is around them and parity (:mod:`.learned_decoder`).
"""

from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor, nn

from mpicoded.codes.code import Arrived, CodeRequest
from mpicoded.codes.learned_decoder import Decoder
from mpicoded.codes.learned_parity import Encoder, ParityNet, View
from mpicoded.codes.options import Value, needs_parity, read, spelled
from mpicoded.codes.parity_models import Design
from mpicoded.codes.trainable import Trainable, trained
from mpicoded.errors import PlanError
from mpicoded.network.graph import Head, trace, whole_network
from mpicoded.network.program import Program
from mpicoded.plan import Stage

WIDEST = 256  # of convolutions whose width nobody says
DEFAULTS: dict[str, Value] = {
    "patch": 0,  # rows and columns of the encoder's patches; 0: as the stage shrinks; 1 with widths
    "fine": (),  # widths of a parity network's convolutions before its pool; (): none, no pool
    "coarse": (),  # and behind it; (): two, as wide as half of the smallest data unit allows
    "widths": (),  # instead of both: those of a small ResNet, which halves its map where they rise
    "hidden": (24, 32),  # channels of the decoder's hidden layers
}


class Learned(Trainable):
    """Approximate: r parity units that help a decoder to fill in any lost ones."""

    name = "learned"
    over_segments = True

    def __init__(self, k: int, r: int, stage: Stage, options: dict[str, Any]) -> None:
        super().__init__(k, r)
        self.stage, self.options = stage, options
        view = View.of(stage, options["patch"])
        self.encoder = Encoder(stage, view, r)
        design = Design(options["widths"]) if options["widths"] else None
        shape = (stage, view, options["fine"], options["coarse"], design)
        self.nets = [ParityNet(*shape) for _ in range(r)]
        self.decoder = Decoder(stage, r, options["hidden"])
        self.networks = nn.ModuleDict(
            {"encoder": self.encoder, "parity": nn.ModuleList(self.nets), "decoder": self.decoder}
        )
        self.chains = [trace(net, tuple(view.window)) for net in self.nets]

    def worker_model(self, unit: int, base: Program | Head) -> Program | Head:
        """Return the parity network of ``unit``."""
        return whole_network(self.chains[unit - self.k])

    def unit_flops(self, unit: int) -> int | None:
        """Return the FLOPs of the parity network of ``unit`` for an image."""
        return self.nets[unit - self.k].flops

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, B, C, h, w), zero where missing -> (k, B, C, h, w)."""
        return self.decoder.holes(y, arrived)

    def reconstruct(self, y: Tensor, arrived: Tensor) -> Tensor:
        """Unit outputs (n, B, C, h, w) -> data outputs (k, B, C, h, w)."""
        x: Tensor = self.decoder(y, arrived)
        return x

    def signature(self) -> dict[str, str]:
        """Return all that weights must agree in: the largest unit's size, but neither cut nor k."""
        window = (self.stage.input_shape[0], *(axis.size for axis in self.stage.windows[0]))
        output = (self.stage.output_shape[0], *self.stage.unit_output)
        shapes = {"window": spelled(window), "unit_output": spelled(output)}
        options = {k: spelled(v) for k, v in self.options.items() if v or k != "widths"}
        return super().signature() | shapes | options  # older files know of no widths


def build(request: CodeRequest) -> Learned:
    """Return the code, trained or fresh; PlanError, DataError if it does not fit the request."""
    stage = request.stage
    if not stage.spatial:
        what = "images" if stage.split == "batch" else "groups of channels"
        raise PlanError(
            f"the learned code works on shards of one image, and the units of this plan are {what}:"
            ' use split = "width", "height" or "tiles", or the code "replication"'
        )
    needs_parity("learned", request)
    options = _options(request)
    return trained(request, lambda: Learned(request.k, request.r, stage, options))


def owned(stage: Stage) -> Tensor:
    """Return 1 where a data unit's common-shape output is its own, (k, 1, 1, h, w), else 0."""
    mask = torch.zeros(len(stage.shards), 1, 1, *stage.unit_output)
    for i, shard in enumerate(stage.shards):
        mask[i, :, :, : shard.writes.rows.size, : shard.writes.cols.size] = 1
    return mask


def _options(request: CodeRequest) -> dict[str, Any]:
    """Return all options; those not given fit the stage."""
    stage, options, args = request.stage, read("learned", request, DEFAULTS), request.args
    if options["patch"] < 0 or not options["hidden"]:
        raise PlanError(
            f"[code] args.patch = {options['patch']}, args.hidden = {list(options['hidden'])}: "
            "give a patch of 1 or more rows and columns (0: what fits) and at least one hidden "
            "layer"
        )
    two_sizes = args.get("fine") or args.get("coarse")
    if args.get("widths") and two_sizes:
        raise PlanError(
            f"[code] args.widths = {list(args['widths'])} stand in the place of args.fine and "
            "args.coarse: name the one or the others"
        )
    if args.get("widths"):  # where the file has the others, load() tells
        options |= {"fine": (), "coarse": ()}
    elif two_sizes:
        options["widths"] = ()
    if options["widths"]:
        options["patch"] = options["patch"] or 1
    elif not options["patch"]:
        sides = zip(stage.input_shape[1:], stage.output_shape[1:], strict=True)
        shrinks = min(given // made for given, made in sides)
        options["patch"] = 1 << max(0, shrinks.bit_length() - 1 - bool(options["fine"]))
    options["patch"] = View.of(stage, options["patch"]).patch
    if options["widths"]:
        _check_widths(stage, options)
    else:
        options["coarse"] = options["coarse"] or _widest(stage, options)
    return options


def _check_widths(stage: Stage, options: dict[str, Any]) -> None:
    """Raise PlanError if the map stays so large that its middle, which is used, misses much."""
    rows, cols = Design(options["widths"]).map(View.of(stage, options["patch"]).size)[1:]
    height, width = stage.output_shape[1:]
    if rows >= 2 * height or cols >= 2 * width:
        raise PlanError(
            f"[code] args.widths = {list(options['widths'])} end with a map of {rows} x {cols} and "
            f"the stage's has {height} x {width}, so its borders would not be seen: let the widths "
            "rise once more (each rise halves the map), or double args.patch"
        )


def _widest(stage: Stage, options: dict[str, Any]) -> tuple[int, ...]:
    """Return two layers so wide that a parity unit costs half of the smallest data unit.

    Parity leaves the leader last: with as much work as a data unit it would come last too, and a
    loss would cost that time; larger networks fill in little better (docs/codes.md). The layers
    have at least one channel, even if that costs more.
    """
    view, most = View.of(stage, options["patch"]), min(shard.flops for shard in stage.shards) // 2

    def cost(width: int) -> int:
        with torch.device("meta"):
            return ParityNet(stage, view, options["fine"], (width, width)).flops

    width = max(1, bisect_right(range(1, WIDEST + 1), most, key=cost))
    return (width, width)
