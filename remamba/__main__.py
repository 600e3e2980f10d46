"""`python -m remamba` is the command `remamba`."""

import sys

from remamba.cli import main

sys.exit(main())
