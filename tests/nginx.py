"""A limit that we did not write: nginx's `limit_req`, in front of a service."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emulated import free_port
from programs import program

CREATE_TASK = "/api/v1/jobs/createTask"
RECORD_INFO = "/api/v1/jobs/recordInfo"

CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    limit_req_zone $binary_remote_addr zone=limited:1m rate=5r/s;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {service}; }}
        location {path} {{
            limit_req zone=limited;
            {refusing}
            proxy_pass {service};
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, service: str, path: str, refusing: str) -> Iterator[str]:
    """Run it in front of a service, with five requests a second for a path; give its address."""
    folder.mkdir()
    port = free_port()
    text = CONFIGURATION.format(folder=folder, service=service, port=port, path=path, refusing=refusing)
    (folder / "nginx.conf").write_text(text)
    command = [program("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command) as running:  # noqa: S603  the program under test
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()


def _wait_for(port: int) -> None:
    for _ in range(3000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError("nginx does not listen")
