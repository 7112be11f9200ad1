"""Access to the viewer: the address it listens on, pages of other sites, and the size of uploads."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shapespace.viewer.scene import MAX_UPLOAD, too_large

if TYPE_CHECKING:
    import viser

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def same_site(origin: str | None, host: str | None, bound: str) -> bool:
    """Whether a connection comes from a page of this server, so that no other site can use it through the browser.

    `origin` and `host` are headers of the request; programs send no origin. A server that is bound to a loopback
    address (`bound`) accepts only loopback names as host: otherwise the name of another site could point here (DNS
    rebinding).
    """
    if origin is None:
        return True
    requested = urlsplit(f"//{host}")
    return urlsplit(origin).netloc == host and (bound not in LOOPBACK or requested.hostname in LOOPBACK)


def limit_uploads(client: "viser.ClientHandle", refuse: Callable[[str], None]) -> None:
    """Accept one upload at a time, of at most `MAX_UPLOAD` bytes and no more than the page announced.

    viser has no such setting and stores all that is sent; here its two handlers are replaced by guarded ones.
    `refuse` gets the message for the page.
    """
    from viser._messages import FileTransferPart, FileTransferPartAck, FileTransferStartUpload

    gui: Any = client.gui
    interface, uploads = gui._websock_interface, gui._current_file_upload_states

    def reject(message: FileTransferStartUpload | FileTransferPart, reason: str) -> None:
        # The button of the page waits until all bytes are acknowledged; zero of zero releases it.
        interface.queue_message(FileTransferPartAck(message.source_component_uuid, message.transfer_uuid, 0, 0))
        refuse(reason)

    def start(client_id: Any, message: FileTransferStartUpload) -> None:
        uploads.clear()  # drops an unfinished upload
        if message.size_bytes > MAX_UPLOAD:
            reject(message, str(too_large(message.filename, message.size_bytes)))
        else:
            gui._handle_file_transfer_start(client_id, message)

    def part(client_id: Any, message: FileTransferPart) -> None:
        state = uploads.get(message.transfer_uuid)
        if state is None:
            return
        if state["transferred_bytes"] + len(message.content) > state["total_bytes"]:
            del uploads[message.transfer_uuid]
            reject(message, f"{state['filename']}: more bytes than the page announced. The upload is refused.")
        else:
            gui._handle_file_transfer_part(client_id, message)

    for kind, handler, guarded in (
        (FileTransferStartUpload, gui._handle_file_transfer_start, start),
        (FileTransferPart, gui._handle_file_transfer_part, part),
    ):
        interface.unregister_handler(kind, handler)
        interface.register_handler(kind, guarded)


def check_address(host: str, port: int) -> None:
    """Raise `OSError` for an address that cannot be listened on; viser would try a thousand ports and then wait."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=kind).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"--host {host} --port {port}: cannot listen ({reason}). Pass another --port (0 takes a free one), or "
            "--host with an address of this machine."
        ) from None
