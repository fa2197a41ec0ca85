"""`python -m ghn_init` is `ghn-init`."""

import sys

from ._cli import main

sys.exit(main())
