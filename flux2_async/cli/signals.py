"""What asks a command for its end."""

import signal


def ending_signals() -> tuple[int, ...]:
    """Give those besides Ctrl-C: SIGTERM, and the end of the terminal, unless that is to be outlived (`nohup`)."""
    hangs_up = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGHUP) if hangs_up else (signal.SIGTERM,)
