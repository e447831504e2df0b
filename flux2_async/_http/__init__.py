"""The calls of the service and the hosts of files, over aiohttp."""
