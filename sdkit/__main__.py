"""So that `python -m sdkit` is the command line too, which `accelerate launch -m sdkit` asks for."""

import sys

from sdkit.cli import main

sys.exit(main())
