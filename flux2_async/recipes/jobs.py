# Install in a virtual environment: pip install "flux2-async[postgres]" fastapi uvicorn sqlalchemy
# Start it: PUBLIC_URL=https://app.example APIKLEY_CALLBACK_SECRET=... uvicorn app:app
"""A backend that survives restarts: its jobs are in SQLite or Postgres, and each is made once, whatever is killed."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import AfterValidator
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, exc, schema, sql

from flux2_async import AmbiguousSubmitError, Callbacks, Flux2Error, Flux2Session, ImageTask, TextToImage, errors
from flux2_async.coordination import HostCoordination, PostgresCoordination
from flux2_async.receivers import asgi_app

Job = dict[str, Any]
# postgresql+psycopg://...: jobs, keys and what callbacks told are all in that Postgres.
DATABASE = os.environ.get("DATABASE_URL", "sqlite:///jobs.sqlite")
# After these a job has no picture; what else can happen, as a disk that is full or cannot be written, is tried again.
FINAL = (errors.RequestRejectedError, errors.TaskFailedError, errors.EmptyResultError)
engine: Engine = create_engine(DATABASE)
columns: list[Column[str]] = [Column(name, String) for name in ("prompt", "task", "picture", "error")]
jobs: Table = Table("jobs", MetaData(), Column("id", String, primary_key=True), *columns)
going: set[asyncio.Task[list[Job]]] = set()
remote: bool = DATABASE.startswith("postgresql")
flux: Flux2Session = Flux2Session(
    coordination=PostgresCoordination(DATABASE.replace("+psycopg", "")) if remote else HostCoordination("keys.sqlite"),
    key_ttl=None,  # for ever: nobody knows when a job is gone on with
    callbacks=Callbacks(os.environ.get("PUBLIC_URL", "http://localhost:8000") + "/flux2/callback/"),
)


def run_here(statement: sql.Executable) -> list[Job]:
    """Run a statement; what it writes is on the disk when this returns."""
    with engine.begin() as connection:
        result = connection.execute(statement)
        return [dict(row) for row in result.mappings()] if result.returns_rows else []


async def run(statement: sql.Executable) -> list[Job]:
    """Run it in a thread."""
    return await asyncio.to_thread(run_here, statement)


async def task_of(job: Job) -> ImageTask:
    """Give the task that was written down, or that the key stands for; else pay for a new one."""
    if job["task"]:
        return flux.attach(job["task"])
    try:
        return await flux.submit(TextToImage(job["prompt"], tier="pro"), key=job["id"])
    except AmbiguousSubmitError as unclear:  # killed before the answer came: the callback tells which task it is
        return await flux.recover(unclear.ref)


async def make(job: Job) -> list[Job]:
    """Bring a job to its end."""
    row, end = jobs.update().where(jobs.c.id == job["id"]), Job()
    while True:
        try:
            if not end:
                await run(row.values(task=(task := await task_of(job)).id))
                end = {"picture": str((await flux.download(await task.result(), "pictures"))[0])}
            return await run(row.values(end))
        except FINAL as error:
            end = {"error": str(error)}
        except (Flux2Error, OSError, exc.SQLAlchemyError):
            await asyncio.sleep(60)


def go_on(job: Job) -> None:
    """Work on a job beside everything else."""
    going.add(task := asyncio.create_task(make(job)))
    task.add_done_callback(going.discard)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Go on with every job that has no end."""
    await run(schema.CreateTable(jobs, if_not_exists=True))
    async with flux:
        for job in await run(jobs.select().where(jobs.c.picture.is_(None), jobs.c.error.is_(None))):
            go_on(job)
        yield
        for task in going:
            task.cancel()


app: FastAPI = FastAPI(lifespan=lifespan)
app.mount("/flux2/callback", asgi_app(flux))


@app.put("/jobs/{job_id}", status_code=202)
async def create(job_id: str, prompt: Annotated[str, AfterValidator(lambda text: TextToImage(text).prompt)]) -> Job:
    """Take a job, once however often it comes; it survives every crash from here on."""
    with suppress(exc.IntegrityError):
        await run(jobs.insert().values(id=job_id, prompt=prompt))
        go_on(await read(job_id))
    return await read(job_id)


@app.get("/jobs/{job_id}")
async def read(job_id: str) -> Job:
    """Tell where a job is: its task, then its picture or its error."""
    for job in await run(jobs.select().where(jobs.c.id == job_id)):
        return job
    raise HTTPException(404, "there is no such job")
