"""Names of compiled kernels as a person reads them."""

import subprocess


def readable(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
