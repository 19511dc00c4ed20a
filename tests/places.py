"""A folder, or a prefix of a bucket, seen from outside: what is there, and what was written anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen
from xml.etree import ElementTree

import obstore
from obstore.store import from_url

from tests.stories import identities, tree

Marks = dict[str, object]


class Files:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = str(folder)

    def sub(self, name: str) -> Files:
        return Files(self.folder / name)

    def keys(self) -> set[str]:
        """Return what is there, while somebody may be writing."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return {str(path) for path in found}

    def contents(self) -> dict[str, str]:
        """Return a digest of everything."""
        return tree(self.folder)

    def marks(self) -> Marks:
        """Return what changes of an object when it is written, be it with the same bytes."""
        return dict(identities(self.folder))

    def read(self, key: str) -> bytes | None:
        path = self.folder / key
        return path.read_bytes() if path.is_file() else None

    def fill(self, folder: Path) -> None:
        """Put a copy of a folder here, the times of its files included."""
        shutil.copytree(folder, self.folder / folder.name)

    def clear(self) -> None:
        shutil.rmtree(self.folder)


class Objects:
    """A prefix of a bucket that keeps every version of an object."""

    def __init__(self, server: str, bucket: str, prefix: str = "") -> None:
        self.server, self.bucket, self.prefix = server, bucket, prefix
        self.root = f"s3://{bucket}/{prefix}".rstrip("/")

    def sub(self, name: str) -> Objects:
        return Objects(self.server, self.bucket, f"{self.prefix}{name}/")

    def keep_versions(self) -> None:
        self._ask(
            "PUT", "/?versioning",
            b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
        )  # fmt: skip

    def keys(self) -> set[str]:
        """Return what is there."""
        return set(self._latest())

    def contents(self) -> dict[str, str]:
        """Return the etag of every object, which is the MD5 of what was put in one piece."""
        return {key: etag for key, (_, etag) in self._latest().items()}

    def marks(self) -> Marks:
        """Return the version of every object: each PUT makes another."""
        return {key: version for key, (version, _) in self._latest().items()}

    def read(self, key: str) -> bytes | None:
        if key not in self._latest():
            return None
        return bytes(obstore.get(from_url(self.root), key).bytes())  # those of others are private

    def fill(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{self.prefix}{path.relative_to(folder.parent)}"
                self._ask("PUT", f"/{quote(key)}", path.read_bytes())

    def clear(self) -> None:
        """Leave all to the server, which ends with the tests."""

    def _latest(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        marker = ""
        while True:
            page = ElementTree.fromstring(
                self._ask("GET", f"/?versions&prefix={quote(self.prefix)}{marker}")
            )
            told: dict[str, Any] = {"": ""}
            for node in page:
                name = node.tag.rpartition("}")[2]
                told = {child.tag.rpartition("}")[2]: child.text or "" for child in node}
                if name == "Version" and told["IsLatest"] == "true":
                    key = told["Key"].removeprefix(self.prefix)
                    found[key] = (told["VersionId"], told["ETag"])
            said = {node.tag.rpartition("}")[2]: node.text or "" for node in page}
            if said.get("IsTruncated") != "true":
                return found
            marker = f"&key-marker={quote(said['NextKeyMarker'])}"
            if said.get("NextVersionIdMarker"):
                marker += f"&version-id-marker={quote(said['NextVersionIdMarker'])}"

    def _ask(self, method: str, what: str, body: bytes | None = None) -> bytes:
        place = f"{self.server}/{self.bucket}{what}"
        # What urllib would say of a body, a form, is another service to moto.
        request = Request(place, body, {"Content-Type": "binary/octet-stream"}, method=method)
        with urlopen(request, timeout=120) as answer:
            content: bytes = answer.read()
            return content


Place = Files | Objects


def attributes_of(place: Place, group: str) -> dict[str, Any]:
    """Return the attributes of a group in either format; none where it has none yet."""
    for name in ("zarr.json", ".zattrs"):
        content = place.read(f"{group}/{name}")
        if content is not None:
            node = json.loads(content)
            found: dict[str, Any] = node.get("attributes", {}) if name == "zarr.json" else node
            return found
    return {}


def named_levels(place: Place, group: str) -> list[str]:
    """Return the levels that the document of a group names; none where there is no document."""
    found = attributes_of(place, group)
    entries = found.get("ome", found).get("multiscales", [])
    return [dataset["path"] for entry in entries for dataset in entry["datasets"]]
