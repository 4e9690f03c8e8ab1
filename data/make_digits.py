"""Build digits.h5 from the copy of the digits data set that scikit-learn ships.

python data/make_digits.py        # needs scikit-learn; nothing else here does
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 7
HELD_OUT = 360  # 20 % of 1,797, every class in its proportion
SOURCE = (
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, 1998, https://doi.org/10.24432/C50P49; its test part, as scikit-learn ships it"
)
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
CHANGES = "values 0..16 scaled to 0..255 and rounded; a held-out part drawn"


def main() -> None:
    """Write digits.h5 beside this file."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    labels = digits.target.astype(np.uint8)  # (1797,)
    held_out = np.zeros(len(labels), bool)
    rows = np.arange(len(labels))
    _, held = train_test_split(rows, test_size=HELD_OUT, stratify=labels, random_state=SEED)
    held_out[held] = True
    with h5py.File(Path(__file__).with_name("digits.h5"), "w") as file:
        for name, values in [("images", images), ("labels", labels), ("held_out", held_out)]:
            file.create_dataset(
                name, data=values, chunks=values.shape, compression="gzip", compression_opts=9
            )
        file.attrs["source"] = SOURCE
        file.attrs["licence"] = LICENCE
        file.attrs["changes"] = CHANGES
        file.attrs["seed"] = SEED


if __name__ == "__main__":
    main()
