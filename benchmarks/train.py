"""How fast each method trains, and how much faster than the straightforward formulation, in the same run.

    python benchmarks/train.py [--methods mpmae,croma,scale_alibi] [--shapes tiny,real] [--size NAME] [--steps 3]
    python benchmarks/train.py --device cuda --shapes real --compile

A step is forward, backward and AdamW on made-up values that lie in memory, so the wait for data is that of a list. The
straightforward formulation repeats the table of biases for every sample and gathers from it, keeps the scores of
attention in memory, embeds what is hidden too, computes every pixel of a masked image and then multiplies by the mask,
and evaluates MP-MAE's decoder once for each of twelve tasks. It has our weights and gives our loss, which is checked.
Steps of both are taken in turn. MFU is three times the forward's operations against the rate of a matrix product
measured here. On a GPU all is bf16.

Models of full size are slow on a CPU: a step of CROMA-L (2 samples) is 460 GFLOP and one of Scale-ALiBi (1 sample) 250,
ours alone, which is why their batches are small and CROMA-L is not among the shapes that are measured unless asked for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Run as a file, this folder comes first on the path and this file would be found in the place of the package.
sys.path[:] = [str(Path(__file__).parents[1]), *(one for one in sys.path if Path(one) != Path(__file__).parent)]

import train  # noqa: E402, F401, I001  (says how idle threads wait, which is read when torch is first imported)
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.straightforward import straightforward_formulation  # noqa: E402
from train import optim  # noqa: E402
from train.losses import Losses, Task  # noqa: E402
from train.models.croma import CROMA  # noqa: E402
from train.models.mpmae import MPMAE  # noqa: E402
from train.models.scale_alibi import ScaleALiBi  # noqa: E402
from train.sensors import Sensor  # noqa: E402

# Samples a second on one H200 in bf16 with data in memory: what a run of that kind is held against.
GOALS = {"croma/base": 3500, "croma/large": 1200, "scale_alibi/base": 900, "mpmae/atto": 4000}
# Times as fast as the straightforward formulation on CPU.
SPEED_GOAL = 1.5
WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method at one size. batch: samples of a step on CPU and on a GPU."""

    method: str
    size: str
    shape: str
    batch: tuple[int, int]
    make: Callable[[], nn.Module]
    images: dict[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        return f"{self.method}/{self.size}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one formulation of one case."""

    name: str
    formulation: str
    batch: int
    samples_per_s: float
    gflop: float
    mfu: float
    data_wait: float
    peak_mb: float


# -- the cases


def mpmae_tasks(patch: int) -> tuple[Task, ...]:
    """Twelve tasks of the sizes of MMEarth's."""

    def pixels(name: str, channels: int, classes: int = 0) -> Task:
        values = "categorical" if classes else "continuous"
        return Task(name=name, level="pixel", values=values, channels=channels, classes=classes, patch=patch)

    def numbers(name: str, channels: int, classes: int = 0) -> Task:
        values = "categorical" if classes else "continuous"
        return Task(name=name, level="image", values=values, channels=channels, classes=classes)

    return (
        pixels("optic", 12), pixels("radar", 8), pixels("height", 2), pixels("canopy", 2), pixels("cover", 1, 9),
        pixels("land", 1, 11), numbers("climate", 12), numbers("lat", 2), numbers("lon", 2), numbers("month", 2),
        numbers("biome", 1, 14), numbers("region", 1, 846),
    )  # fmt: skip


def mpmae_case(size: str, side: int, patch: int, shape: str, batch: tuple[int, int]) -> Case:
    tasks = mpmae_tasks(patch)

    def make() -> nn.Module:
        return MPMAE(size=size, input="optic", bands=12, patch=patch, tasks=tasks)

    images = {t.name: (t.channels, side, side) if t.level == "pixel" else (t.channels,) for t in tasks}
    return Case(method="mpmae", size=size, shape=shape, batch=batch, make=make, images=images)


def sensor(name: str, channels: int, patch: int, gsd: float) -> Sensor:
    return Sensor(name=name, bands=("band",) * channels, index=tuple(range(channels)), patch=patch, gsd=gsd)


def croma_case(size: str, dim: int, depth: int, heads: int, shape: str, batch: tuple[int, int]) -> Case:
    two = {"radar": sensor("radar", 2, 8, 10.0), "optical": sensor("optical", 12, 8, 10.0)}
    images = {"radar": (2, 120, 120), "optical": (12, 120, 120)}

    def make() -> nn.Module:
        return CROMA(**two, dim=dim, depth=depth, heads=heads, decoder_dim=min(512, dim))

    return Case(method="croma", size=size, shape=shape, batch=batch, make=make, images=images)


def scale_case(
    size: str, dim: int, depth: int, heads: int, shape: str, batch: tuple[int, int], mask_ratio: float
) -> Case:
    three = {
        "radar": sensor("radar", 2, 16, 10.0),
        "lores": sensor("lores", 3, 16, 10.0),
        "hires": sensor("hires", 3, 16, 5.0),
    }
    images = {"radar": (2, 256, 256), "lores": (3, 256, 256), "hires": (3, 512, 512)}

    def make() -> nn.Module:
        return ScaleALiBi(**three, dim=dim, depth=depth, heads=heads, mask_ratio=mask_ratio, decoder_dim=min(512, dim))

    return Case(method="scale_alibi", size=size, shape=shape, batch=batch, make=make, images=images)


CASES = (
    mpmae_case("atto", 56, 8, "tiny", (8, 512)),
    croma_case("tiny", 64, 4, 16, "tiny", (32, 1024)),
    scale_case("tiny", 64, 4, 16, "tiny", (4, 256), 0.4),
    mpmae_case("atto", 112, 16, "real", (8, 512)),
    croma_case("base", 768, 12, 16, "real", (4, 512)),
    croma_case("large", 1024, 24, 16, "large", (2, 256)),
    scale_case("base", 768, 12, 16, "real", (1, 128), 0.75),
)


def made_up(case: Case, batch: int, device: torch.device) -> dict[str, Any]:
    """A batch of made-up values, all valid."""
    draw = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {"id": [f"{i:06d}" for i in range(batch)]}
    classes = {task.name: task.classes for task in mpmae_tasks(8) if task.classes}
    for name, shape in case.images.items():
        if name in classes and case.method == "mpmae":
            values = torch.randint(0, classes[name], (batch, *shape), generator=draw)
        else:
            values = torch.randn(batch, *shape, generator=draw)
        made[name] = values.to(device)
        made[f"{name}_mask"] = torch.ones_like(made[name], dtype=torch.bool)
    return made


# -- measuring


@dataclass(kw_only=True)
class Runner:
    """One formulation of one case, ready to take steps."""

    case: Case
    straightforward: bool
    device: torch.device
    batch: int
    compiles: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = self.case.make().to(self.device)
        if self.straightforward and isinstance(self.model, MPMAE):
            self.model.one_each = True  # the one decoder, again for every task
        self.optimizer = optim.adamw(self.model, weight_decay=0.05, betas=(0.9, 0.95))
        optim.set_rate(self.optimizer, 1e-4)
        self.data = made_up(self.case, self.batch, self.device)
        self.kept = self.model.masks(self.data, seed=0, epoch=0)
        self.forward = torch.compile(self.model) if self.compiles else self.model
        self.times: list[float] = []
        self.waits: list[float] = []

    def formulation(self) -> Any:
        return straightforward_formulation() if self.straightforward else nullcontext()

    def losses(self) -> Losses:
        with self.formulation(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.forward(self.data, self.kept)

    def step(self) -> None:
        start = time.perf_counter()
        self.data = next(iter([self.data]))
        fed = time.perf_counter()
        self.losses().total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - start)
        self.waits.append(fed - start)

    def forward_gflop(self) -> float:
        """Operations of one sample's forward, a product and a sum counted as two."""
        small = Runner(case=self.case, straightforward=self.straightforward, device=torch.device("cpu"), batch=1)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            small.losses()
        return counter.get_total_flops() / 1e9


def matrix_rate(device: torch.device) -> float:
    """GFLOP/s of a large matrix product, the best of five."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1536, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            c.sum().item()
        best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e9)
    return best


def peak_memory(case_index: int, straightforward: bool, batch: int) -> float:
    """MB that a fresh process of this kind needs at most for two steps, beyond what imports need."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (case_index, straightforward, batch))


def _peak_memory(case_index: int, straightforward: bool, batch: int) -> float:
    before = _high_water_mb()
    runner = Runner(case=CASES[case_index], straightforward=straightforward, device=torch.device("cpu"), batch=batch)
    for _ in range(2):
        runner.step()
    return _high_water_mb() - before


def _high_water_mb() -> float:
    """Most memory this process has held, as Linux counts it (getrusage would count its parent's, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(case: Case, *, device: torch.device, steps: int, rate: float, compiles: bool, memory: bool) -> list[Result]:
    """Both formulations of a case, their steps taken in turn; on a GPU ours alone when the other does not fit."""
    batch = case.batch[device.type == "cuda"]
    both = [
        Runner(case=case, straightforward=one, device=device, batch=batch, compiles=compiles and not one)
        for one in (False, True)
    ]
    _check_same(case, both, exact=device.type == "cpu")
    for runner in both:
        for _ in range(WARM_UP if device.type == "cuda" else 1):
            runner.step()
        runner.times.clear()
        runner.waits.clear()
    for _ in range(steps):
        for runner in both:
            runner.step()
    return [_result(runner, rate, memory=memory) for runner in both]


def _check_same(case: Case, both: Sequence[Runner], *, exact: bool) -> None:
    """Both formulations give one loss."""
    with torch.no_grad():
        ours, theirs = (runner.losses().total.item() for runner in both)
    if abs(ours - theirs) > (1e-4 if exact else 2e-2) * abs(theirs):
        raise SystemExit(f"{case.name}: the formulations disagree, {ours} and {theirs}")


def _result(runner: Runner, rate: float, *, memory: bool) -> Result:
    seconds = statistics.median(runner.times)
    speed = runner.batch / seconds
    gflop = runner.forward_gflop()
    if runner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        runner.step()
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = peak_memory(CASES.index(runner.case), runner.straightforward, runner.batch) if memory else float("nan")
    return Result(
        name=runner.case.name, formulation="straightforward" if runner.straightforward else "ours", batch=runner.batch,
        samples_per_s=speed, gflop=gflop, mfu=3 * gflop * speed / rate,
        data_wait=sum(runner.waits) / sum(runner.times), peak_mb=peak,
    )  # fmt: skip


# -- the command line


def show(case: Case, ours: Result, theirs: Result, device: torch.device) -> None:
    for one in (ours, theirs):
        print(
            f"{case.shape:5} {one.name:16} {one.formulation:15} batch {one.batch:4} {one.samples_per_s:9.2f} samples/s"
            f" {one.gflop:7.2f} GFLOP MFU {one.mfu:6.1%} data wait {one.data_wait:5.1%} peak {one.peak_mb:6.0f} MB"
        )
    goal = f", goal {SPEED_GOAL}x" if device.type == "cpu" else ""
    print(f"{'':5} {case.name:16} {ours.samples_per_s / theirs.samples_per_s:.2f}x as fast{goal}")
    if device.type == "cuda" and case.name in GOALS:
        reached = ours.samples_per_s / GOALS[case.name]
        print(f"{'':5} {case.name:16} goal {GOALS[case.name]} samples/s on one H200: {reached:.0%}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="mpmae,croma,scale_alibi")
    parser.add_argument("--shapes", default="tiny,real", help="tiny, real, large")
    sizes = list(dict.fromkeys(case.size for case in CASES))
    parser.add_argument("--size", choices=sizes, help="models of this size, whatever the shape")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each formulation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory on CPU")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    rate = matrix_rate(device)
    found: list[Result] = []
    if not given.json:
        print(f"{device.type}, {torch.get_num_threads()} threads, matrix product {rate:.0f} GFLOP/s; made-up values")
    for case in CASES:
        fits = case.size == given.size if given.size else case.shape in given.shapes.split(",")
        if fits and case.method in given.methods.split(","):
            ours, theirs = measure(
                case, device=device, steps=given.steps, rate=rate, compiles=given.compile, memory=not given.no_memory
            )
            found += [ours, theirs]
            if not given.json:
                show(case, ours, theirs, device)
    if given.json:
        print(
            json.dumps(
                {"device": device.type, "gflop_per_s": rate, "results": [asdict(one) for one in found]}, indent=1
            )
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
