"""What a schedule says, at one place of its range."""

from flux2_async.tasks.schedule import Schedule


def wait(schedule: Schedule, age: float, spread: float) -> float:
    """Give the seconds until the next poll: `spread` from 0, the soonest, to 1, the latest."""
    soonest, latest = schedule.waits(age)
    return soonest + (latest - soonest) * spread
