"""Run the command line as `python -m mop_t5.cli`."""

import sys

from mop_t5.cli.main import main

if __name__ == "__main__":
    code = main()
    distributed = sys.modules.get("torch.distributed")
    if code == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # processes that exit without destroying the group can abort each other
    sys.exit(code)
