# Install in a virtual environment: pip install flux2-async
# Start it: APIKLEY_API_KEY=... python app.py
"""The first program: makes a picture from words, then another one from that picture and words."""

import asyncio

from flux2_async import Flux2Session, ImageToImage, TextToImage


async def main() -> None:
    """Make both pictures, and save the second one."""
    async with Flux2Session() as flux:
        kettle = await flux.generate(TextToImage("a red kettle on a slate worktop", tier="pro"))
        request = ImageToImage("snow outside the window", images=[kettle.urls[0]], tier="pro")
        task = await flux.submit(request)  # the service has accepted it
        result = await task.result(timeout=300)  # seconds
        print(*await flux.download(result, "out"))


if __name__ == "__main__":
    asyncio.run(main())
