"""What opening a session on a server comes to."""

import re

from emulated import session_for

from flux2_async import ConfigurationError, TextToImage
from flux2_async.coordination import Coordination
from flux2_async.emulator import Emulator, Plan, Script

SECRET = "s3cr3t-password"


async def opened(coordination: Coordination) -> Exception | None:
    """Open a session, make a picture under a key, and give the error, if there is one."""
    async with Emulator(Script(plans=Plan(duration=0.05), render=False)) as emulator:
        flux = session_for(emulator, coordination=coordination)
        try:
            await flux.open()
            await (await flux.submit(TextToImage("a red kettle"), key="k")).result()
        except Exception as error:  # noqa: BLE001  it is what is looked at
            return error
        finally:
            await flux.aclose()
    return None


def assert_hopeless(error: Exception | None, says: str) -> None:
    assert isinstance(error, ConfigurationError)
    assert re.search(says, str(error)), error
    assert SECRET not in repr(error)
    assert error.__cause__ is None
