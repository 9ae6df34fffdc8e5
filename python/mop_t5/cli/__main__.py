"""Run the command line as `python -m mop_t5.cli`."""

import os
import signal
import sys

from mop_t5.cli.main import main

if __name__ == "__main__":
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun ends the others by SIGTERM when one process has failed
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = main()
    distributed = sys.modules.get("torch.distributed")
    if code == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # processes that exit without destroying the group can abort each other
    sys.exit(code)
