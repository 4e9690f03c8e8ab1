"""Codes with trained weights: their networks, and files that fit or do not."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from mpicoded.codes.code import Arrived, Code, CodeRequest
from mpicoded.codes.options import spelled
from mpicoded.errors import DataError
from mpicoded.plan import Stage

Tensors = Mapping[str, Tensor]
Words = Mapping[str, str]
WAY_OUT = (
    ". Name weights trained for this plan in [code] (a base model's belong in [model]), or train "
    "them: python -m mpicoded train JOB"
)


class Trainable(Code):
    """A code whose ``networks`` are trained, through parity, worker_model and reconstruct."""

    networks: nn.ModuleDict
    stage: Stage

    @abstractmethod
    def reconstruct(self, y: Tensor, arrived: Tensor) -> Tensor:
        """Unit outputs (n, B, …), zero where missing -> data outputs (k, B, …), differentiable.

        As :meth:`Code.fill`, but every query of the batch has a pattern of its own: ``arrived``,
        (B, n) or (1, n), is 1 where a unit arrived and 0 where not.
        """

    def prepare(self, x: Tensor) -> None:
        """Look at some of the training images, (B, C, H, W), before training begins."""

    def fillable(self, arrived: Arrived) -> bool:
        """True if any unit arrived: networks fill in the rest."""
        return bool(arrived.any())

    def signature(self) -> dict[str, str]:
        """Return all that weights of this code must agree in with the job: code, r, shapes, …."""
        return {
            "code": self.name,
            "r": str(self.r),
            "input": spelled(self.stage.input_shape),
            "output": spelled(self.stage.output_shape),
        }

    def metadata(self, base: str) -> dict[str, str]:
        """Return the metadata of a weights file; ``base`` names the base model."""
        return self.signature() | {"base": base}

    def load(self, weights: Tensors, metadata: Words) -> None:
        """Take trained weights; DataError if damaged, or of another code, stage or model."""
        try:
            self._take(weights, metadata, self.signature())
        except DataError as error:
            raise DataError(f"{error}{WAY_OUT}") from None
        self.networks.eval().requires_grad_(False)

    def begin(self, weights: Tensors, metadata: Words) -> None:
        """Start from weights of any plan; DataError if of another code or other shapes."""
        self._take(weights, metadata, {"code": self.name})

    def _take(self, weights: Tensors, have: Words, want: Words) -> None:
        """Fill the networks; DataError if the metadata, a name or a shape differs."""
        if "code" not in have:
            raise DataError("these are no weights of a code")
        wrong = [
            f"{key} = {have.get(key, 'not said')} where the job needs {value}"
            for key, value in want.items()
            if have.get(key) != value
        ]
        if wrong:
            raise DataError(f"the code's weights do not fit the job: it has {'; '.join(wrong)}")
        own = self.networks.state_dict()
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        wrong = [
            f"{key} {shapes.get(key, 'missing')} where the code has {tuple(value.shape)}"
            for key, value in own.items()
            if shapes.get(key) != tuple(value.shape)
        ] + [f"{key} {shape}, unknown" for key, shape in shapes.items() if key not in own]
        if wrong:
            raise DataError(
                f"the code's weights file is damaged or of other networks, it holds "
                f"{'; '.join(wrong[:3])}{' …' * (len(wrong) > 3)}"
            )
        self.networks.load_state_dict(dict(weights))


T = TypeVar("T", bound=Trainable)


def trained(request: CodeRequest, make: Callable[[], T]) -> T:
    """Return a code with the request's weights or, without any, with first ones from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        code = make()
    if request.weights is not None:
        code.load(request.weights, request.metadata)
    return code
