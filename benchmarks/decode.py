"""From the bytes of a record to a checked value, against libraries that are made for it."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from benchmarks import alone
from benchmarks.contenders import OURS
from benchmarks.dialects import jobs_record
from benchmarks.table import Table

TASK_ID: Final = "0123456789abcdef" * 2
ROUNDS: Final = 15
CALLS: Final = 200

Decode = Callable[[bytes], object]


def _ours() -> Decode:
    wire = import_module("flux2_async._protocol.codec")

    def decode(body: bytes) -> object:
        record = wire.decode_record(wire.Reply(200, {}, body), TASK_ID)
        # Read when it is asked for.
        return record, record.param

    return decode


def _by_hand() -> Decode:
    """What the loop by hand does, and no more."""

    def decode(body: bytes) -> object:
        data = json.loads(body)["data"]
        return data["state"] == "success" and json.loads(data["resultJson"])["resultUrls"]

    return decode


# The others read the same fields into the same types, and open the JSON text in the JSON text as we do.
FIELDS: Final[dict[str, Any]] = {
    "taskId": str,
    "model": str,
    "state": str,
    "param": str,
    "resultJson": str,
    "failCode": str | None,
    "failMsg": str | None,
    "createTime": datetime,
    "completeTime": datetime | None,
}


def _pydantic() -> Decode:
    pydantic = import_module("pydantic")
    optional = {name: (kind, None) for name, kind in FIELDS.items()}
    record = pydantic.create_model("Record", **optional | {"updateTime": (datetime | None, None)})
    envelope = pydantic.create_model("Envelope", code=(int, ...), msg=(str, ""), data=(record, ...))

    def decode(body: bytes) -> object:
        data = envelope.model_validate_json(body).data
        parameters = json.loads(data.param)
        parameters["input"] = json.loads(parameters["input"])
        urls = json.loads(data.resultJson)["resultUrls"] if data.state == "success" else []
        return data, parameters, urls

    return decode


def _msgspec() -> Decode:
    msgspec = import_module("msgspec")
    # It reads no datetime from milliseconds.
    fields = [
        (name, int | None if kind in (datetime, datetime | None) else kind, None) for name, kind in FIELDS.items()
    ]
    record = msgspec.defstruct("Record", fields)
    decoder = msgspec.json.Decoder(msgspec.defstruct("Envelope", [("code", int), ("data", record), ("msg", str, "")]))
    loads = msgspec.json.decode

    def decode(body: bytes) -> object:
        data = decoder.decode(body).data
        times = [
            each and datetime.fromtimestamp(each / 1000).astimezone() for each in (data.createTime, data.completeTime)
        ]
        parameters = loads(data.param)
        parameters["input"] = loads(parameters["input"])
        urls = loads(data.resultJson)["resultUrls"] if data.state == "success" else []
        return data, times, parameters, urls

    return decode


DECODERS: Final[dict[str, tuple[Callable[[], Decode], str]]] = {
    "json by hand": (_by_hand, "json"),
    OURS: (_ours, "flux2_async"),
    "pydantic": (_pydantic, "pydantic"),
    "msgspec": (_msgspec, "msgspec"),
}


async def microseconds(name: str, rounds: int, calls: int) -> list[float]:
    """CPU microseconds for a record of a running and of a finished task: the best of many rounds."""
    decode = DECODERS[name][0]()
    best = []
    for finished in (False, True):
        body = jobs_record(TASK_ID, finished=finished).encode()
        taken = []
        for _ in range(rounds):
            begun = time.process_time()
            for _ in range(calls):
                decode(body)
            taken.append((time.process_time() - begun) / calls * 1e6)
        best.append(min(taken))
    return best


def measure(repeats: int, rounds: int = ROUNDS, calls: int = CALLS) -> Table:
    """Compare all that are installed."""
    rows: list[Sequence[Any]] = []
    for name, (_, package) in DECODERS.items():
        if find_spec(package):
            runs = [alone.call(microseconds, name=name, rounds=rounds, calls=calls) for _ in range(repeats)]
            rows.append([name, *(statistics.median(run[place] for run in runs) for place in (0, 1))])
    return Table(
        "Decoding one recordInfo reply, µs",
        ["", "running", "finished"],
        rows,
        [
            f"median of {repeats} processes, best of {rounds} rounds each",
            "all open the request and the result, which are JSON text in JSON text; the first opens the result alone",
            "ours also tells a reply from a refusal, takes secrets out, keeps unknown fields, repairs broken replies",
        ],
    )
