# Start it: APIKLEY_API_KEY=... python app.py
"""The shortest useful program: two reference pictures and a wish go in, a new picture is saved."""

import asyncio

from flux2_async import Flux2Session, ImageToImage


async def main() -> None:
    request = ImageToImage("Put the can from image 1 on the shelf in image 2", images=["can.png", "shelf.jpg"])
    async with Flux2Session() as flux:
        task = await flux.submit(request)
        result = await task.result(timeout=300)
        print(*await flux.download(result, "out"))


if __name__ == "__main__":
    asyncio.run(main())
