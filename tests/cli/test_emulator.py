"""`flux2 emulator`: every knob of the script, the log, and its end at Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import attrs
import pytest

from flux2_async.cli.app import app, run
from flux2_async.cli.emulator_options import EmulatorOptions
from flux2_async.cli.emulator_script import script_of
from flux2_async.cli.screen import UsageError
from flux2_async.cli.serve import line_of
from flux2_async.emulator import CallbackCall, Emulator, Exchange, Fault, Limit, Plan, Script

# Words of the command, and what of the script they change.
KNOBS: dict[str, tuple[str, Any]] = {
    "--limit 7/3": ("limit.limit", 7),
    "--limit 7/4": ("limit.period", 4.0),
    "--policy bucket": ("limit.policy", "bucket"),
    "--retry-after date": ("limit.retry_after", "date"),
    "--duration inf": ("plans.duration", float("inf")),
    "--fail 1": ("plans.outcome", "fail"),
    "--moderate 1": ("plans.outcome", "moderated"),
    "--empty 1": ("plans.outcome", "empty"),
    "--fail 1 --fail-code 501": ("plans.fail_code", "501"),
    "--moderate 1 --fail-message no": ("plans.fail_message", "no"),
    "--states waiting --states generating": ("plans.states", ("waiting", "generating")),
    "--price 2.5": ("plans.credits", 2.5),
    "--hidden-for 3": ("plans.hidden_for", 3.0),
    "--hidden-style null": ("plans.hidden_style", "null"),
    "--callback-fault late": ("plans.callback", "late"),
    "--callback-delay 4": ("plans.callback_delay", 4.0),
    "--pictures 2": ("plans.pictures", 2),
    "--record-lag 5": ("plans.record_lag", 5.0),
    "--callback-fault html": ("faults", [Fault("callback", "html", times=None)]),
    "--fault createTask:cut_after:2": ("faults", [Fault("createTask", "cut_after", 2)]),
    "--fault file:hang --fault credit:html": ("faults", [Fault("file", "hang"), Fault("credit", "html")]),
    "--model kling/video:50 --model a:b:1.5": ("models", {"kling/video": 50.0, "a:b": 1.5}),
    "--result-url https://a.example/x.mp4": ("plans.result_urls", ("https://a.example/x.mp4",)),
    "--idempotency-header X-Request-ID": ("idempotency_header", "X-Request-ID"),
    "--idempotency-life 60": ("idempotency_life", 60.0),
    "--error-style http": ("error_style", "http"),
    "--credits 9": ("credits", 9.0),
    "--latency 0.5": ("latency", 0.5),
    "--arrival 0.6": ("arrival", 0.6),
    "--outage 10-30": ("outage", (10.0, 30.0)),
    "--outage-kind 502": ("outage_kind", "502"),
    "--outage-on createTask --outage-on file": ("outage_on", ("createTask", "file")),
    "--upload-life 1": ("upload_life", 1.0),
    "--result-life 2": ("result_life", 2.0),
    "--file-life 3": ("file_life", 3.0),
    "--link-life 4": ("link_life", 4.0),
    "--private-images": ("private_images", True),
    "--download-url-spaces": ("download_url_spaces", True),
    "--no-render": ("render", False),
    "--picture-format png": ("picture_format", "png"),
    "--record-text message": ("record_text", "message"),
    "--hmac-key k": ("hmac_key", "k"),
    "--callback-shape guide": ("callback_shape", "guide"),
    "--callback-timeout 6": ("callback_timeout", 6.0),
    "--callback-retries 1 --callback-retries 2": ("callback_retries", (1.0, 2.0)),
}
NONSENSE = {
    "--limit 0/3": "--limit: '0/3' given, it must look like",
    "--duration nan": "--duration: nan given, it must be a number of seconds of 0 or more",
    "--latency inf": "--latency: inf given",
    "--callback-retries=-1": "--callback-retries: -1.0 given",
    "--fail 1.5": "--fail: 1.5 given, it must be a share of 0 to 1",
    "--fail 0.6 --moderate 0.6": "--moderate, --fail and --empty: together they are more than all tasks",
    "--pictures 0": "--pictures: 0 given, it must be 1 or more",
    "--outage 10": "--outage: '10' given, it must look like 10-30",
    "--model kling/video": "--model: 'kling/video' given, it must look like google/nano-banana:4",
    "--fault createTask": "--fault: 'createTask' given, it must look like createTask:cut_after:2",
    "--fault createTask:nonsense": "--fault: 'createTask:nonsense' given; kind: 'nonsense' given, use one of refuse, ",
    "--fault foo:hang": "--fault: 'foo:hang' given; endpoint: 'foo' given, use one of createTask, recordInfo, ",
    "--fault callback:hang": "--fault: 'callback:hang' given; kind of a callback fault",
}


def options_of(words: str) -> EmulatorOptions:
    _, bound, _ = app.parse_args(["emulator", *words.split()], print_error=False, exit_on_error=False)
    options = bound.arguments.get("options", EmulatorOptions())
    assert isinstance(options, EmulatorOptions)
    return options


def value_of(script: Script, name: str) -> Any:
    part, _, field = name.partition(".")
    value = script.plan_for(0, {}) if part == "plans" else getattr(script, part)
    return getattr(value, field) if field else value


@pytest.mark.parametrize("words", KNOBS)
def test_a_knob_changes_the_script(words: str) -> None:
    """The option's value arrives where it belongs, and is another one without it."""
    name, value = KNOBS[words]
    assert value_of(script_of(options_of(words)), name) == value
    assert value_of(script_of(EmulatorOptions()), name) != value


