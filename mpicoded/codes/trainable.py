"""What codes with trained weights have in common: their networks, and files that fit or do not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from mpicoded.codes.code import Arrived, Code
from mpicoded.errors import DataError

WAY_OUT = (
    ". Name weights trained for this plan in [code] (a base model's belong in [model]), or train "
    "them: python -m mpicoded train JOB"
)


class Trainable(Code):
    """A code whose ``networks`` are trained: encoder, decoder, parity models, as it has them.

    Training puts gradients through :meth:`Code.parity`, the programs of :meth:`Code.worker_model`
    and :meth:`reconstruct`; whatever stands in ``networks`` learns.
    """

    networks: nn.ModuleDict

    @abstractmethod
    def reconstruct(self, y: Tensor, arrived: Tensor) -> Tensor:
        """Unit outputs (n, B, …), zero where missing, and ``arrived`` (B, n) or (1, n), 1 where a unit
        arrived and 0 where not -> data outputs (k, B, …). Differentiable; :meth:`Code.fill` for a
        batch in which every query has a pattern of its own.
        """  # fmt: skip

    def prepare(self, x: Tensor) -> None:
        """Look at some of the training images, (B, C, H, W), before training begins."""

    def fillable(self, arrived: Arrived) -> bool:
        """Any unit will do: a network that is told what is arrived fills in the rest."""
        return bool(arrived.any())

    @abstractmethod
    def signature(self) -> dict[str, str]:
        """Return all that weights of this code must agree in with the job: code, k, r, shapes."""

    def metadata(self, base: str) -> dict[str, str]:
        """Return what a weights file has to say of itself; ``base`` names the base model."""
        return self.signature() | {"base": base}

    def load(self, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Take trained weights.

        Raises
        ------
        DataError
            If they belong to another code, stage or model, or are damaged.
        """
        try:
            _check(metadata, self.signature())
            self._take(weights)
        except DataError as error:
            raise DataError(f"{error}{WAY_OUT}") from None
        self.networks.eval().requires_grad_(False)

    def begin(self, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Start training from weights of the same code for any plan with networks of these shapes.

        Raises
        ------
        DataError
            If they belong to another code, or the shapes differ.
        """
        _check(metadata, {"code": self.signature()["code"]})
        self._take(weights)

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        """Fill the networks; DataError if a name or a shape differs."""
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


def _check(have: Mapping[str, str], want: Mapping[str, str]) -> None:
    """Compare what the file says of itself with what the job needs."""
    if "code" not in have:
        raise DataError("these are no weights of a code")
    wrong = [
        f"{key} = {have.get(key, 'not said')} where the job needs {value}"
        for key, value in want.items()
        if have.get(key) != value
    ]
    if wrong:
        raise DataError(f"the code's weights do not fit the job: the file has {'; '.join(wrong)}")
