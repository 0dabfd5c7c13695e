"""Processes that read a remote dataset through one cache: `python cache_reader.py ADDRESS CACHE LIMIT`.

Each line `SEED ROUNDS` on stdin forks a child, whose process id is the answer. A child reads `ROUNDS` shards at random,
checks each, and says so with a line in CACHE/progress.PID, which also has the bytes that the cache then took.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from pathlib import Path

from lmdali.pipeline.remote_dataset import RemoteDataset
from lmdali.pipeline.shard_cache import ShardCache
from lmdali.pipeline.shard_check import check_data_file
from lmdali.pipeline.shard_fetch import ShardFetcher


def read(address: str, directory: Path, limit: int, seed: int, rounds: int) -> None:
    """A child's work."""
    remote = RemoteDataset(address, directory)
    _, manifest = remote.open()
    cache = ShardCache(directory, limit)
    fetcher = ShardFetcher(
        manifest.shards, cache, remote.fetch_shard, let_go=lambda number: None, num_threads=2, poll_seconds=0.005
    )
    choose = random.Random(seed)
    with (directory / f"progress.{os.getpid()}").open("a", buffering=1) as progress:
        for _ in range(rounds):
            number = choose.randrange(len(manifest.shards))
            give_back = fetcher.use([number])
            check_data_file(cache.shard_directory(manifest.shards[number]), manifest.shards[number])
            progress.write(f"{cache.used_bytes()}\n")
            give_back()
    fetcher.close()


def main() -> None:
    """Fork until the pipe closes."""
    address, directory, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    for line in sys.stdin:
        seed, rounds = map(int, line.split())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                read(address, directory, limit, seed, rounds)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, flush=True)
    while True:
        try:
            print(*os.wait(), flush=True)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
