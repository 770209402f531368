"""Meters and the loop around them, with instruments that are made up."""

from types import SimpleNamespace

import pytest

from spikebrain.energy import NvmlMeter, RaplMeter, measure_energy
from spikebrain.errors import BackendUnavailableError, InputError


class World:
    """A clock, and a GPU that takes 50 W idle and 250 W while it works."""

    def __init__(self):
        self.now, self.joules = 0.0, 1000.0

    def sleep(self, seconds):
        self.now += seconds
        self.joules += 50 * seconds

    def work(self):
        self.now += 0.25
        self.joules += 250 * 0.25


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self, world, fault=None):
        self.world, self.fault = world, fault

    def nvmlInit(self):
        if self.fault == "driver":
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetName(self, handle):
        return b"A GPU"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.fault == "counter":
            raise self.NVMLError("Not Supported")
        return int(1000 * self.world.joules)


def test_the_gpu_that_pytorch_counts_is_read(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # of four, by CUDA_VISIBLE_DEVICES
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid=f"0e087bd3-{index}"))
    nvml = FakeNvml(World())
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: asked.append(handle) or 0
    NvmlMeter(nvml=nvml)
    NvmlMeter(3, nvml=nvml)  # PyTorch has no such GPU: NVML's number
    assert asked == ["GPU-0e087bd3-0", 3]


def test_idle_power_is_subtracted():
    world = World()
    meter = NvmlMeter(nvml=FakeNvml(world))
    found = measure_energy(world.work, 4, meter, seconds=2.0, repetitions=3, clock=lambda: world.now, sleep=world.sleep)
    # 62.5 J a call of 4 tokens, of which 50 W * 0.25 s = 12.5 J are idle: (62.5 - 12.5) / 4 = 12.5 J a token.
    assert found.meter == "A GPU"
    assert found.measured_idle_w == pytest.approx(50)
    assert found.measured_whole_j_per_token == pytest.approx([15.625] * 3)
    assert found.measured_j_per_token == pytest.approx([12.5] * 3)
    assert found.measured_median_j == pytest.approx(12.5)
    assert found.measured_spread_j == pytest.approx((12.5, 12.5))
    assert found.measured_s_per_token == pytest.approx([0.0625] * 3)
    with pytest.raises(InputError, match=r"repetitions: expected a number > 0"):
        measure_energy(world.work, 4, meter, repetitions=0)


@pytest.mark.parametrize(("fault", "message"), [("driver", "Driver Not Loaded"), ("counter", "Not Supported")])
def test_without_a_counter(fault, message):
    with pytest.raises(BackendUnavailableError, match=message):
        NvmlMeter(nvml=FakeNvml(World(), fault))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install '\S+\[measure\]'"):
        NvmlMeter()


def test_rapl(tmp_path):
    with pytest.raises(BackendUnavailableError, match="Virtual machines"):
        RaplMeter(tmp_path)
    for i, energy in enumerate((9_000_000, 500_000)):
        zone = tmp_path / f"intel-rapl:{i}"
        (zone / "nested").mkdir(parents=True)
        (zone / "max_energy_range_uj").write_text("10000000\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, which must not be counted twice
    meter = RaplMeter(tmp_path)
    before = meter.read_j()
    assert before == pytest.approx(9.5)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000")  # past its range, and on from 0
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("700000")
    # 1 J to the end of the range and 1 J more; 0.2 J.
    assert meter.read_j() - before == pytest.approx(2.2)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    with pytest.raises(BackendUnavailableError, match="energy_uj"):
        RaplMeter(tmp_path)
