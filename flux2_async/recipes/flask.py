# Install in a virtual environment: pip install flux2-async flask gunicorn
# Start it: gunicorn --threads 32 "app:create_app()" (or, to try it: flask --app app run)
"""A backend on Flask: each request waits for its picture in a thread of the server, all share one session.

Start it without `--preload`: a process that was forked from one with an open session has none. With more than one
worker process give the session a coordination, such as `HostCoordination()`.
"""

from flask import Flask, request
from flask.typing import ResponseReturnValue

from flux2_async import TextToImage, errors
from flux2_async.blocking import BlockingSession


def create_app() -> Flask:
    """Make the application of one process; its session is closed when the process ends."""
    app, flux = Flask(__name__), BlockingSession()
    flux.open()

    @app.post("/orders/<order>")
    def create(order: str) -> ResponseReturnValue:
        """Make the picture of an order once, however often it is asked for."""
        task = flux.submit(TextToImage(request.form["prompt"], tier="pro"), key=order, max_wait=10.0)
        return {"id": task.id, "urls": task.result(timeout=100).urls}

    @app.errorhandler(errors.Flux2Error)
    def explain(error: errors.Flux2Error) -> ResponseReturnValue:
        """Say why an order has no picture."""
        return {"error": str(error)}, 422 if isinstance(error, errors.InvalidRequestError) else 502

    return app
