"""Run commands of `shapespace` in processes of their own."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def run_command(words: Sequence[Any], threads: int | None = None) -> str:
    """Run one command in a new process with this number of threads, and return what it prints.

    Raises `ValueError` with the last line of its error output if it fails.
    """
    verb, *rest = map(str, words)
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    command = [sys.executable, "-m", "shapespace.tools", verb, *rest]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"shapespace {shlex.join([verb, *rest])} failed: {reason}")
    return done.stdout
