# Install in a virtual environment: pip install flux2-async
# Start it: APIKLEY_API_KEY=... python app.py
"""A script without asyncio: makes a picture of each style, and saves each as it is finished."""

from flux2_async import TextToImage
from flux2_async.blocking import BlockingSession

STYLES = ["Gaudí", "Wright", "Hadid"]

if __name__ == "__main__":
    with BlockingSession() as flux:
        for done in flux.as_completed(TextToImage(f"a house in the style of {style}", tier="pro") for style in STYLES):
            print(done.error or flux.download(done.result, "houses")[0])
