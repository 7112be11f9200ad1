"""Work on many scans in pieces that are kept: a line that was killed goes on from what it had finished.

Each sixteen scans leave OUT/unfinished/KEY/00000.json and, if they were fitted, their codes beside it; KEY is a digest
of the settings. The pieces are the same however often the line was killed and however many processes share them, so
the result is, too. When it is written, they are removed.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from shapespace.fitting.result import Fit, load_fits, save_fits
from shapespace.io.atomic import claimed, replacing
from shapespace.space import ShapeSpace

SIZE = 16  # scans of a piece
_FORMAT = 1

Item = TypeVar("Item")


@dataclass(frozen=True)
class Chunk:
    """What is known of some scans: their fits, if they were fitted (kept without residuals), and what JSON can tell."""

    fits: Sequence[Fit]
    metadata: Sequence[Mapping[str, Any]]


@contextmanager
def resumable(
    out: Path,
    about: Mapping[str, Any],
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Chunk],
    space: ShapeSpace,
    shard: str | None = None,
) -> Iterator[Chunk | None]:
    """Work through the items and yield what is known of all of them, for the block to write the result in `out`.

    `about` are the settings that the results depend on. With a `shard` i/n (the i-th of n processes) only every n-th
    piece is made, and where others are still missing then, None is yielded.

    Raises:
        ValueError: The shard is none.
        BlockingIOError: The same line is at work in another process.

    """
    parts = [items[first : first + SIZE] for first in range(0, len(items), SIZE)]
    index, count = parse_shard(shard)
    said = json.dumps({"format": _FORMAT, **about}, sort_keys=True, default=str)
    folder = out / "unfinished" / hashlib.sha256(said.encode()).hexdigest()[:16]
    files = [folder / f"{number:05d}.json" for number in range(len(parts))]
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, shared=shard is not None), _nothing_left(folder, folder.parent, out):
        done = sum(file.exists() for file in files)
        if done:
            print(f"{done} of {len(parts)} pieces are there from before", file=sys.stderr)
        todo = [pair for pair in list(zip(files, parts, strict=True))[index::count] if not pair[0].exists()]
        for file, part in tqdm(todo, desc="piece", unit="piece", disable=len(todo) < 2):
            _save(file, work(part), space)
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder))
            missing = sum(not file.exists() for file in files)
        except OSError:  # another shard is at work, or has just written the result
            if shard is None:
                raise
            missing = -1
        if missing:
            which = "other shards are still at work" if missing < 0 else f"{missing} of {len(parts)} pieces are missing"
            print(f"shard {shard} is done, {which}: the last one writes the result, or the line without --shard")
            yield None
            return
        pieces = [_load(file, space) for file in files]
        yield Chunk(
            [fit for piece in pieces for fit in piece.fits], [row for piece in pieces for row in piece.metadata]
        )
        shutil.rmtree(folder)
        others = list(folder.parent.iterdir())
        if others:
            print(f"note: {folder.parent} has pieces of lines with other settings; what nobody goes on with can go.")
        else:
            folder.parent.rmdir()


@contextmanager
def _nothing_left(*folders: Path) -> Iterator[None]:
    """Remove folders, from the innermost, if the block fails before there is anything in them."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in folders:
                folder.rmdir()
        raise


def parse_shard(said: str | None) -> tuple[int, int]:
    """The place of the first piece, and the number of shards; (0, 1) for a line alone.

    Raises `ValueError` for what is no shard.
    """
    try:
        index, count = (1, 1) if said is None else map(int, said.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise ValueError(f"--shard {said} is no share of the work: say 1/4, 2/4, 3/4 and 4/4 for four processes.")
    return index - 1, count


def _save(file: Path, piece: Chunk, space: ShapeSpace) -> None:
    """Write a piece; the file itself comes last."""
    if piece.fits:
        save_fits(file.with_suffix(".safetensors"), piece.fits, space.model)
    whole = {"told": piece.metadata, "seconds": [fit.seconds for fit in piece.fits]}
    with replacing(file) as part:
        part.write_text(json.dumps(whole))


def _load(file: Path, space: ShapeSpace) -> Chunk:
    whole = json.loads(file.read_text())
    codes = file.with_suffix(".safetensors")
    fits = load_fits(codes, space.model) if codes.exists() else []
    return Chunk([replace(fit, seconds=took) for fit, took in zip(fits, whole["seconds"], strict=True)], whole["told"])