def test_there_is_a_knob_for_everything() -> None:
    """Whatever the script, its plans and its limit know can be told on the command line."""
    names = {name for name, _ in KNOBS.values()}
    wanted = {f.name for f in attrs.fields(Script)} - {"plans", "limit"}
    wanted |= {f"plans.{f.name}" for f in attrs.fields(Plan)} | {f"limit.{f.name}" for f in attrs.fields(Limit)}
    assert names == wanted


def test_the_usual_emulator_is_the_real_limit() -> None:
    """20 in 10 s with Retry-After, tasks of 8 s that succeed; `none` is no limit."""
    script = script_of(EmulatorOptions())
    assert script.limit == Limit(20, 10.0, retry_after="seconds")
    assert script.plan_for(0, {}) == Plan(duration=8.0)
    assert script_of(options_of("--limit none")).limit is None


@pytest.mark.parametrize("words", NONSENSE)
def test_nonsense_is_told_with_what_to_give(words: str) -> None:
    """Exit code 2 and a sentence, before anything is listened on."""
    with pytest.raises(UsageError, match=re.escape(NONSENSE[words])):
        script_of(options_of(words))


def test_a_share_of_the_tasks_fails_the_same_in_every_run() -> None:
    """`--moderate 0.2 --fail 0.1` meets about so many, and each time the same ones."""
    script, again = (script_of(options_of("--moderate 0.2 --fail 0.1")) for _ in range(2))
    outcomes = [script.plan_for(index, {}).outcome for index in range(2000)]
    assert 340 <= outcomes.count("moderated") <= 460
    assert 150 <= outcomes.count("fail") <= 250
    assert outcomes == [again.plan_for(index, {}).outcome for index in range(2000)]


async def test_a_line_says_what_a_request_was() -> None:
    """Endpoint, answer, task, how long to wait, the fault, how long it took; in one line, whatever came."""
    async with Emulator(Script(render=False)) as emulator:
        refused = Exchange(0.0, 0.0123, "createTask", 200, 429, retry_after="7")
        cut = Exchange(0.0, 0.5, "recordInfo", None, task_id="no\nid", fault="cut_after")
        hostile = Exchange(0.0, 0.0, "/a\x1b[2J\nb", 404, 404)
        callback = CallbackCall(0.0, "f00", "http://x/\n", 2, None)
        assert line_of(refused, emulator) == "createTask   200, 429  Retry-After: 7  12 ms"
        assert line_of(cut, emulator) == "recordInfo   cut       no id  fault cut_after  500 ms"
        assert "\n" not in line_of(hostile, emulator)
        assert line_of(callback, emulator) == "callback     no answer f00  to http://x/, attempt 2"


def test_it_logs_each_request_until_ctrl_c(tmp_path: Path) -> None:
    """A process of its own: settings on stdout, a line a request on stderr, its page and ledger, 0 at the end."""
    words = [sys.executable, "-m", "flux2_async.cli", "emulator", "--port", "0", "--no-render", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, cwd=tmp_path, encoding="utf-8") as process:  # noqa: S603  ours
        assert process.stdout is not None
        head = ""
        while "}" not in head:
            head += process.stdout.readline()
        base_url = json.loads(head)["APIKLEY_BASE_URL"]
        given = {"prompt": "a\x1b[2J kettle", "aspect_ratio": "1:1", "resolution": "1K"}
        body = {"model": "flux-2/pro-text-to-image", "input": given}
        headers = {"Authorization": "Bearer emulator-key", "Content-Type": "application/json"}
        request = urllib.request.Request(  # noqa: S310  ours
            f"{base_url}/api/v1/jobs/createTask", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310  ours
            task_id = json.load(answer)["data"]["taskId"]
        with urllib.request.urlopen(f"{base_url}/ledger") as answer:  # noqa: S310  ours
            assert json.load(answer)["accepted"] == [task_id]
        with urllib.request.urlopen(f"{base_url}/") as answer:  # noqa: S310  ours
            assert "<title>flux2 emulator</title>" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert re.search(
        rf"^\d\d:\d\d:\d\d\.\d{{3}}  createTask   200       {task_id}  'a.*kettle'  \d+ ms$", err, re.MULTILINE
    )
    assert "\x1b" not in err
    assert err.endswith("stopped; 1 task was accepted\n")
    # The page is no client.
    assert "/ledger" not in err


def test_help_names_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    """`flux2 emulator --help` has them all."""
    assert run(["emulator", "--help"]) == 0
    out = capsys.readouterr().out
    for words in KNOBS:
        assert words.split()[0] in out
