"""``python -m polyexec.cli``."""

import sys

from polyexec.cli.main import main

sys.exit(main())
