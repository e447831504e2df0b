"""`python -m flux2_async` is the command `flux2`."""

import sys

from flux2_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
