"""The leader's own work between two stages of VGG-16: answers to a map to the next inputs.

    python jobs/measure/leader.py

7 strips, 4 stages, float16 both ways, one thread. Before: every answer is made float32, the map is
stitched, the next inputs are cut and made float16 as they are laid into messages. Now a map that
only goes on to workers stays float16 all the way. Both in turn, CPU seconds, median of 30.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from mpicoded.models import build
from mpicoded.network.graph import trace
from mpicoded.runtime.message import EIGHT_BITS, Kind, Message, Pool, pack, unpack
from mpicoded.split import SPLITS, Request

CLOCK = (0.0, 0.0, 0.0)


def main(rounds: int = 30) -> None:
    """Print milliseconds a query of the steps between stages, before and now, and in 8 bits."""
    torch.set_num_threads(1)
    chain = trace(build("vgg16-features", {}).requires_grad_(False), (3, 224, 224))
    split = SPLITS["height"]
    plan = split.plan(Request(chain, 7, 0, stages=("4", "9", "16", "23")))
    pool = Pool()

    def between(s: int, answers: list[Message], as_float: bool, dtype: torch.dtype) -> None:
        outputs = [message.tensor() for message in answers]
        outputs = [y.float() for y in outputs] if as_float else outputs
        for x in split.cut(split.stitch(outputs, plan.stages[s]), plan.stages[s + 1]):
            pool.give(pack(pool, Kind.UNIT, x, dtype, CLOCK, {}))

    ways = {
        "before": (torch.float16, True),
        "now": (torch.float16, False),
        "8 bits": (EIGHT_BITS, False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        maps = [torch.rand(1, *stage.output_shape) for stage in plan.stages]
        messages = {name: [_answers(plan, maps, s, way[0]) for s in range(3)]
                    for name, way in ways.items()}  # fmt: skip
        for _ in range(rounds):
            for name, (dtype, as_float) in ways.items():
                began = time.process_time()
                for s in range(3):
                    between(s, messages[name][s], as_float, dtype)
                times[name].append(time.process_time() - began)
    ratio = median(a / b for a, b in zip(times["before"], times["now"], strict=True))
    told = ", ".join(f"{name} {1e3 * median(t):.2f} ms" for name, t in times.items())
    print(f"between stages, a query: {told}; before / now {ratio:.2f}")


def _answers(plan: object, maps: list[torch.Tensor], s: int, dtype: torch.dtype) -> list[Message]:
    pool, shards = Pool(), plan.stages[s].shards
    boxes = [shard.writes.rows for shard in shards]
    packed = [
        pack(pool, Kind.ANSWER, maps[s][:, :, b.start : b.stop], dtype, CLOCK, {}) for b in boxes
    ]
    return [unpack(buffer, buffer.size, 1) for buffer in packed]


if __name__ == "__main__":
    main()
