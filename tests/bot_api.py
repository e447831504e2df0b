"""A Bot API server on loopback: people send photographs, a bot polls and answers."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
from aiohttp import web

TOKEN = "42:a-token-of-nobody"
ME = {"id": 42, "is_bot": True, "first_name": "Kettle", "username": "kettle_bot"}


@attrs.frozen
class Sent:
    """What the bot sent: a text, or a photograph."""

    chat: int
    reply_to: int
    text: str | None = None
    photo: bytes | None = None


class BotApi:
    """The methods that a bot needs to edit photographs."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.url = ""
        self._updates: dict[int, dict[str, Any]] = {}
        self._files: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()

    async def photo(self, chat: int, content: bytes, caption: str, *, deliveries: int = 1) -> int:
        """Somebody sends a photograph; give the number of the message. More deliveries are repeated ones."""
        message_id = next(self._numbers)
        sizes = []
        for width in (90, 800):
            file_id = f"file-{message_id}-{width}"
            self._files[file_id] = content if width == 800 else b"a thumbnail"
            sizes.append({"file_id": file_id, "file_unique_id": file_id, "width": width, "height": width})
        message = self._message(message_id, chat) | {"photo": sizes, "caption": caption}
        async with self._changed:
            for _ in range(deliveries):
                number = next(self._numbers)
                self._updates[number] = {"update_id": number, "message": message}
            self._changed.notify_all()
        return message_id

    async def answers(self, count: int) -> list[Sent]:
        """Wait until the bot has sent so many.

        Raises:
            TimeoutError: It has not within 120 seconds.
        """
        async with asyncio.timeout(120), self._changed:
            await self._changed.wait_for(lambda: len(self.sent) >= count)
            return list(self.sent)

    # The methods, by their names in lower case.

    async def getme(self, form: Mapping[str, Any]) -> object:
        return ME

    async def getupdates(self, form: Mapping[str, Any]) -> object:
        offset, timeout = int(form.get("offset", 0)), float(form.get("timeout", 0))
        self._updates = {number: update for number, update in self._updates.items() if number >= offset}
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self._updates)
        except TimeoutError:
            pass
        return list(self._updates.values())

    async def getfile(self, form: Mapping[str, Any]) -> object:
        file_id = form["file_id"]
        return {"file_id": file_id, "file_unique_id": file_id, "file_path": f"photos/{file_id}"}

    async def sendmessage(self, form: Mapping[str, Any]) -> object:
        return await self._keep(form, text=form["text"])

    async def sendphoto(self, form: Mapping[str, Any]) -> object:
        photo = form[form["photo"].removeprefix("attach://")]
        return await self._keep(form, photo=photo.file.read())

    async def _keep(self, form: Mapping[str, Any], **content: Any) -> object:
        chat = int(form["chat_id"])
        async with self._changed:
            self.sent.append(Sent(chat, json.loads(form["reply_parameters"])["message_id"], **content))
            self._changed.notify_all()
        return self._message(next(self._numbers), chat)

    def _message(self, message_id: int, chat: int) -> dict[str, Any]:
        person = {"id": chat, "first_name": f"Person {chat}"}
        return {
            "message_id": message_id,
            "date": 1_790_000_000,
            "chat": person | {"type": "private"},
            "from": person | {"is_bot": False},
        }

    # What carries them.

    async def call(self, request: web.Request) -> web.Response:
        if request.match_info["token"] != TOKEN:
            return web.json_response({"ok": False, "error_code": 401, "description": "Unauthorized"}, status=401)
        method = getattr(self, request.match_info["method"].lower())
        return web.json_response({"ok": True, "result": await method(await request.post())})

    async def file(self, request: web.Request) -> web.Response:
        assert request.match_info["token"] == TOKEN
        return web.Response(body=self._files[request.match_info["file_id"]])


@asynccontextmanager
async def bot_api() -> AsyncIterator[BotApi]:
    """Run the server."""
    api = BotApi()
    app = web.Application()
    app.add_routes([web.post("/bot{token}/{method}", api.call), web.get("/file/bot{token}/photos/{file_id}", api.file)])
    # A bot that stops leaves its last getUpdates behind.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield api
    finally:
        await runner.cleanup()
