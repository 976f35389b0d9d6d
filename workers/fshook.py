"""The fs worker's calls of the freeze hook, through the hook worker, each paired in the journal.

`hook C freeze` and `hook C thaw` are written before the call, so that a worker that dies in it is not called for the same
thing again; only when the hook worker itself dies in `thaw` is that repeated, because it may not have run.
"""

from __future__ import annotations

import os
import select
import time

from privsep import hookwire, wiring
from protocol.errors import CommandError
from workers.fsstate import Own, orphaned, record, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.runtime import Context

HOOK_MARGIN: Final = 5.0  # seconds that the hook worker has beyond the hook's own limit
NEW_HOOK_WORKER: Final = 3.0  # seconds to wait for a hook worker in place of one that died


def _call_hook(ctx: Context, own: Own, what: int) -> tuple[int, str]:
    """DONE, FAILED or CUT, and the text for the host.  Raises HookLost."""
    fd = ctx.fds.get("hook", -1)
    if fd != own.hook_fd:  # a new worker in place of one that died
        if own.hook is not None:
            own.hook.close()
        own.hook = wiring.adopt(fd)
        own.hook_fd = fd
    if own.hook is None:
        raise hookwire.HookLost("it is not running")
    own.number += 1
    limit = float(ctx.setting("hook-limit", "60")) + HOOK_MARGIN
    try:
        return hookwire.call(own.hook, own.number, what, limit)
    except hookwire.HookLost:
        own.hook.close()
        own.hook = None
        ctx.fds.pop("hook", None)
        own.hook_fd = -1
        raise


def freeze_hook(ctx: Context, own: Own, cycle: int) -> None:
    """Raises CommandError, then nothing is to be frozen."""
    if not ctx.setting("fsfreeze-hook"):
        return
    write(own, f"hook {cycle} freeze")
    try:
        result, text = _call_hook(ctx, own, hookwire.FREEZE)
    except hookwire.HookLost as e:
        settle_hook(ctx, own, cycle)
        raise CommandError(f"the fsfreeze hook worker is lost: {e}") from None
    if result == hookwire.FAILED:
        # As the peer: a hook that failed by itself gets no `thaw`.
        record(ctx, own, f"hook {cycle} off")
    elif result == hookwire.CUT:
        settle_hook(ctx, own, cycle)
    if result != hookwire.DONE:
        raise CommandError(text)


def settle_hook(ctx: Context, own: Own, cycle: int) -> None:
    """Run the thaw hook where its failure is not the command's."""
    try:
        thaw_hook(ctx, own, cycle)
    except CommandError as e:
        ctx.log.error(e.desc)


def thaw_hook(ctx: Context, own: Own, cycle: int) -> None:
    """Run the thaw hook, which is not due from then on.  Raises CommandError with its text when it fails."""
    if not ctx.setting("fsfreeze-hook"):
        return
    for again in (True, False):
        record(ctx, own, f"hook {cycle} thaw")
        try:
            result, text = _call_hook(ctx, own, hookwire.THAW)
        except hookwire.HookLost as e:
            # It may or may not have run: once more is better than never.
            record(ctx, own, f"hook {cycle} again")
            if again and _new_hook_worker(ctx):
                continue
            raise CommandError(f"the fsfreeze hook worker is lost: {e}") from None
        if result != hookwire.DONE:
            raise CommandError(text)
        return


def _new_hook_worker(ctx: Context) -> bool:
    """Wait a little for the supervisor to start another one."""
    end = time.monotonic() + NEW_HOOK_WORKER
    while "hook" not in ctx.fds:
        message = from_supervisor(ctx, end)
        if message is None:
            return False
        data, fd = message
        if data == wiring.TAG_HOOK and fd is not None:
            ctx.fds["hook"] = fd
        else:
            ctx.deferred.append((data, fd))
    return True


def from_supervisor(ctx: Context, end: float) -> tuple[bytes, int | None] | None:
    """Its next message; None when there is none in time.  Ends the process when it is gone."""
    assert ctx.control is not None
    poll = select.poll()
    poll.register(ctx.control.fileno(), select.POLLIN)
    left = end - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        return None
    data, fd = wiring.receive_fd(ctx.control)
    if not data:
        orphaned(ctx)
        os._exit(0)
    return data, fd
