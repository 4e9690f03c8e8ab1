"""Parity models: the worker of a parity unit runs a network trained for it, on images.

J. Kosaian, K. V. Rashmi, S. Venkataraman, "Parity models: erasure-coded resilience for prediction
serving systems", SOSP 2019; reference "Learned and approximate codes", sections 3 to 6.

    images     X_1 … X_k      a worker each runs the base model F
    encoder    P_1 … P_r      sums, or a collage, of the k images (:mod:`.encoders`)
    parity     F_P1(P_1) …    trained networks, on a worker each (:mod:`.parity_models`)

Two decoders. As published, `subtraction`: F_Pj is trained to give sum_i c_ji F(X_i), and the
missing F(X_i) solve as many of these equations as there are parities. Our own, `positions`: a
parity network gives the logits of every image by itself; several parities are averaged.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpicoded.codes.code import Arrived, CodeRequest
from mpicoded.codes.encoders import ENCODERS, ImageEncoder, Packing, weights
from mpicoded.codes.options import Value, choice, needs_parity, read, spelled
from mpicoded.codes.parity_models import Copy, Design, Student, Students, widest
from mpicoded.codes.trainable import Trainable, trained
from mpicoded.errors import PlanError
from mpicoded.network.graph import Chain, Head
from mpicoded.network.program import Program
from mpicoded.plan import Stage

DEFAULTS: dict[str, Value] = {
    "encoder": "addition",  # or concatenation, packing
    "decoder": "subtraction",  # or positions
    "network": "base",  # or student
    "widths": (),  # of the student's convolutions; () is what a data unit's cost allows
    "stem": (3, 1),  # kernel and stride of the first one
    "hidden": 0,  # units of a dense layer before the last
}
Options = dict[str, Any]
DECODERS, NETWORKS = ("subtraction", "positions"), ("base", "student")


class Parity(Trainable):
    """Approximate; with subtraction any r losses, with positions any while a parity arrived."""

    name = "parity"

    def __init__(self, request: CodeRequest, encoder: ImageEncoder, options: Options) -> None:
        k, r = request.k, request.r
        super().__init__(k, r)
        self.stage, self.encoder, self.options = request.stage, encoder, options
        self.classes = request.stage.output_shape[0]
        self.positions = options["decoder"] == "positions"
        self.output_factor = k if self.positions else 1
        self.needs_float32 = isinstance(encoder, Packing)
        self.c = weights(k, r).double().numpy()  # (r, k)
        self.models = nn.ModuleList(self._network(request.chain) for _ in range(r))
        self.networks = nn.ModuleDict({"encoder": encoder, "parity": self.models})

    def fillable(self, arrived: Arrived) -> bool:
        """True if there are as many parities as holes; with positions a single one is enough."""
        if self.positions:
            return bool(arrived[: self.k].all() or arrived[self.k :].any())
        return self.decodable(arrived)

    def prepare(self, x: Tensor) -> None:
        """Look at some of the training images, (B, C, H, W)."""
        self.encoder.see(x)

    def parity(self, x: Tensor) -> Tensor:
        """Images (k, B, C, H, W) -> (r, B, C, H, W)."""
        y: Tensor = self.encoder(x)
        return y

    def worker_model(self, unit: int, base: Program | Head) -> Program | Head:
        """Return the parity network of ``unit``."""
        model = self.models[unit - self.k]
        assert isinstance(model, Copy | Student | Students)
        return model.run

    def unit_flops(self, unit: int) -> int | None:
        """Return the FLOPs of a student on all of its passes; a copy costs as much as the base."""
        if unit < self.k or self.options["network"] == "base":
            return None
        shape = self.encoder.view if self.positions else self.stage.input_shape
        return self.output_factor * _design(self.options).flops(shape, self.classes)

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, B, W), zero where missing -> (k, B, W)."""
        filled = self.reconstruct(y, torch.from_numpy(arrived).to(y)[None])  # (k, B, classes)
        return nn.functional.pad(filled, (0, y.shape[2] - self.classes))

    def reconstruct(self, y: Tensor, arrived: Tensor) -> Tensor:
        """Outputs (n, B, W), zero where missing; arrived (B, n) or (1, n) -> (k, B, classes)."""
        if self.positions:
            return self._average(y[self.k :], arrived[:, self.k :])
        patterns, rows = torch.unique(arrived, dim=0, return_inverse=True)
        solve = torch.stack([self._solution(p.cpu().numpy() > 0) for p in patterns]).to(y)
        return torch.einsum("bkn,nbc->kbc", solve[rows].expand(y.shape[1], -1, -1), y)

    def signature(self) -> dict[str, str]:
        """Return all that weights must agree in; packing's networks serve groups of any size."""
        options = {key: spelled(value) for key, value in self.options.items() if value != 0}
        if not self.positions or self.options["encoder"] != "packing":
            options["k"] = str(self.k)
        return super().signature() | options

    def _network(self, chain: Chain | None) -> nn.Module:
        if self.options["network"] == "base":
            if self.positions:
                raise PlanError(
                    'args.decoder = "positions" of the code "parity" looks at one image after the '
                    'other, k of them for the cost of one: set args.network = "student"'
                )
            if chain is None:
                raise PlanError('the code "parity" needs the base model: give it, as chain')
            return Copy(chain)
        if not self.positions:
            return Student(self.stage.input_shape, self.classes, _design(self.options))
        if not self.encoder.parts:
            raise PlanError(
                'args.decoder = "positions" of the code "parity" needs images that can be told '
                f"apart in the parity image, and {self.options['encoder']} mixes them: set "
                'args.encoder = "packing" or "concatenation"'
            )
        own = Student(self.encoder.view, self.classes, _design(self.options))
        return Students(own, self.encoder)

    def _average(self, p: Tensor, arrived: Tensor) -> Tensor:
        """Parity outputs (r, B, k classes), arrived (B, r) -> (k, B, classes)."""
        if p.shape[2] < self.k * self.classes:  # no parity has come
            return p.new_zeros(self.k, p.shape[1], self.classes)
        mean = p.sum(0) / arrived.sum(1).clamp(min=1)[:, None]  # (B, k classes)
        return mean.reshape(len(mean), self.k, self.classes).transpose(0, 1)

    def _solution(self, arrived: Arrived) -> Tensor:
        """Return R (k, n), which makes missing outputs of all others: the smallest that fits.

        sum_{i missing} c_ji R(X_i) = F_Pj(P_j) - sum_{i arrived} c_ji F(X_i), for every parity j
        that arrived; what arrived stays as it is.
        """
        k, solve = self.k, np.zeros((self.k, self.n))
        data, parities = arrived[:k], np.flatnonzero(arrived[k:])
        solve[data, np.flatnonzero(data)] = 1
        missing = np.flatnonzero(~data)
        if len(missing) and len(parities):
            right = np.zeros((len(parities), self.n))
            right[np.arange(len(parities)), k + parities] = 1
            right[:, :k] -= self.c[parities] * data
            solve[missing] = np.linalg.pinv(self.c[np.ix_(parities, missing)]) @ right
        return torch.from_numpy(solve)


