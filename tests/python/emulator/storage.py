"""The storage behind the account: which of its names a request was sent to, and what it is answered."""

from __future__ import annotations

from emulator.delivery import Delivery
from emulator.encryption import Keys
from emulator.objects import Objects
from emulator.request import Request
from emulator.results import Results
from emulator.s3 import S3
from web import Answer


class Storage:
    """A bucket with parts of results and the files of stages; the files are in other clouds, too."""

    def __init__(self, host: str, azure: str, gcs: str) -> None:
        self.host = host
        self.results = Results(host)
        self.objects = Objects()
        self.keys = Keys()
        self.azure, self.gcs = azure, gcs
        self.s3 = S3(self.objects, host)

    def owns(self, host: str) -> bool:
        """Whether this is a name of the storage."""
        return host.removesuffix(":443") in self.s3.hosts

    def is_result(self, request: Request) -> bool:
        """Whether a request is for a part of a result."""
        return request.path.startswith("/results/")

    async def handle(self, request: Request) -> Answer | Delivery:
        """Answers any other request."""
        return await self.s3.handle(request)
