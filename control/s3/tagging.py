"""Tags of objects: changed without touching the bytes."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from msgspec.structs import replace

from control.api import Response
from control.s3 import metadata as stored
from control.s3.buckets import Buckets, xml
from control.s3.call import S3Call
from control.s3.documents import Child
from control.s3.errors import S3Error
from control.s3.objects import Objects, check_tags
from control.storage import Cluster, Space, may_remove
from gfs.errors import FileChanged, NotFound

BUCKET_TAGS_MAX = 50


def tags_of(root: Element, tags_max: int) -> dict[str, str]:
    """The tags of a document. Raises S3Error."""
    # Spaces at their ends belong to them.
    pairs = [(t.findtext("Key") or "", t.findtext("Value") or "") for t in root.iter("Tag")]
    return check_tags(pairs, tags_max)


def check_bucket_tags(root: Element) -> None:
    tags_of(root, BUCKET_TAGS_MAX)


class Tagging:
    def __init__(self, cluster: Cluster, buckets: Buckets, objects: Objects) -> None:
        self._cluster = cluster
        self._buckets = buckets
        self._objects = objects

    async def get(self, call: S3Call) -> Response:
        entry = await self._objects.find(self._buckets.readable(call), call.key, call.version)
        tags: list[Child] = [
            ("Tag", [("Key", key), ("Value", value)])
            for key, value in sorted(stored.of_entry(entry).tags.items())
        ]
        return xml("Tagging", [("TagSet", tags)])

    async def put(self, call: S3Call) -> Response:
        await self._set(call, tags_of(await call.document("Tagging"), stored.TAGS_MAX))
        return Response(b"", 200)

    async def delete(self, call: S3Call) -> Response:
        await self._set(call, {})
        return Response(b"", 204)

    async def _set(self, call: S3Call, tags: dict[str, str]) -> None:
        space = self._buckets.find(call.bucket)
        call.allow(space.target)
        if space.versioning:
            await self._objects.find(space, call.key, call.version)  # may move it to its path
        # Meanwhile it is not copied without these tags, nor is its metadata replaced.
        async with self._buckets.versions.locked(space, call.key):
            await self._put(call, space, tags)

    async def _put(self, call: S3Call, space: Space, tags: dict[str, str]) -> None:
        entry = await self._objects.find(space, call.key, call.version)
        may_remove(call, space, entry)
        attributes = stored.attributes(replace(stored.of_entry(entry), tags=tags))
        try:
            await self._cluster.fs.set_attributes(entry.path, attributes, expect=entry.inode)
        except (FileChanged, NotFound):
            raise S3Error("OperationAborted", "the object was replaced meanwhile") from None
