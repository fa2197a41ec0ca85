"""`python -m ghn_init` is `ghn-init`."""

import sys

from ghn_init.cli.main import main

sys.exit(main())
