"""The storage behind the account: which of its names a request was sent to, and what it is answered."""

from __future__ import annotations

from emulator.azure import Azure
from emulator.delivery import Delivery
from emulator.encryption import Keys
from emulator.gcs import Gcs
from emulator.objects import Objects
from emulator.request import Request
from emulator.results import Results
from emulator.s3 import S3
from web import Answer


class Storage:
    """A bucket with parts of results and the files of stages; stages are in two other clouds, too."""

    def __init__(self, host: str, azure: str, gcs: str) -> None:
        self.host = host
        self.results = Results(host)
        self.objects = Objects()
        self.keys = Keys()
        self.s3 = S3(self.objects, host)
        self.azure = Azure(self.objects, azure, self.s3.bucket)
        self.gcs = Gcs(self.objects, gcs, self.s3.bucket)
        self._clouds: dict[str, S3 | Azure | Gcs] = dict.fromkeys(self.s3.hosts, self.s3)
        self._clouds |= {azure: self.azure, gcs: self.gcs}

    def owns(self, host: str) -> bool:
        """Whether this is a name of the storage."""
        return name(host) in self._clouds

    def is_result(self, request: Request) -> bool:
        """Whether a request is for a part of a result."""
        return name(request.headers["host"]) == self.host and request.path.startswith("/results/")

    async def handle(self, request: Request) -> Answer | Delivery:
        """Answers any other request."""
        return await self._clouds[name(request.headers["host"])].handle(request)


def name(host: str) -> str:
    """The name in a `Host` header."""
    return host.lower().removesuffix(":443")
