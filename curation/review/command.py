"""What `flashvideo review` does: starts the page, ends it in order, or prints the summary."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from curation.expression import QueryError, any_of
from curation.review.labels import ReviewError, read_labels, recover
from curation.review.server import Access, address_of, listen, serve
from curation.review.session import KINDS, ReviewSettings, Session, summary_of
from curation.store import MissingStoreError, Store

SHOWN_DISPUTES = 20


def review(settings: ReviewSettings, host: str, port: int, browser: bool) -> None:
    """Serves the page until Ctrl-C. Raises QueryError or ReviewError (one line) for every mistake of the user."""
    if settings.kind not in KINDS:
        raise ReviewError(f"--kind {settings.kind}: {' or '.join(KINDS)}")
    with closing(listen(host, port)) as listening:
        access = Access(host)
        session = Session(settings)
        if session.book.recovered:
            tell(f"brought in from a sitting that was killed, labels: {session.book.recovered}")
        pool, total = len(session.pool.ids), session.pool.matching
        more = f" of {total} that match" if total > pool else ""
        done = session.progress()
        order = f"order {settings.order}, kind {settings.kind}"
        tell(f"{settings.annotator}: {pool} clips{more}, {done['done']} done, {done['left']} left; {order}")
        address = address_of(host, listening.getsockname()[1], access)

        def ready() -> None:
            tell(f"review: {address}\nCtrl-C ends")
            if browser and _has_screen():
                webbrowser.open(address)

        serve(session, access, listening, ready)
        tell(farewell(session))


def _has_screen() -> bool:
    """Without one, `webbrowser` would start a browser inside the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def tell(message: str) -> None:
    """A line on the terminal, at once."""
    print(message, flush=True)


def farewell(session: Session) -> str:
    """What was labelled in this sitting, how much is left, and what makes it take effect."""
    counts = [f"{session.counts[word]} {word}" for word in ("kept", "dropped", "compared", "skipped", "undone") if session.counts[word]]
    progress = session.progress()
    lines = [f"\n{', '.join(counts) or 'nothing labelled'}; {progress['left']} left. The labels are in the store."]
    if counts:
        lines.append(f"so that they take effect: {session.settings.next_command}")
    return "\n".join(lines)


def print_summary(root: Path, subset_size: int, next_command: str) -> None:
    """Annotators, agreement and disputes on the terminal. Raises QueryError where there is no store."""
    try:
        Store.open(root / "store", create=False)
    except MissingStoreError as error:
        raise QueryError(str(error)) from None
    store = Store.open(root / "store")
    recover(store, root / "review")
    kept = set(store.read("clips", ["clip_id"], "state = 'kept'")["clip_id"].to_pylist())
    facts = summary_of(list(read_labels(store)), kept, subset_size)
    disputed = any_of("clip_id", [dispute["clip_id"] for dispute in facts["disputes"][:SHOWN_DISPUTES]])
    clips = {row["clip_id"]: row for row in store.read("clips", ["clip_id", "uri", "start_us", "end_us"], disputed).to_pylist()}
    print(summary_text(facts, clips, next_command))


def summary_text(facts: Mapping[str, Any], clips: Mapping[str, Mapping[str, Any]], next_command: str) -> str:
    """The summary as lines to print."""
    if not facts["annotators"]:
        return "no labels yet: flashvideo review"
    lines = [f"{'annotator':<20} {'kept':>7} {'dropped':>8} {'skipped':>8} {'compared':>9}  last label"]
    for each in facts["annotators"]:
        lines.append(
            f"{each['name']:<20} {each['kept']:>7} {each['dropped']:>8} {each['skipped']:>8} {each['compared']:>9}  {each['last']}"
        )
    subset = facts["subset"]
    lines.append(f"\npreference subset: {subset['chosen']} kept clips of {subset['size']} wanted, by the majority of their annotators")
    if subset["not_kept"]:
        lines.append(f"{subset['not_kept']} more are chosen by people and turned away by the policy")
    if facts["agreements"]:
        lines.append(f"\n{'annotators':<34} {'clips in common':>16} {'agree':>7} {'kappa':>7}")
        for each in facts["agreements"]:
            kappa = "-" if each["kappa"] is None else f"{each['kappa']:.2f}"
            lines.append(f"{' and '.join(each['names']):<34} {each['clips']:>16} {100 * each['share']:>6.0f}% {kappa:>7}")
    else:
        lines.append("\nno clip was kept or dropped by two annotators: agreement is unknown")
    if facts["disputes"]:
        lines.append(f"\n{len(facts['disputes'])} disputed clips")
        lines += [_dispute_line(each, clips.get(each["clip_id"])) for each in facts["disputes"][:SHOWN_DISPUTES]]
        rest = len(facts["disputes"]) - SHOWN_DISPUTES
        lines += [f"  and {rest} more"] if rest > 0 else []
    return "\n".join([*lines, f"\nso that they take effect: {next_command}"])


def _dispute_line(dispute: Mapping[str, Any], clip: Mapping[str, Any] | None) -> str:
    place = "not in the store any more"
    if clip is not None:
        name = str(clip["uri"] or "").rsplit("/", 1)[-1]
        place = f"{name} {(clip['start_us'] or 0) / 1e6:.2f}-{(clip['end_us'] or 0) / 1e6:.2f} s"
    return f"  {dispute['clip_id'][:12]}  {place}  keep: {', '.join(dispute['keep'])}; drop: {', '.join(dispute['drop'])}"
