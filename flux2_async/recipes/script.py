# Install in a virtual environment: pip install flux2-async
# Start it: PUBLIC_URL=https://tunnel.example PORT=8080 APIKLEY_CALLBACK_SECRET=... python app.py
"""A script without a web server: it listens for callbacks while it runs; a proxy or a tunnel leads to it."""

import asyncio
import os

from flux2_async import Callbacks, Flux2Session, TextToImage
from flux2_async.receivers import serve

STYLES = ["Gaudí", "Wright", "Hadid"]


async def main() -> None:
    """Make a picture of each style, and save each as it is finished."""
    port = int(os.environ.get("PORT", "8080"))
    url = os.environ.get("PUBLIC_URL", f"http://localhost:{port}") + "/flux2/callback/"
    flux = Flux2Session(callbacks=Callbacks(url))
    async with flux, serve(flux, "127.0.0.1", port):
        requests = (TextToImage(f"a house in the style of {style}", tier="pro") for style in STYLES)
        async for done in flux.as_completed(requests):
            if done.error:
                print("failed:", done.request.prompt, done.error)
            else:
                print("done:", *await flux.download(done.result, "houses"))


if __name__ == "__main__":
    asyncio.run(main())
