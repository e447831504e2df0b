"""Answers as values: what an endpoint says, before it goes (or does not go) over the wire."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import attrs

USUAL_WORDS: Mapping[int, str] = {
    400: "Missing or invalid parameter",
    401: "You do not have access permissions",
    402: "Credits insufficient",
    404: "Not found",
    405: "Method not allowed",
    408: "Upstream gave no result for more than 10 minutes",
    413: "File too large",
    422: "Validation failed",
    429: "Rate limit exceeded",
    433: "The usage limit of this key is reached",
    455: "The service is under maintenance",
    500: "Server exception",
    501: "Generation failed",
    505: "This feature is disabled",
}

PAGE = """<html>
<head><title>{status}</title></head>
<body><center><h1>{status}</h1></center><hr><center>nginx</center></body>
</html>
"""


class Refusal(Exception):  # noqa: N818  it is an answer, not a mistake of the emulator
    """An endpoint refuses, with the `code` and the text of the body, and perhaps the header Retry-After."""

    def __init__(self, code: int, message: str | None = None, *, retry_after: str | None = None) -> None:
        self.code = code
        self.message: str = USUAL_WORDS.get(code, "Refused") if message is None else message
        self.retry_after = retry_after
        super().__init__(self.message)


@attrs.frozen
class Reply:
    """One answer; `code` is the one in the body, if there is one."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = attrs.field(factory=dict)
    code: int | None = None


def json_reply(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer; the `code` of its envelope is kept beside it."""
    try:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A lone surrogate of the request comes back; it is no UTF-8, but can be told in escapes.
        body = json.dumps(value, separators=(",", ":")).encode()
    return Reply(body, status, headers=headers or {}, code=value.get("code"))


def granted(data: Any, text: str = "msg") -> Reply:
    """Success; `text` is the name of the text field."""
    return json_reply({"code": 200, text: "success", "data": data})


def refused(refusal: Refusal, style: Literal["body", "http"], *, upload: bool = False) -> Reply:
    """A refusal, in the style `body` under HTTP 200, in `http` under its code; uploads have their own envelope."""
    envelope = {"code": refusal.code, "msg": refusal.message} | ({"success": False} if upload else {"data": None})
    headers = {} if refusal.retry_after is None else {"Retry-After": refusal.retry_after}
    is_status = 400 <= refusal.code < 600  # noqa: PLR2004  the error statuses of HTTP
    return json_reply(envelope, refusal.code if style == "http" and is_status else 200, headers)


def html(status: int) -> Reply:
    """The page that a reverse proxy shows."""
    return Reply(PAGE.format(status=status).encode(), status, "text/html")
