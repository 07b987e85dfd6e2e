"""Between Gradio and the network: which files are served, under which headers, where uploads go, and what a caller is told
when something fails.

Gradio alone would serve every upload from the Space's own address, so that an uploaded page could run its script there, and
would print what fails with the names of the files in it.
"""

import logging
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.route_utils import MultiPartException, upload_fn
from gradio.routes import file_upload_statuses
from gradio.utils import get_upload_folder
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hosting import Calls
from texts import LANGUAGES, say
from uploads import MAX_UPLOAD_BYTES, UploadError

LOG = logging.getLogger("ctfm.space")
FILE_ADDRESS = re.compile(r"/file[=/](.*)", re.DOTALL)

# What the page may load and run: its own files only, so that nothing on it can send a scan to another host.
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio starts inline and compiles handlers from text (`js=`)
        "style-src 'self' 'unsafe-inline'",  # Svelte and NiiVue set styles on elements
        "img-src 'self' data: blob:",  # NiiVue holds its font and its shading pictures as data:
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",  # NiiVue fetches the scan from here, its font's measures from data:
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space",  # the Hub shows a Space in a frame
    )
)
FILE_POLICY = "default-src 'none'; sandbox"  # a file is fetched or saved; opened as a page, it may do nothing


class Doors:
    """ASGI middleware: serves files of `folders` and no other, and sets the security headers of every response.

    A file always comes as an attachment: the page's scripts, pictures and scans load all the same.
    """

    def __init__(self, app: ASGIApp, folders: Sequence[Path]) -> None:
        self.app = app
        self.folders = [folder.resolve() for folder in folders]

    def serves(self, path: str) -> bool:
        return "\0" not in path and any(Path(path).resolve().is_relative_to(folder) for folder in self.folders)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = FILE_ADDRESS.search(scope["path"])
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Content-Security-Policy"] = FILE_POLICY if asked else PAGE_POLICY
                if asked and message["status"] < 400:
                    headers["Content-Disposition"] = "attachment"
            await send(message)

        try:
            if asked and not self.serves(asked[1]):
                await PlainTextResponse("Not found", 404)(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except Exception as error:  # the last place before the server prints it with every value in it
            log_without_values(error)
            if not has_begun:
                answer = JSONResponse({"detail": say("en", "error_internal")}, 500)
                await answer(scope, receive, send_with_headers)


async def receive_upload(request: Request) -> Response:
    """Gradio's upload, into a folder of its own that nobody guesses.

    Gradio's route stores equal files at one path, which is known to whoever has the file and its name: one person's call would
    take another's upload.
    """
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    try:
        files, _, _ = await upload_fn(
            request,
            folder,
            MAX_UPLOAD_BYTES,
            request.query_params.get("upload_id"),
            upload_progress=file_upload_statuses,
        )
    except MultiPartException as error:
        shutil.rmtree(folder, ignore_errors=True)
        return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
    except BaseException:  # the visitor went away, too
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return JSONResponse([str(file) for file in files])


def app_settings(folders: Sequence[Path], routes: Sequence[Route] = ()) -> dict[str, Any]:
    """What Gradio makes its FastAPI application with; `folders` is what it serves. The routes come before Gradio's own."""
    return {
        "middleware": [Middleware(Doors, folders=folders)],
        "routes": [Route("/gradio_api/upload", receive_upload, methods=["POST"]), *routes],
    }


class Site(gr.Blocks):
    """Blocks whose every failed call is answered in a sentence, and logged without a value: page, API and MCP end here.

    `language` is the component that says in which language; `calls` counts how calls end.
    """

    language: gr.Radio | None = None
    calls: Calls

    async def process_api(self, block_fn: Any, inputs: list[Any], *arguments: Any, **named: Any) -> dict[str, Any]:
        began, outcome = time.perf_counter(), "cancelled"
        try:
            answer = await super().process_api(block_fn, inputs, *arguments, **named)
            outcome = "done"
            return answer
        except gr.Error as error:
            error.print_exception = False
            outcome = "refused"
            raise
        except UploadError as error:
            outcome = "refused"
            raise tell(self.language_of(block_fn, inputs), error) from None
        except Exception as error:
            outcome = "failed"
            log_without_values(error)
            raise tell(self.language_of(block_fn, inputs), UploadError("error_internal")) from None
        finally:
            function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
            self.calls.add(str(function.name), outcome, time.perf_counter() - began)

    def language_of(self, block_fn: Any, inputs: list[Any]) -> str:
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        for component, value in zip(function.inputs, inputs, strict=False):
            if component is self.language and value in tuple(LANGUAGES):
                return value
        return "en"


def tell(language: str, error: UploadError) -> gr.Error:
    message = f"{say(language, error.key)} {escape(error.detail)}".strip()
    return gr.Error(message, title=say(language, "error"), duration=15, print_exception=False)


def log_without_values(error: Exception) -> None:
    """The kind of an error and where it was raised; its message may hold a file's name or a value of its header."""
    places = traceback.extract_tb(error.__traceback__)[-12:]
    LOG.error("%s\n%s", type(error).__name__, "\n".join(f"  {p.filename}:{p.lineno} {p.name}" for p in places))
