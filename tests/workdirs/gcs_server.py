"""gcp_storage_emulator, with the preconditions that TensorStore and a workdir's lease are built on.

    python -m tests.workdirs.gcs_server PORT

Of what the service's reference says of them it knows nothing: an object is written only if its
generation is `ifGenerationMatch`, 0 where there is none, else 412; and is read only if it is not
`ifGenerationNotMatch`, else 304; what is read comes with its generation, or whoever reads to write
again, as TensorStore does after a lost answer, cannot say what. Nor does it remember uploads that
are done.
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
DONE: dict = {}
handle, upload_partial = server.Router.handle, objects.upload_partial


def generation(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


def refusing(handler):
    """The handler, which is called where the precondition holds."""

    def refuse(request, response, storage, *args, **kwargs):
        (same,) = request.query.get("ifGenerationMatch", [None])
        (other,) = request.query.get("ifGenerationNotMatch", [None])
        name = request.params.get("object_id") or request.query.get("name", [None])[0]
        name = name or request.data["meta"]["name"]
        now = generation(storage, request.params["bucket_name"], name)
        if same not in (None, now):
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "conditionNotMet"}})
            return
        if other == now:
            response.status = http.HTTPStatus.NOT_MODIFIED
            return
        if handler is not objects.insert:
            response["x-goog-generation"] = now
        handler(request, response, storage, *args, **kwargs)

    return refuse


def remembering(upload):
    """The handler of a resumable upload's parts, which says again what it said of the last one.

    Its answer may get lost, and be asked for; the emulator has then forgotten the upload.
    """

    def remember(request, response, storage, *args, **kwargs):
        number = request.query["upload_id"][0]
        if number in DONE:
            response.json(DONE[number])
            return
        there = storage.resumable.get(number)
        upload(request, response, storage, *args, **kwargs)
        if there is not None and number not in storage.resumable:
            DONE[number] = storage.get_file_obj(there["bucket"], there["name"])

    return remember


def handle_alone(router, method):
    with LOCK:  # its storage is for one at a time
        handle(router, method)


def main() -> None:
    objects.upload_partial = remembering(upload_partial)  # the name that insert calls
    wrapped = {upload_partial: objects.upload_partial} | {
        f: refusing(f) for f in (objects.insert, objects.get, objects.download)
    }
    for _, methods in server.HANDLERS:
        methods |= {verb: wrapped.get(handler, handler) for verb, handler in methods.items()}
    server.Router.handle = handle_alone
    server.server.HTTPServer = http.server.ThreadingHTTPServer
    with server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True):
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
