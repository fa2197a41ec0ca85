"""`torchrun --nproc-per-node N -m ghn_init.train ...`: the same arguments as `ghn-init train`."""

import sys

from ._cli import main

sys.exit(main())
