"""Libraries that Linux loads into a server before all others, so that it meets what no test can do to a machine."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import program

# Adds to the wall clock, and to nothing else, what the file `switch` says.
SET_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
int gettimeofday(struct timeval *now, void *zone)
{
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    long step = 0;
    FILE *file = fopen(getenv("SWITCH"), "r");
    if (file) { if (fscanf(file, "%ld", &step) != 1) step = 0; fclose(file); }
    now->tv_sec += step;
    return result;
}
"""

# No file can become longer while the file `switch` is not empty.
NO_ROOM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
static int is_full(int file, off64_t end)
{
    struct stat64 about;
    if (stat64(getenv("SWITCH"), &about) || !about.st_size) return 0;
    return !fstat64(file, &about) && end > about.st_size;
}
#define WRITE(name, from_kind, size_kind, shortest) \\
    ssize_t name(int file, from_kind from, size_kind size, off64_t at) \\
    { \\
        static ssize_t (*real)(int, from_kind, size_kind, off64_t); \\
        if (!real) real = dlsym(RTLD_NEXT, #name); \\
        if (is_full(file, at + (shortest))) { errno = ENOSPC; return -1; } \\
        return real(file, from, size, at); \\
    }
WRITE(pwrite, const void *, size_t, size)
WRITE(pwrite64, const void *, size_t, size)
WRITE(pwritev, const struct iovec *, int, 1)
WRITE(pwritev64, const struct iovec *, int, 1)
#define ALLOCATE(name) \\
    int name(int file, off64_t at, off64_t size) \\
    { \\
        static int (*real)(int, off64_t, off64_t); \\
        if (!real) real = dlsym(RTLD_NEXT, #name); \\
        return is_full(file, at + size) ? ENOSPC : real(file, at, size); \\
    }
ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)
"""


class Switch:
    """What a library reads each time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set("")

    def set(self, text: str) -> None:
        # Whole at any moment.
        new = self.file.with_name("new")
        new.write_text(text)
        new.replace(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.file.with_name("library.so")), "SWITCH": str(self.file)}


@contextmanager
def preloaded(source: str) -> Iterator[Switch]:
    """Give a library's switch, and the environment that a server needs."""
    if sys.platform != "linux":
        pytest.skip("only Linux loads a library before all others")
    # Where a server's own user may read it.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "library.c").write_text(source)
        command = ["-shared", "-fPIC", "-o", str(folder / "library.so"), str(folder / "library.c"), "-ldl"]
        subprocess.run([program("cc"), *command], check=True)  # noqa: S603  our own words
        yield Switch(folder / "switch")
