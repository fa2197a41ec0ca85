"""`torchrun --nproc-per-node N -m ghn_init.train ...`: the same arguments as `ghn-init train`."""

import atexit
import os
import sys

from ghn_init.cli.main import main

status = main(["train", *sys.argv[1:]])
if int(os.environ.get("WORLD_SIZE", 1)) > 1:
    # All is written, and the process group is closed. Rarely, torch's own threads abort a process
    # while its interpreter is taken down, and torchrun reports a run as failed that has ended well
    # (see pytorch/pytorch pull request 179291): end without taking it down.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
