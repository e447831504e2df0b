# Install in a virtual environment: pip install flux2-async
# Start it: PUBLIC_URL=https://app.example APIKLEY_CALLBACK_SECRET=... python app.py
"""A backend on aiohttp: a photograph and a wish come in, and the handler waits for the edited picture."""

import os
from collections.abc import AsyncIterator

from aiohttp import web

from flux2_async import Callbacks, Flux2Error, Flux2Session, ImageToImage, InvalidRequestError
from flux2_async.receivers import aiohttp_routes

FLUX = web.AppKey("flux", Flux2Session)


async def edit(request: web.Request) -> web.Response:
    """Answer with the addresses of the edited picture."""
    form = await request.post()
    photo, prompt = form.get("photo"), form.get("prompt")
    if not isinstance(photo, web.FileField):
        raise web.HTTPUnprocessableEntity(text="photo: send a file")
    try:
        order = ImageToImage(str(prompt or ""), images=[photo.file.read()], tier="pro")
        result = await request.app[FLUX].generate(order, timeout=300)
    except InvalidRequestError as error:
        raise web.HTTPUnprocessableEntity(text=str(error)) from None
    except Flux2Error as error:
        raise web.HTTPBadGateway(text=str(error)) from None
    return web.json_response({"id": result.task_id, "urls": result.urls})


async def opened(app: web.Application) -> AsyncIterator[None]:
    """Keep the session open while the application runs."""
    async with app[FLUX]:
        yield


def make_app() -> web.Application:
    """Make the application, which takes callbacks as well."""
    app = web.Application(client_max_size=12_000_000)
    url = os.environ.get("PUBLIC_URL", "http://localhost:8080")
    app[FLUX] = Flux2Session(callbacks=Callbacks(url + "/flux2/callback/"))
    app.add_routes([web.post("/edits", edit), *aiohttp_routes(app[FLUX], "/flux2/callback")])
    app.cleanup_ctx.append(opened)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), port=8080)