def build(request: CodeRequest) -> Parity:
    """Return the code, trained or fresh; PlanError, DataError if it does not fit the request."""
    stage = request.stage
    _check(request)
    options = read("parity", request, DEFAULTS)
    for key, known in (("encoder", ENCODERS), ("decoder", DECODERS), ("network", NETWORKS)):
        choice("parity", key, options[key], tuple(known))
    encoder = ENCODERS[options["encoder"]](request.k, request.r, stage.input_shape)
    stem = options["stem"]
    if len(stem) != 2 or stem[0] % 2 == 0:
        raise PlanError(f"[code] args.stem = {list(stem)}: give an odd kernel and a stride, [3, 1]")
    if options["network"] == "student":
        options["widths"] = _checked(_design(options), stage, encoder, options["decoder"]).widths
    return trained(request, lambda: Parity(request, encoder, options))


def _check(request: CodeRequest) -> None:
    if request.stage.split != "batch":
        raise PlanError(
            "a parity model works on whole images, and the units of this plan are shards: set "
            'split = "batch" in [plan], or name another code'
        )
    needs_parity("parity", request)
    if len(request.stage.input_shape) != 3 or len(request.stage.output_shape) != 1:
        raise PlanError(
            f"a parity model classifies images (C, H, W), and this model makes "
            f"{request.stage.output_shape} of {request.stage.input_shape}: name another code"
        )


def _design(options: Options) -> Design:
    return Design(options["widths"], options["stem"], options["hidden"])


def _checked(design: Design, stage: Stage, encoder: ImageEncoder, decoder: str) -> Design:
    """Return the student's design, whose passes together cost at most a data unit."""
    passes = encoder.k if decoder == "positions" else 1
    shape = encoder.view if decoder == "positions" else stage.input_shape
    limit, classes = stage.shards[0].flops, stage.output_shape[0]
    if not design.widths:
        design = widest(shape, classes, design, limit // passes)
    cost = passes * design.flops(shape, classes)
    if cost > limit:
        raise PlanError(
            f"a parity unit with args.widths = {list(design.widths)} costs {cost / 1e6:.2f} MFLOP "
            f"an image and a data unit {limit / 1e6:.2f}: lower the widths"
        )
    return design
