"""Some queries under every erasure pattern: their units are computed once, and filled in anew."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.classes import classes
from mpicoded.codes import Arrived
from mpicoded.geometry import Range
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS
from mpicoded.study.schemes import Scheme


class ForwardCache:
    """Outputs of all units of the first segment for whole queries, images (B, C, H, W).

    Every unit runs the very program that a worker runs. Of several segments the same units are
    missing in each. ``first`` are the outputs of the first one, if they are known; a single
    output ``above`` it means class 1.
    """

    def __init__(
        self,
        deployment: Deployment,
        x: Tensor,
        first: Tensor | None = None,
        above: float | None = None,
    ) -> None:
        self.deployment, self.above = deployment, above
        self.before = deployment.prologue(0, x)
        segment = deployment.plan.segments[0]
        self.first = self._outputs(segment, self.before) if first is None else first
        self._known: dict[tuple[object, bytes], npt.NDArray[np.int64]] = {}

    @property
    def data(self) -> Tensor:
        """Outputs of the data units (k, B, C, h, w) of the first segment."""
        stage, data = self.deployment.plan.stages[0], self.first[: self.deployment.plan.k]
        if stage.split != "batch":
            return data
        return torch.stack([SPLITS["batch"].trim(y, stage, 0) for y in data])

    def predict(self, scheme: Scheme, arrived: Arrived) -> npt.NDArray[np.int64]:
        """Predict classes (outputs, queries) when of every stage only ``arrived`` came."""
        arrived = scheme.effective(arrived)
        key = (scheme.fill, arrived.tobytes())
        if key not in self._known:
            *_, (_, _, result) = self._stages(arrived, scheme)
            head = self.deployment.ready_head
            logits: Tensor = result if head is None else head(result)
            self._known[key] = scheme.by_query(classes(logits, self.above))
        return self._known[key]

    def same_bits(self, arrived: Arrived) -> bool:
        """True if decoding changes nothing when no data unit is missing."""
        code = self.deployment.segment_codes[0]
        return torch.equal(code.decode(self.first, arrived), self.first[: code.k])

    def whole(self) -> list[tuple[Tensor, Tensor]]:
        """Return each segment's input map and its units' outputs when every unit has come."""
        everything = np.ones(self.deployment.segment_codes[0].n, bool)
        return [(x, y) for x, y, _ in self._stages(everything)]

    def _stages(
        self, arrived: Arrived, scheme: Scheme | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each segment's input map, the outputs of its units and its output map."""
        x, y, result = self.before, self.first, self.before
        plan = self.deployment.plan
        for segment, code in zip(plan.segments, self.deployment.segment_codes, strict=True):
            stage = plan.stages[segment.stop - 1]
            if segment.start:
                x = self.deployment.prologue(segment.start, result)
                y = self._outputs(segment, x)
            fill = code.decode if scheme is None or scheme.fill is None else scheme.fill
            data = fill(y, arrived)
            result = SPLITS[stage.split].stitch(list(data), stage)
            yield x, y, result

    def _outputs(self, segment: Range, x: Tensor) -> Tensor:
        """Run all units of a segment on its input map: (n, B, C, h, w)."""
        d, outputs = self.deployment, list[Tensor]()
        inputs = d.inputs(segment.start, x, d.parity(segment.start, x))
        for s, stage in enumerate(d.plan.stages[slice(*segment)], segment.start):
            split = SPLITS[stage.split]
            if outputs:  # units exchange halos: as if the leader had gathered the map
                x = SPLITS[d.plan.stages[s - 1].split].stitch(outputs, d.plan.stages[s - 1])
                inputs[: stage.k] = split.cut(x, stage)
            # parity units are the last stage's
            outputs = [run(u) for run, u in zip(d.ready_programs[s], inputs, strict=False)]
        return split.stack(outputs, stage)
