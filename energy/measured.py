"""Energy as instruments read it: NVIDIA's counter on a GPU, RAPL on a CPU. All else in this folder is modelled."""

from __future__ import annotations

import importlib
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BackendUnavailableError, InputError
from ..lazy import install_command


class Meter(ABC):
    """An instrument that counts joules."""

    name: str

    @abstractmethod
    def read_j(self) -> float:
        """Return the energy counted since some time in the past, in joules."""


class NvmlMeter(Meter):
    """The energy counter of an NVIDIA GPU (Volta and later), whole board, through NVML.

    It is read by the driver every some tens of milliseconds, so a loop should take seconds.

    Args:
        index: of the GPU as PyTorch counts, which is not NVML's count where CUDA_VISIBLE_DEVICES leaves GPUs out.
        nvml: stands in for the module pynvml, for tests.
    Raises:
        BackendUnavailableError: there is no pynvml, no driver, or no counter; the message says which.
    """

    def __init__(self, index: int = 0, nvml: Any = None) -> None:
        if nvml is None:
            try:
                nvml = importlib.import_module("pynvml")
            except ImportError as error:
                raise BackendUnavailableError(
                    f"NvmlMeter: the package nvidia-ml-py is missing. {install_command('measure')}."
                ) from error
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            uuid = _uuid_of(index)
            if uuid is None:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
            else:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            name = nvml.nvmlDeviceGetName(self._handle)
            self.name = name.decode() if isinstance(name, bytes) else name
            self.read_j()
        except nvml.NVMLError as error:
            raise BackendUnavailableError(
                f"NvmlMeter: GPU {index} has no energy counter here: {error}. It takes an NVIDIA driver and a GPU from "
                "Volta on."
            ) from error

    def read_j(self) -> float:
        """Return the joules since the driver was loaded."""
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3  # millijoules


def _uuid_of(index: int) -> str | None:
    """Return the UUID of a GPU as PyTorch counts; None where PyTorch sees no GPU of that number."""
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    return str(torch.cuda.get_device_properties(index).uuid)


class RaplMeter(Meter):
    """The energy counters of all CPU packages, through /sys/class/powercap (Intel and AMD, Linux).

    Args:
        root: where the counters are.
    Raises:
        BackendUnavailableError: there are none, or they may not be read.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._zones = sorted(path for path in root.glob("*-rapl:*") if path.name.count(":") == 1)
        if not self._zones:
            raise BackendUnavailableError(
                f"RaplMeter: no counters in {root}. Virtual machines and containers mostly have none; measure on the "
                "machine itself."
            )
        try:
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
            self._last = self._read()
        except OSError as error:
            raise BackendUnavailableError(f"RaplMeter: {error}. Reading it may take root.") from error
        self._turns = [0] * len(self._zones)
        self.name = f"RAPL, {len(self._zones)} package(s)"

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def read_j(self) -> float:
        """Return the joules of all packages; a counter that starts again from 0 is carried on."""
        now = self._read()
        self._turns = [t + (a < b) for t, a, b in zip(self._turns, now, self._last, strict=True)]
        self._last = now
        return sum(a + t * r for a, t, r in zip(now, self._turns, self._ranges, strict=True)) / 1e6


@dataclass(frozen=True)
class MeasuredEnergy:
    """Energy of a loop, read off an instrument.

    Attributes:
        meter: name of the instrument.
        num_tokens: tokens of one repetition.
        measured_j_per_token: of each repetition, idle power subtracted.
        measured_whole_j_per_token: of each repetition, nothing subtracted.
        measured_idle_w: power before the loop.
        measured_s_per_token: time of each repetition.
    """

    meter: str
    num_tokens: int
    measured_j_per_token: tuple[float, ...]
    measured_whole_j_per_token: tuple[float, ...]
    measured_idle_w: float
    measured_s_per_token: tuple[float, ...]

    @property
    def measured_median_j(self) -> float:
        """Median over the repetitions of joules per token above idle."""
        return statistics.median(self.measured_j_per_token)

    @property
    def measured_spread_j(self) -> tuple[float, float]:
        """Least and most joules per token above idle."""
        return min(self.measured_j_per_token), max(self.measured_j_per_token)


def measure_energy(
    run: Callable[[], object],
    num_tokens: int,
    meter: Meter,
    *,
    seconds: float = 3.0,
    repetitions: int = 5,
    idle_s: float = 3.0,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> MeasuredEnergy:
    """Measure the energy of calls in a steady loop.

    Idle power is read first, without work; then `run` is called for some seconds to get warm, and then in each
    repetition.

    Args:
        run: does the work.
        num_tokens: tokens of one call of `run`.
        meter: reads joules.
        seconds: shortest time of a repetition; many times longer than the interval at which the meter is updated.
        repetitions: how often it is measured.
        idle_s: for how long idle power is read.
        synchronize: waits until the device has done its work.
        clock: returns seconds.
        sleep: waits for a number of seconds.
    Raises:
        InputError: a number is not above 0.
    """
    for name, value in (
        ("num_tokens", num_tokens),
        ("seconds", seconds),
        ("repetitions", repetitions),
        ("idle_s", idle_s),
    ):
        if not value > 0:
            raise InputError(f"measure_energy.{name}: expected a number > 0, got {value!r}.")

    def loop() -> tuple[float, float, int]:
        synchronize()
        start, joules, calls = clock(), meter.read_j(), 0
        while clock() - start < seconds:
            run()
            synchronize()
            calls += 1
        return meter.read_j() - joules, clock() - start, calls

    synchronize()
    began, before = clock(), meter.read_j()
    sleep(idle_s)
    idle_w = (meter.read_j() - before) / (clock() - began)
    loop()
    whole, above, seconds_each = [], [], []
    for _ in range(repetitions):
        joules, elapsed, calls = loop()
        tokens = calls * num_tokens
        whole.append(joules / tokens)
        above.append((joules - idle_w * elapsed) / tokens)
        seconds_each.append(elapsed / tokens)
    return MeasuredEnergy(meter.name, num_tokens, tuple(above), tuple(whole), idle_w, tuple(seconds_each))
