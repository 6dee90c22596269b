"""gcp_storage_emulator, with the one precondition that a workdir's lease is built on.

    python -m tests.workdirs.gcs_server PORT

Of what the service's reference says of `ifGenerationMatch=0` it knows nothing: to create an object
only if there is none of its name, else 412.
"""

import http
import http.server
import sys
import threading
import time

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

LOCK = threading.Lock()
insert, handle = objects.insert, server.Router.handle


def insert_if_absent(request, response, storage, *args, **kwargs):
    if request.query.get("ifGenerationMatch") != ["0"]:
        return insert(request, response, storage, *args, **kwargs)
    name = request.query.get("name", [None])[0] or request.data["meta"]["name"]
    try:
        storage.get_file_obj(request.params["bucket_name"], name)
    except NotFound:
        return insert(request, response, storage, *args, **kwargs)
    response.status = http.HTTPStatus.PRECONDITION_FAILED
    response.json({"error": {"code": 412, "message": "conditionNotMet"}})


def handle_alone(router, method):
    with LOCK:  # its storage is for one at a time
        handle(router, method)


def main() -> None:
    for _, methods in server.HANDLERS:
        for verb, handler in methods.items():
            if handler is insert:
                methods[verb] = insert_if_absent
    server.Router.handle = handle_alone
    server.server.HTTPServer = http.server.ThreadingHTTPServer
    with server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True):
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
