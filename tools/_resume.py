"""Chunked work on many scans that continues after an interruption.

Every chunk of sixteen scans is stored as OUT/unfinished/KEY/00000.json with the codes of its fits; KEY is a digest of
the settings. The chunks do not depend on interruptions or on the number of processes, so the result does not either.
They are removed when the result is written.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from shapespace.fitting.result import Fit, load_fits, save_fits
from shapespace.io.atomic import claimed, make_folder, replacing
from shapespace.space import ShapeSpace

CHUNK_SIZE = 16  # scans; arbitrary. It is part of the result: fits of other batches differ by rounding
_FORMAT = 2  # part of the digest: chunks of other formats are not used

Item = TypeVar("Item")


@dataclass(frozen=True)
class Chunk:
    """Results for some scans."""

    fits: Sequence[Fit]
    """Fits of the scans, or none. Residuals are not stored."""
    metadata: Sequence[Mapping[str, Any]]
    """JSON records of the scans."""


@contextmanager
def resumable(
    out: Path,
    settings: Mapping[str, Any],
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Chunk],
    space: ShapeSpace,
    shard: str | None = None,
) -> Iterator[Chunk | None]:
    """Work through the items in chunks and yield all results; the block writes them to `out`.

    `settings` are those that the results depend on. A `shard` i/n (the i-th of n processes) works on every n-th chunk,
    and None is yielded as long as chunks of other shards are missing.

    Raises:
        ValueError: The shard is invalid.
        BlockingIOError: The same command is running in another process.

    """
    parts = [items[first : first + CHUNK_SIZE] for first in range(0, len(items), CHUNK_SIZE)]
    index, count = parse_shard(shard)
    key = json.dumps({"format": _FORMAT, **settings}, sort_keys=True, default=str)
    folder = out / "unfinished" / hashlib.sha256(key.encode()).hexdigest()[:16]
    files = [folder / f"{number:05d}.json" for number in range(len(parts))]
    make_folder(folder)
    with claimed(folder, shared=shard is not None), _remove_if_empty(folder, folder.parent, out):
        done = sum(file.exists() for file in files)
        if done:
            print(f"{done} of {len(parts)} chunks are finished already", file=sys.stderr)
        todo = [pair for pair in list(zip(files, parts, strict=True))[index::count] if not pair[0].exists()]
        for file, part in tqdm(todo, desc="chunk", unit="chunk", disable=len(todo) < 2):
            _save(file, work(part), space)
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(folder))
            missing = sum(not file.exists() for file in files)
        except OSError:  # another shard is running, or has just written the result
            if shard is None:
                raise
            missing = -1
        if missing:
            reason = "other shards are running" if missing < 0 else f"{missing} of {len(parts)} chunks are missing"
            print(
                f"shard {shard} finished, {reason}. The last shard writes the result; "
                "so does the same command without --shard."
            )
            yield None
            return
        chunks = [_load(file, space) for file in files]
        yield Chunk(
            [fit for chunk in chunks for fit in chunk.fits], [row for chunk in chunks for row in chunk.metadata]
        )
        shutil.rmtree(folder)
        if list(folder.parent.iterdir()):
            print(
                f"note: {folder.parent} has chunks of commands with other settings. Remove those that are not needed."
            )
        else:
            folder.parent.rmdir()


@contextmanager
def _remove_if_empty(*folders: Path) -> Iterator[None]:
    """Remove these folders, the innermost first, if the block fails and leaves them empty."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in folders:
                folder.rmdir()
        raise


def given_shard(shard: str | None) -> str | None:
    """The shard of this process: that of --shard, or under torchrun that of its rank; None without both."""
    if shard is None and "RANK" in os.environ:
        return f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    return shard


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Index of the shard (from 0) and number of shards; (0, 1) for None.

    Raises `ValueError` for an invalid shard.
    """
    try:
        index, count = (1, 1) if shard is None else map(int, shard.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise ValueError(f"--shard {shard}: not a valid shard. Pass --shard 1/4, 2/4, 3/4 and 4/4 to four processes.")
    return index - 1, count


def _save(file: Path, chunk: Chunk, space: ShapeSpace) -> None:
    """Write a chunk; the JSON file comes last, so that its codes exist if it does."""
    if chunk.fits:
        save_fits(file.with_suffix(".safetensors"), chunk.fits, space.model)
    content = {"metadata": chunk.metadata, "seconds": [fit.seconds for fit in chunk.fits]}
    with replacing(file) as part:
        part.write_text(json.dumps(content))


def _load(file: Path, space: ShapeSpace) -> Chunk:
    content = json.loads(file.read_text())
    codes = file.with_suffix(".safetensors")
    fits = load_fits(codes, space.model) if codes.exists() else []
    timed = [replace(fit, seconds=seconds) for fit, seconds in zip(fits, content["seconds"], strict=True)]
    return Chunk(timed, content["metadata"])
