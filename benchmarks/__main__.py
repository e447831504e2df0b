"""Run all benchmarks, or those that are named: `python -m benchmarks [NAME ...] [--period SECONDS]`."""

import argparse
import asyncio

from benchmarks import callbacks, limit, memory

PARTS = ("limit", "memory", "callbacks")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which ones; all without")
    parser.add_argument("--period", type=float, default=10.0, help="seconds of the rate limit (default 10)")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if "limit" in parts:
        asyncio.run(limit.measure(arguments.period))
    if "memory" in parts:
        asyncio.run(memory.measure())
    if "callbacks" in parts:
        asyncio.run(callbacks.measure())


if __name__ == "__main__":
    main()
