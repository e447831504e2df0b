"""Connections of the calls that cost nothing, and of files: kept, and used again."""

from typing import Any

import aiohttp
from aiohttp.connector import Connection


class PooledConnector(aiohttp.TCPConnector):
    """Uses no connection again on which its peer has spoken unasked: aiohttp takes that for the next answer.

    A second answer that came late would else be another task's record, or another task's picture.
    """

    async def connect(self, req: aiohttp.ClientRequest, traces: Any, timeout: aiohttp.ClientTimeout) -> Connection:
        """Give one of those that are kept, or a new one."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            # One that has a parser has carried a request; who speaks first on a new one does so on the next as well.
            if protocol is None or not protocol.should_close or getattr(protocol, "_parser", None) is None:
                return connection
            connection.close()
