"""The learned code as published: neural encoder and decoder around copies of the base model.

J. Kosaian, K. V. Rashmi, S. Venkataraman, "Learning a code: machine learning for approximate
non-linear coded computation", arXiv 1806.01259, 2018; IEEE JSAIT 1(1):227-236, 2020; layer by layer
in the reference "Learned and approximate codes". Here for any r, and for shards too, whose output
is flattened (as the coders of Wang et al., ICDCSW 2024).

    mlp     per channel: k d -> k d, ReLU, -> r d                          d: pixels of a channel
    conv    per channel: seven convolutions k -> 20 k … -> r, dilated, size-preserving
    decoder n d -> n d, ReLU, -> k d, ReLU, -> k d                         d: numbers of an output
"""

from math import prod

from torch import Tensor, nn

from mpicoded.codes.code import CodeRequest
from mpicoded.codes.options import Value, choice, needs_parity, read, spelled
from mpicoded.codes.parity_models import first_weights
from mpicoded.codes.trainable import Trainable, trained
from mpicoded.errors import PlanError
from mpicoded.plan import Stage

DEFAULTS: dict[str, Value] = {"encoder": "mlp"}  # or conv
DILATIONS = (1, 1, 2, 4, 8, 1)  # of the 3x3 convolutions; together they see 35 x 35 pixels
WIDTH = 20  # channels a unit
MOST = 2**28  # numbers in a decoder: 1 GiB


def mlp_encoder(k: int, r: int, height: int, width: int) -> nn.Sequential:
    """Return the network (B, k, H, W) -> (B, r, H, W) of dense layers."""
    data, parity = k * height * width, r * height * width
    return nn.Sequential(
        nn.Flatten(), nn.Linear(data, data), nn.ReLU(), nn.Linear(data, parity),
        nn.Unflatten(1, (r, height, width)),
    )  # fmt: skip


def conv_encoder(k: int, r: int) -> nn.Sequential:
    """Return the network (B, k, H, W) -> (B, r, H, W) of convolutions; the units are channels."""
    layers: list[nn.Module] = []
    channels = k
    for dilation in DILATIONS:
        conv = nn.Conv2d(channels, WIDTH * k, 3, padding=dilation, dilation=dilation)
        layers += [conv, nn.ReLU()]
        channels = WIDTH * k
    return nn.Sequential(*layers, nn.Conv2d(channels, r, 1))


class Kosaian(Trainable):
    """Approximate: any r losses, by a decoder that knows what is missing only by its zeros."""

    name = "kosaian"

    def __init__(self, k: int, r: int, stage: Stage, encoder: str) -> None:
        super().__init__(k, r)
        self.stage, self.options = stage, {"encoder": encoder}
        rows, cols = (axis.size for axis in stage.windows[0])
        self.encoder = conv_encoder(k, r) if encoder == "conv" else mlp_encoder(k, r, rows, cols)
        every, data = (units * output_size(stage) for units in (self.n, k))
        self.decoder = nn.Sequential(
            nn.Linear(every, every), nn.ReLU(), nn.Linear(every, data), nn.ReLU(),
            nn.Linear(data, data),
        )  # fmt: skip
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.networks.apply(first_weights)

    def parity(self, x: Tensor) -> Tensor:
        """Units (k, B, C, H, W) -> parity units (r, B, C, H, W)."""
        _, batch, channels, height, width = x.shape
        y: Tensor = self.encoder(x.permute(1, 2, 0, 3, 4).flatten(0, 1))  # (B C, r, H, W)
        return y.reshape(batch, channels, self.r, height, width).permute(2, 0, 1, 3, 4)

    def reconstruct(self, y: Tensor, arrived: Tensor) -> Tensor:
        """Unit outputs (n, B, …), zero where missing -> (k, B, …); ``arrived`` is not looked at."""
        x: Tensor = self.decoder(y.transpose(0, 1).flatten(1))  # (B, k d)
        return x.reshape(len(x), self.k, *y.shape[2:]).transpose(0, 1)

    def signature(self) -> dict[str, str]:
        """Return all that weights of this code must agree in with the job."""
        window = (self.stage.input_shape[0], *(axis.size for axis in self.stage.windows[0]))
        shapes = {"window": spelled(window), "unit_output": str(output_size(self.stage))}
        return {"k": str(self.k)} | super().signature() | shapes | self.options


def build(request: CodeRequest) -> Kosaian:
    """Return the code, trained or fresh; PlanError, DataError if it does not fit the request."""
    k, r, stage = request.k, request.r, request.stage
    options = read("kosaian", request, DEFAULTS)
    choice("kosaian", "encoder", options["encoder"], ("mlp", "conv"))
    needs_parity("kosaian", request)
    if len(stage.input_shape) != 3:
        raise PlanError(
            f'the code "kosaian" takes images (C, H, W), and this model {stage.input_shape}'
        )
    size = output_size(stage)
    numbers = ((k + r) * (k + r) + (k + r) * k + k * k) * size * size
    if numbers > MOST:
        raise PlanError(
            f'the decoder of the code "kosaian" would have {numbers:,} weights, as a unit gives '
            f"{size} numbers, and {MOST:,} is the most: end the stage later, where the map is "
            'smaller, or use code "learned"'
        )
    return trained(request, lambda: Kosaian(k, r, stage, options["encoder"]))


def output_size(stage: Stage) -> int:
    """Numbers in a unit's output for one image."""
    return prod(stage.unit_shape)
