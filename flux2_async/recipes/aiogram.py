# Install in a virtual environment: pip install flux2-async aiogram
# Start it: BOT_TOKEN=... python app.py
"""A Telegram bot on aiogram: a photograph with a caption comes in, the edited picture goes back.

Telegram may deliver a message twice; that is one answer, and by its `key` one charge. Each chat is a group: chats take
turns, have three pictures on their way at most, and 35 credits in any 24 hours, which is seven pictures.
"""

import os
import sys

from aiogram import Bot, Dispatcher, F
from aiogram.types import FSInputFile, Message, PhotoSize

from flux2_async import Budget, BudgetExceededError, ContentModeratedError, Flux2Error, Flux2Session, ImageToImage

flux: Flux2Session = Flux2Session(max_running_per_group=3, budget=Budget(35, per=86400.0, group=True))
taken: set[str] = set()  # of this process; what comes again after a restart is answered again
dispatcher: Dispatcher = Dispatcher()
dispatcher.startup.register(flux.open)
dispatcher.shutdown.register(flux.aclose)


@dispatcher.message(F.photo[-1].as_("photo"), F.caption.as_("caption"))
async def edit(message: Message, bot: Bot, photo: PhotoSize, caption: str) -> None:
    """Send the edited picture back, or say why there is none."""
    if (key := f"{message.chat.id}/{message.message_id}") in taken:
        return
    taken.add(key)
    content = await bot.download(photo)
    assert content is not None
    try:
        request = ImageToImage(caption, images=[content.read()], tier="pro")
        task = await flux.submit(request, key=key, group=f"chat {message.chat.id}")
        paths = await flux.download(await task.result(timeout=600), "pictures")
    except ContentModeratedError:
        await message.reply("The content filter refused this one. Try another picture or other words.")
    except BudgetExceededError as error:
        hours = int((error.retry_after or 86399) // 3600 + 1)
        await message.reply(f"These are all of your pictures for today. Send this one again in {hours} h.")
    except Flux2Error as error:
        await message.reply(f"That failed: {error}")
    else:
        await message.reply_photo(FSInputFile(paths[0]))


if __name__ == "__main__":
    dispatcher.run_polling(Bot(os.environ.get("BOT_TOKEN") or sys.exit("set BOT_TOKEN to what @BotFather gave you")))
