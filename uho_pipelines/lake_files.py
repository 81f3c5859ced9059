"""The files of the lake: a local folder or an S3 prefix, behind the few operations that the lake needs.

What belongs here: bytes and names. A file appears whole or not at all: locally it is written aside, synced and renamed;
on S3 an upload becomes visible when it is complete. What the files mean is `lake.py`'s business.
"""

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from uho_pipelines.errors import UhoError

ASIDE = ".aside-"
"""What is being written has a name that begins so; left behind, it is garbage."""


class LakeUnreachableError(UhoError):
    """The lake's folder or bucket cannot be used."""

    def __init__(self, location: str, reason: str) -> None:
        self.location = location
        self.reason = reason
        super().__init__(
            f"the lake at {location} cannot be used ({reason}): set UHO_LAKE_DIR to a folder or s3://bucket/prefix"
        )


class LakeFiles:
    """Files under one root, by relative path with `/`."""

    def __init__(self, location: str, scratch: Path) -> None:
        """Open the lake at `location`; `scratch` is a local folder for what is on its way to S3."""
        self.location = location
        self.scratch = scratch
        self.local: Path | None = None
        if "://" in location and not location.startswith("file://"):
            try:
                self.remote, self.root = fs.FileSystem.from_uri(location)
            except (OSError, ValueError) as error:
                raise LakeUnreachableError(location.split("?")[0], type(error).__name__) from None
        else:
            self.local = Path(location.removeprefix("file://"))

    def free_bytes(self) -> int | None:
        """Return the bytes that are free where the lake is; None where that is unknown (S3)."""
        if self.local is None:
            return None
        self.local.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.local).free

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in `folder`, sorted; none when it is not there."""
        if self.local is not None:
            path = self.local / folder
            return sorted(item.name for item in path.iterdir() if item.is_file()) if path.is_dir() else []
        selector = fs.FileSelector(f"{self.root}/{folder}", allow_not_found=True)
        return sorted(info.base_name for info in self.remote.get_file_info(selector) if info.type == fs.FileType.File)

    def size(self, path: str) -> int | None:
        """Return a file's bytes; None when it is not there."""
        if self.local is not None:
            file = self.local / path
            return file.stat().st_size if file.is_file() else None
        info = self.remote.get_file_info(f"{self.root}/{path}")
        return info.size if info.type == fs.FileType.File else None

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None when it is not there."""
        if self.size(path) is None:
            return None
        with self.open(path) as file:
            return bytes(file.read())

    def open(self, path: str) -> Any:  # noqa: ANN401 - a pyarrow NativeFile
        """Open a file for reading at any place."""
        filesystem, root = self.filesystem()
        return filesystem.open_input_file(f"{root}/{path}")

    def filesystem(self) -> tuple[Any, str]:
        """Return pyarrow's file system and the root's path in it."""
        return (fs.LocalFileSystem(), str(self.local)) if self.local is not None else (self.remote, self.root)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        if self.local is not None:
            (self.local / path).unlink(missing_ok=True)
        elif self.size(path) is not None:
            self.remote.delete_file(f"{self.root}/{path}")

    def aside(self, folder: str) -> Path:
        """Return a new local path at which to write what `publish` will move to `folder`."""
        where = self.local / folder if self.local is not None else self.scratch
        where.mkdir(parents=True, exist_ok=True)
        return where / f"{ASIDE}{uuid.uuid4().hex}"

    def publish(self, aside: Path, path: str) -> None:
        """Have the finished file `aside` appear at `path`, whole, replacing what is there; durable on return."""
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        if self.local is not None:
            target = self.local / path
            target.parent.mkdir(parents=True, exist_ok=True)
            aside.replace(target)
            _sync_folder(target.parent)
        else:
            fs.copy_files(str(aside), f"{self.root}/{path}", fs.LocalFileSystem(), self.remote)
            aside.unlink()

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, whole, replacing what is there."""
        with self.writing_aside(path.rpartition("/")[0]) as aside:
            aside.write_bytes(content)
            self.publish(aside, path)

    @contextmanager
    def writing_aside(self, folder: str) -> Generator[Path]:
        """Yield a path to write at; whatever was not published by the end is removed."""
        aside = self.aside(folder)
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
