"""Workers that extract together under fire, for `make faults`."""

import os
import random
import signal
import time
from collections import Counter

import pytest
from conftest import write_video
from test_partition import SHARD_VIDEOS, content, finished, stamps, start

from data_prep.extract import extract

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("FAULTS_KILLS", "20"))


def test_four_workers_killed_at_random_moments(tmp_path, network, fault):
    """Each is started again until it ends by itself; then all of it again, until there were enough kills."""
    videos, rng, kills, rounds, places = tmp_path / "videos", random.Random(0), 0, 0, Counter()
    for number in range(24):
        write_video(videos / f"class{number % 3}" / f"v{number:02}.avi", 20 + 10 * (number % 3), seed=number)
    (videos / "class0" / "w.avi").write_text("no video")
    extract(videos, tmp_path / "whole", network, shard_videos=SHARD_VIDEOS)
    while kills < KILLS:
        folder = tmp_path / f"round{rounds}" / "features"
        folder.parent.mkdir()
        rounds += 1
        workers, seen = {index: start(videos, folder, index, 4, 0.05) for index in range(4)}, {}
        while workers:
            more = len(seen) + rng.randrange(3)
            while len(stamps(folder)) < more and all(process.is_alive() for process in workers.values()):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.4))
            index = next(
                (index for index, process in workers.items() if not process.is_alive()), rng.choice([*workers])
            )
            workers[index].kill()
            workers[index].join()
            code = workers[index].exitcode
            assert code in (0, -signal.SIGKILL)
            now = stamps(folder)
            assert seen.items() <= now.items(), "a finished shard was touched"
            seen = now
            kills, places[len(now)] = kills + bool(code), places[len(now)] + bool(code)
            if code:
                workers[index] = start(videos, folder, index, 4, 0.05)
            else:
                del workers[index]
        assert content(folder) == content(tmp_path / "whole")
        assert max(finished(folder).values()) == 1
    assert len(places) > 2, "the kills all came at the same stage"
    fault(
        "four extracting workers, one killed (SIGKILL) at a random moment again and again", kills,
        "it goes on; no shard is made twice to its end; the cache is that of one worker",
        f"{rounds} caches, byte for byte those of one worker; no finished shard touched, no leftovers",
    )  # fmt: skip
