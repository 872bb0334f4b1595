"""SHA-256 digests of files and clips. Those of files are cached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ditflow.errors import DitflowError
from ditflow.files import cache_folder, regular_file, whole_or_absent
from ditflow.video import Clip

logger = logging.getLogger(__name__)

LARGE = 1e8  # bytes that take a noticeable time
SETTLED = 2.0  # seconds: a file that changed later than this may change again with the same time stamps


def clip_digest(clip: Clip) -> str:
    """The digest of a clip's frames, their shape and their rate."""
    facts = json.dumps([list(clip.frames.shape), *clip.frame_rate.as_integer_ratio()])
    digest = hashlib.sha256(facts.encode())
    digest.update(clip.frames)
    return digest.hexdigest()


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """The digests of files by the names given."""
    new = [path.stat().st_size for path in files.values() if not os.path.exists(digest_cache(path))]
    if sum(new) > LARGE:
        logger.info("hashing weights, once; the result is cached")
    with ThreadPoolExecutor() as threads:
        return dict(zip(files, threads.map(file_digest, files.values()), strict=True))


def file_digest(path: Path) -> str:
    """The digest of a file's bytes.

    A cached digest is trusted as long as the file's path, device, inode, size, modification time and change
    time are the same. Programs can set the modification time, but only the system sets the change time.
    """
    cached = digest_cache(path)
    try:
        with regular_file(cached).open(encoding="ascii") as file:
            if re.fullmatch("[0-9a-f]{64}", digest := file.read(65)):
                return digest
    except (DitflowError, OSError, ValueError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settled = time.time() - max(path.stat().st_mtime, path.stat().st_ctime) > SETTLED
    if not settled or digest_cache(path) != cached:  # it may have changed while it was read
        return digest
    try:
        with whole_or_absent(cached) as unfinished:
            unfinished.write_text(digest, encoding="ascii")
    except OSError as error:  # the cache is optional
        logger.debug("%s is not cached: %s", cached, error)
    return digest


def digest_cache(path: Path) -> Path:
    """The path at which the digest of a file in its present state is cached."""
    status = os.stat(path)
    facts = [str(path.resolve()), status.st_dev, status.st_ino, status.st_size]
    facts += [status.st_mtime_ns, status.st_ctime_ns]
    return cache_folder() / "weights" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()
