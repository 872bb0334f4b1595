"""Paths in the repository, for the tests that read its files."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"  # the golden files in the repository
# the whole set of golden files; may be absent
ALL_GOLDEN = Path(os.environ.get("DITFLOW_GOLDEN", ROOT.parent / "shared" / "golden"))
