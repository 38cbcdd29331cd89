"""``python -m pydfm`` is the command line."""

import sys

from pydfm.cli import main

sys.exit(main())
