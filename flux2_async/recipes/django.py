# Install in a virtual environment: pip install flux2-async django uvicorn
# Start it: uvicorn app:app
"""Django behind ASGI: an asynchronous view and a synchronous one share the session of the server's event loop.

Behind WSGI there is no event loop: take `BlockingSession` there, as in the recipe `flask`.
"""

from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from flux2_async import Flux2Session, TextToImage, errors

if not settings.configured:  # a project has a module of settings instead
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="change me", ALLOWED_HOSTS=["*"])  # noqa: S106  an example
flux = Flux2Session()


async def awaited(request: HttpRequest) -> JsonResponse:
    """Wait for the picture without a thread, or say why there is none."""
    try:
        result = await flux.generate(TextToImage(str(request.POST.get("prompt", "")), tier="pro"), timeout=100)
    except errors.Flux2Error as error:
        return JsonResponse({"error": str(error)}, status=422 if isinstance(error, errors.InvalidRequestError) else 502)
    return JsonResponse({"id": result.task_id, "urls": result.urls})


def blocking(request: HttpRequest) -> JsonResponse:
    """Wait for it in a thread of Django's, while the server's event loop does the work."""
    return async_to_sync(awaited)(request)


urlpatterns = [path("awaited", awaited), path("blocking", blocking)]
django = get_asgi_application()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Open the session before the first request and close it after the last one, which Django has no place for."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    await receive()
    async with flux:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
