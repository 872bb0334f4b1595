"""A fixture for tests of runs that are made on the command line."""

import pytest
from quick_runs import QUICK


@pytest.fixture
def transfer(ditflow, small_folder, tmp_path):
    """Runs a transfer; returns its folder, or with `fails` its exit code and error."""

    def run(*words, **options):
        found = ditflow("transfer", "--model", small_folder, *QUICK, *words, **options)
        return found if options else tmp_path / found.strip()

    return run
