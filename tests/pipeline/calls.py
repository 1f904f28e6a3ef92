"""Calls for workers, at the top level of a module so that other processes find them."""

import os
import signal
import time
from pathlib import Path


def name_and(held: str, number: int) -> tuple[str, int, int]:
    return held, number, os.getpid()


def die_once(held: str, number: int, marks: str) -> int:
    """Kill the worker at the first call with number 3."""
    mark = Path(marks, "died")
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with Path(marks, f"ran-{number}").open("a") as file:
        file.write("x")
    return number


def die(held: str, number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def hang(held: str, number: int) -> int:
    if number == 1:
        time.sleep(60)
    return number


def fail(held: str, number: int) -> int:
    raise ValueError(f"call {number}")
