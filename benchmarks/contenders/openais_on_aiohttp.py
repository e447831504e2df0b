"""openai with the HTTP client that it offers for high concurrency."""

from contextlib import AbstractAsyncContextManager
from importlib import import_module

from benchmarks.contenders import Setting, openais


def entered(setting: Setting) -> AbstractAsyncContextManager[openais.OpenAI]:
    """See `contenders.entered`."""
    return openais.entered(setting, http_client=import_module("openai").DefaultAioHttpClient())
