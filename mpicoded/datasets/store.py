"""Fetch the public data sets, and find their files on this machine."""

import os
from pathlib import Path

from mpicoded.datasets.data import CLASSES
from mpicoded.errors import DataError, near

IDX = tuple(
    f"{part}-{file}-ubyte.gz"
    for part in ("train", "t10k")
    for file in ("images-idx3", "labels-idx1")
)
# Where the public files are, and the md5 of each.
FILES: dict[str, tuple[str, dict[str, str]]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            IDX[0]: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            IDX[1]: "d53e105ee54ea40749a09fcbcd1e9432",
            IDX[2]: "9fb629c4189551a2d022fa330f9573f3",
            IDX[3]: "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            IDX[0]: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            IDX[1]: "25c81989df183df01b3e8a0aad5dffbe",
            IDX[2]: "bef4ecab320f06d8554ea6380940ec79",
            IDX[3]: "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar-10": (
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
}


def fetch(name: str) -> Path:
    """Download a public data set into the cache, check its md5, return the folder; DataError."""
    import pooch

    if name not in FILES:
        unknown = f"there is no data set {name!r}{near(name, CLASSES)}"
        why = "digits is bundled" if name == "digits" else unknown
        raise DataError(f"{why}; data sets to fetch: {', '.join(FILES)}.")
    address, files = FILES[name]
    home = cache() / name
    for file, md5 in files.items():
        try:
            pooch.retrieve(address + file, f"md5:{md5}", fname=file, path=home)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DataError(
                f"cannot fetch {address + file} into {home}: {error}. Put the file there by other "
                f"means, or set MPICODED_DATA to the folder that holds {name}/{file}."
            ) from error
    return home


def cache() -> Path:
    """Return the folder for downloads and unpacked copies: $MPICODED_CACHE, or as XDG has it."""
    own = os.environ.get("MPICODED_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own).expanduser() if own else Path(shared).expanduser() / "mpicoded"


def find(name: str, files: tuple[str, ...]) -> Path:
    """Return the first of ``files`` that $MPICODED_DATA/name or the cache holds."""
    for home in homes(name):
        for file in files:
            if (home / file).exists():
                return home / file
    places = " or ".join(map(str, homes(name)))
    raise DataError(how_to_get(name, f"data set {name!r} is not in {places}"))


def homes(name: str) -> list[Path]:
    """Return the folders in which data set ``name`` may be: $MPICODED_DATA/name, the cache."""
    own = os.environ.get("MPICODED_DATA")
    given = [Path(own).expanduser() / name] if own else []
    return [*given, cache() / name]


def how_to_get(name: str, what: str) -> str:
    """Return the message that ``what`` is wrong, with two ways to get data set ``name``."""
    return (
        f"{what}; get it with `python -m mpicoded data fetch {name}`, or set MPICODED_DATA to the "
        f"folder that holds {name}/."
    )
