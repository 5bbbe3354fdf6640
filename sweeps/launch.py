"""Runs a sweep: `python sweeps/launch.py grid=smoke`, or `memrl sweep grid=smoke`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `run_command` takes over, Ctrl-C ends the command without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from memrl.cli import run_command
from memrl.launch import main

if __name__ == "__main__":
    run_command(main)
