"""The handwritten digits that come with mpicoded."""

from importlib import metadata
from pathlib import Path

from mpicoded.errors import DataError

CLONE = Path(__file__).parents[2] / "data" / "digits.h5"


def bundled() -> Path:
    """Return the file with the digits: of the clone, or where pip has put it; DataError if none."""
    found = next((path for path in (CLONE, *_installed()) if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{CLONE} is missing; 'digits' is bundled with the repository: "
            "install mpicoded again from a whole clone, pip install -e ."
        )
    return found


def _installed() -> list[Path]:
    try:
        files = metadata.files("mpicoded") or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == CLONE.name]
