"""The queries of a run: which images of the data each of them holds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.datasets import Data
from mpicoded.errors import JobError
from mpicoded.formats import FORMATS
from mpicoded.job import Job
from mpicoded.runtime.deployment import Deployment

MOST = 50_000_000  # images of a run


class Queries:
    """The run's queries in order: query q holds ``batch`` images of the data, ``repeat`` times."""

    def __init__(self, job: Job, data: Data) -> None:
        self.data = data
        self.batch = job.input.batch
        count = len(data.images)
        self.once, rest = divmod(count, self.batch)
        if rest:
            way = f"set limit = {count - rest}, or another batch" if self.once else "lower batch"
            raise JobError(
                f"[input] {count} images do not fill queries of batch = {self.batch}: {way}"
            )
        self.repeat = job.input.repeat
        if count * self.repeat > MOST:
            raise JobError(
                f"[input] {count} images, repeat = {self.repeat} times, are more than the {MOST:,} "
                "that a results file is made for: lower repeat"
            )
        if not FORMATS[job.runtime.wire].maps and data.images.dtype != "uint8":
            raise JobError(
                f'[runtime] wire = "{job.runtime.wire}" needs 8-bit images, {data.name} holds '
                f'{data.images.dtype}: use "float32" or "float16"'
            )
        self.as_bytes = FORMATS[job.runtime.wire].image == 1 and data.images.dtype == "uint8"

    def __len__(self) -> int:
        return self.once * self.repeat

    def rows(self, query: int) -> slice:
        """Rows of the data that query ``query`` holds."""
        first = query % self.once * self.batch
        return slice(first, first + self.batch)

    def all(self, values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        """Return what is known of each image, (images of the data,), for the images of the run."""
        return None if values is None else np.tile(values, self.repeat)

    def tensor(self, query: int, deployment: Deployment) -> Tensor:
        """Return the images of a query (B, C, H, W): bytes if they travel so, else numbers."""
        x = torch.from_numpy(self.data.images[self.rows(query)])
        return x if self.as_bytes else deployment.normalize(x)
