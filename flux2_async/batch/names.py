"""Names of submissions that tell when they were given, and that the service was to know them: for what a crash leaves.

A journal is read by later processes, perhaps with another service: only a name that carries the mark of this one was
surely sent to it as an idempotency name, and only for as long as it keeps names is it good.
"""

import hashlib
import re
import uuid
from typing import Final

from flux2_async.models.service import Service, resent_within
from flux2_async.session.arguments import new_ref

MARK_BITS: Final = 32
RANDOM_BITS: Final = 42


def new_name(service: Service, now: float) -> str:
    """Give a name for a submission that nobody has had: a UUID (version 8) in hex where the service honours names."""
    if service.idempotency_header is None:
        return new_ref()
    mark = _mark(service)
    low = (mark & (1 << 20) - 1) << RANDOM_BITS | uuid.uuid4().int & (1 << RANDOM_BITS) - 1
    value = (int(now * 1000) & (1 << 48) - 1) << 80 | 8 << 76 | (mark >> 20) << 64 | 2 << 62 | low
    return uuid.UUID(int=value).hex


def seconds_left(name: str | None, service: Service, now: float) -> float:
    """Give the seconds for which a submission may be sent again under its name; 0 where it must not be.

    `now` is in seconds since 1970.
    """
    if name is None or service.idempotency_header is None or not re.fullmatch(r"[0-9a-f]{32}", name):
        return 0.0
    value = int(name, 16)
    mark = (value >> 64 & 0xFFF) << 20 | value >> RANDOM_BITS & (1 << 20) - 1
    if value >> 76 & 0xF != 8 or mark != _mark(service):  # noqa: PLR2004  the version
        return 0.0
    age = now - (value >> 80) / 1000
    # A clock that was set back says nothing about the age.
    return max(0.0, resent_within(service.idempotency_period) - age) if age >= 0 else 0.0


def _mark(service: Service) -> int:
    place = f"{service.base_url}{service.api_path} {service.idempotency_header}".lower()
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[: MARK_BITS // 8])
