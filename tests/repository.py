"""Where files of the repository are, for the tests that read them."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"  # the part of the golden numbers that the repository holds
ALL_GOLDEN = Path(os.environ.get("DITFLOW_GOLDEN", ROOT.parent / "shared" / "golden"))  # may be absent
