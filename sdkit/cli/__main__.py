"""So that `python -m sdkit.cli` is the command line too."""

import sys

from sdkit.cli import main

sys.exit(main())
