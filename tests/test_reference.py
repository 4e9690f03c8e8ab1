"""docs/job.md is what the model says, and the model says something of every key."""

from __future__ import annotations

import re
from pathlib import Path

from mpicoded.job import Job
from mpicoded.reference import reference

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "job.md"


def test_the_file_is_made_from_the_model() -> None:
    assert FILE.read_text() == reference(), "python -m mpicoded.reference > docs/job.md"


def test_every_key_has_a_sentence_and_a_default_or_a_word_on_it() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.+) \|$", reference(), re.MULTILINE)
    assert len(rows) > 80
    for key, kind, default, meaning in rows:
        assert kind and meaning.endswith(".") and meaning[0] in meaning[0].upper() + '"', key
        assert default or "." in meaning, key


def test_the_lines_of_the_readme_are_a_job(tmp_path: Path) -> None:
    found = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    (tmp_path / "job.toml").write_text(found[1])
    assert Job.read(tmp_path / "job.toml").code.name == "replication"
