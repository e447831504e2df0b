# Install in a virtual environment: pip install flux2-async
# Start it: python app.py
"""A batch that ends well on Ctrl-C: it sends nothing more, saves what runs, shows no traceback (not on Windows).

Start it again to go on where it stopped, after Ctrl-C or after anything else.
"""

import asyncio
import signal

from flux2_async import Flux2Session, TextToImage
from flux2_async.batch import run_batch


async def main() -> None:
    """Run the batch until it is done or interrupted."""
    requests = [TextToImage(f"a postcard from place {n}", tier="pro") for n in range(1000)]
    async with Flux2Session() as flux:
        batch = run_batch(flux, requests, journal="run.db", directory="results/")
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, batch.stop)
        async for outcome in batch:
            print(outcome.id, outcome.state)


if __name__ == "__main__":
    asyncio.run(main())
