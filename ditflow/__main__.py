"""`python -m ditflow` is the `ditflow` command."""

import sys

from ditflow.cli.main import main

sys.exit(main())
