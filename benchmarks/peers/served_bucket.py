"""A served folder as S3 clients see it: reading an object over HTTP is all that they ask of a bucket."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import urlsplit

from peers.task import Task


class Bucket(NamedTuple):
    """Where a contestant's copy is.

    Attributes:
        endpoint: of the server.
        url: of the copy, s3://BUCKET/FOLDER.
    """

    endpoint: str
    url: str


def point_s3_clients_at(task: Task) -> Bucket:
    """The copy in a bucket, with credentials in the environment that nobody will look at."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    parts = urlsplit(task.copy_address)
    endpoint = f"{parts.scheme}://{parts.netloc}"
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    return Bucket(endpoint, f"s3:/{parts.path}")
