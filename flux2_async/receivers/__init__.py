"""Where the service's callbacks arrive: in an aiohttp application, in any ASGI application, or on a server of our own.

All three do the same: check that the service called, answer at once, and let the session poll afterwards. A server that
logs requests logs the signature in their addresses as well; it opens nothing but a hint for one submission.
"""

from flux2_async.receivers._aiohttp import aiohttp_routes
from flux2_async.receivers._asgi import asgi_app
from flux2_async.receivers._serve import CallbackServer, serve

__all__ = ["CallbackServer", "aiohttp_routes", "asgi_app", "serve"]
