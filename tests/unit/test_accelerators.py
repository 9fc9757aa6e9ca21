"""The accelerator catalogue is consistent, and a typing error in it is detected."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.hardware.kernel_shapes import Collective

ALL = accelerators.entries()
GIB = 2**30

# Dense 16-bit FLOPs of one compute unit in one cycle, and the highest clock that the architecture
# boosts to (Hz), as the vendors' architecture white papers give them. A GeForce board, or a board
# cut down, does half or less: a peak below the bound is possible, one above is not.
PER_UNIT_AND_CYCLE = {
    "volta": (1024, 1.6e9),
    "turing": (1024, 1.6e9),
    "ampere": (2048, 1.45e9),
    "ampere-ga10x": (1024, 1.9e9),
    "ampere-jetson": (2048, 1.4e9),
    "ada": (1024, 2.6e9),
    "hopper": (4096, 2.0e9),
    "blackwell": (8192, 2.1e9),
    "blackwell-gb20x": (1024, 2.65e9),
    "cdna2": (1024, 1.75e9),
    "cdna3": (2048, 2.15e9),
    "cdna4": (4096, 2.45e9),
    "rdna3": (512, 2.6e9),
}
# What other arithmetics do of what bf16 (else fp16) does, by architecture; GeForce boards halve
# 16-bit sums, so their 8-bit integers are four times as fast.
RATIOS = {
    "fp8": {
        "ada": (2,),
        "hopper": (2,),
        "blackwell": (2,),
        "blackwell-gb20x": (2,),
        "cdna3": (2,),
        "cdna4": (2,),
        "gaudi": (1, 2),
        "neuroncore": (1, 1.95, 3.75),
    },
    "int8": {
        "volta": (0.5,),
        "turing": (2,),
        "ampere": (2,),
        "ampere-ga10x": (2, 4),
        "ampere-jetson": (3.2,),
        "ada": (2, 4),
        "hopper": (2,),
        "blackwell": (2, 0.067),
        "blackwell-gb20x": (2, 4),
        "cdna2": (1,),
        "cdna3": (2,),
        "cdna4": (2,),
        "rdna3": (1,),
        "tpu": (1, 2),
        "xe2": (2,),
        "neuroncore": (2,),
        "x86-amx": (2,),
        "x86-avx512": (2,),
    },
    "tf32": {
        "ampere": (0.5,),
        "ampere-ga10x": (0.5,),
        "ada": (0.5,),
        "hopper": (0.5,),
        "blackwell": (0.5,),
        "blackwell-gb20x": (0.5,),
        "cdna3": (0.5,),
        "gaudi": (0.27,),
        "neuroncore": (1,),
    },
    "fp4": {"blackwell": (4, 6), "blackwell-gb20x": (4, 8), "cdna4": (4,), "neuroncore": (3.75,)},
}
# One direction, bytes per second: all links of a device, or sixteen lanes.
ONE_WAY = {
    "NVLink 2": 150e9,
    "NVLink 3": 300e9,
    "NVLink 3 bridge": 300e9,
    "NVLink 4": 450e9,
    "NVLink 4 bridge": 300e9,
    "NVLink 5": 900e9,
    "NVLink bridge": 56.25e9,
    "PCIe 3": 16e9,
    "PCIe 4": 32e9,
    "PCIe 5": 64e9,
    "PCIe 5 x8": 32e9,
    "Infinity Fabric": 600e9,
    "ICI": 100e9,
    "Ethernet": 525e9,
    "NeuronLink": 1280e9,
}


def objections(device: Accelerator) -> Iterator[str]:
    """What cannot be so."""
    if device.memory_bytes is not None and device.memory_bytes % GIB:
        yield "memory: chips come in whole GiB"
    base = device.peak_flops.get("bf16", device.peak_flops.get("fp16"))
    if base:
        yield from clock_objections(device, base)
        yield from ratio_objections(device, base)
    for link in device.links:
        most = ONE_WAY[link.name]
        if link.bytes_per_s > 1.01 * most:
            yield f"interconnect: {link.name} does {most} one way; both ways summed?"


def clock_objections(device: Accelerator, base: float) -> Iterator[str]:
    if device.architecture in PER_UNIT_AND_CYCLE and device.compute_units:
        per_unit, fastest = PER_UNIT_AND_CYCLE[device.architecture]
        clock = base / (device.compute_units * per_unit)
        if clock > fastest:
            yield f"16-bit peak: needs {clock / 1e9:.2f} GHz, sparse for dense?"


def ratio_objections(device: Accelerator, base: float) -> Iterator[str]:
    for name, by_architecture in RATIOS.items():
        if name in device.peak_flops:
            ratio = device.peak_flops[name] / base
            legal = by_architecture.get(device.architecture, ())
            if not any(math.isclose(ratio, each, rel_tol=0.04) for each in legal):
                yield f"{name}: {ratio:.2f} of 16-bit, not {legal}"


def sisters(device: Accelerator) -> list[Accelerator]:
    """Boards of the same chip."""
    return [
        other
        for other in ALL.values()
        if other.architecture == device.architecture
        and other.compute_units == device.compute_units
        and other.name != device.name
    ]


@pytest.mark.parametrize("name", ALL)
def test_every_accelerator_is_consistent(name: str) -> None:
    assert list(objections(ALL[name])) == []


@pytest.mark.parametrize("name", [n for n, d in ALL.items() if d.kind == "gpu" and sisters(d)])
def test_boards_of_one_chip_are_alike_in_cache_and_within_twice_in_all_else(name: str) -> None:
    device = ALL[name]
    for other in sisters(device):
        # B300 has next to no int8, which the ratio to 16-bit says already.
        for dtype in (device.peak_flops.keys() & other.peak_flops.keys()) - {"int8"}:
            assert 0.49 < device.peak_flops[dtype] / other.peak_flops[dtype] < 2.05
        if device.llc_bytes and other.llc_bytes:
            assert device.llc_bytes == other.llc_bytes


@pytest.mark.parametrize("name", [n for n, d in ALL.items() if d.architecture == "ampere"])
@pytest.mark.parametrize(
    "slip",
    [
        lambda d: replace(d, peak_flops=d.peak_flops | {"bf16": 2 * d.peak_flops["bf16"]}),
        lambda d: replace(d, peak_flops={k: 2 * v for k, v in d.peak_flops.items()}),
        lambda d: replace(d, peak_flops=d.peak_flops | {"int8": 2 * d.peak_flops["int8"]}),
        lambda d: replace(d, memory_bytes=round(d.memory_bytes / GIB * 1e9)),
        lambda d: replace(d, interconnect_bytes_per_s=2 * d.interconnect_bytes_per_s),
    ],
    ids=[
        "sparse for dense",
        "sparse for dense throughout",
        "sparse int8",
        "GB for GiB",
        "bidirectional for unidirectional",
    ],
)
def test_a_planted_slip_is_found(name: str, slip) -> None:
    assert list(objections(slip(ALL[name])))


@pytest.mark.parametrize("name", ["H100-SXM5-80GB", "MI300X", "L40S", "B200-SXM", "H200-SXM-141GB"])
def test_sparse_for_dense_is_found_on_other_architectures_too(name: str) -> None:
    device = ALL[name]
    doubled = {dtype: 2 * peak for dtype, peak in device.peak_flops.items()}
    assert list(objections(replace(device, peak_flops=doubled)))
    assert list(objections(replace(device, peak_flops=device.peak_flops | {"fp8": doubled["fp8"]})))


@pytest.mark.parametrize("name", [name for name, each in ALL.items() if each.links])
def test_a_bridge_joins_a_few_devices_and_the_bus_all(name: str) -> None:
    device = ALL[name]
    for link in device.links:
        is_bridge = "bridge" in link.name or (link.name == "Infinity Fabric" and name == "MI210")
        assert (link.joins is not None) == is_bridge
    bridge = next((each for each in device.links if each.joins), None)
    if bridge is None:
        assert device.among(2) == device.among(8) == device
        return
    assert bridge.joins is not None
    assert bridge.joins <= 4
    assert device.among(bridge.joins).link == bridge.name
    beyond = device.among(bridge.joins + 1)
    assert beyond.link is not None
    assert beyond.link.startswith("PCIe")
    assert beyond.interconnect_bytes_per_s == ONE_WAY[beyond.link] < bridge.bytes_per_s


BRIDGED = ["A100-PCIe-40GB", "A100-PCIe-80GB", "A30", "A40", "H100-PCIe", "H100-NVL-94GB", "MI210"]


@pytest.mark.parametrize("name", [*BRIDGED, "RTX A6000", "RTX 3090"])
def test_a_board_that_takes_a_bridge_has_one(name: str) -> None:
    assert any(each.joins for each in ALL[name].links)


def test_boards_with_the_same_links_exchange_alike_in_pairs_and_in_eights() -> None:
    """However the catalogue names the first link of each."""
    for ranks in (2, 8):
        for of in ("all_reduce", "all_gather", "reduce_scatter"):
            size = Collective(of, 25 * 2**20, ranks)
            found = {
                estimate(size, ALL[name], calibration()).seconds
                for name in ("A40", "RTX A6000", "RTX 3090")
            }
            assert len(found) == 1


def test_ranks_that_lie_apart_do_not_exchange_over_a_bridge() -> None:
    """Two ranks that train on different sequences, each a model on two devices."""
    near, apart = (Collective("all_reduce", 2**24, 2, span=span) for span in (None, 4))
    seconds = [estimate(each, ALL["RTX A6000"], calibration()).seconds for each in (near, apart)]
    assert seconds[1] > 1.2 * seconds[0]


@pytest.mark.parametrize("name", ALL)
def test_an_accelerator_says_how_it_is_known(name: str) -> None:
    device = ALL[name]
    assert device.source
    figures = {*device.peak_flops, "bandwidth", "interconnect", "llc", "compute_units", "tdp"}
    assert device.recalled <= figures
    assert bool(device.recalled) <= ("memory" in f"{device.source} {device.note}")


def test_no_spelling_means_two_accelerators() -> None:
    spelt: dict[str, str] = {}
    for row in accelerators._rows():
        for spelling in (row["name"], *filter(None, row["aliases"].split("|"))):
            assert spelt.setdefault(accelerators._spelt(spelling), row["name"]) == row["name"]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("nvidia h100 80gb hbm3", "H100-SXM5-80GB"),
        ("h200_sxm", "H200-SXM-141GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_a_device_is_found_as_its_driver_and_engines_spell_it(spelling: str, name: str) -> None:
    assert accelerators.find(spelling).name == name


@pytest.mark.parametrize("wrong", ["H100-SXM5-80G", "h100 sxm 8", "", "x" * 999, "H100\nPCI?"])
def test_an_unknown_accelerator_is_one_line_with_the_nearest(wrong: str) -> None:
    with pytest.raises(LlmsimError) as caught:
        accelerators.find(wrong)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    if wrong.lower().startswith("h100"):
        assert "H100" in str(caught.value)


def test_a_dtype_that_a_device_lacks_is_one_line_with_those_it_has() -> None:
    with pytest.raises(LlmsimError, match=r"A100-SXM4-80GB computes in: one of.*bf16.*float8"):
        ALL["A100-SXM4-80GB"].peak("float8_e4m3fn")
    with pytest.raises(LlmsimError, match="dtype must be one of"):
        arithmetic("fp9")


@pytest.mark.parametrize(
    ("driver", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "H100-SXM5-80GB"),
        ("NVIDIA H100 PCIe", 79.2, "H100-PCIe"),
        ("NVIDIA H100 NVL", 93.1, "H100-NVL-94GB"),
        ("NVIDIA H200", 139.8, "H200-SXM-141GB"),
        ("NVIDIA H20", 95.1, "H20"),
        ("NVIDIA B200", 178.4, "B200-SXM"),
        ("NVIDIA GB200", 184.3, "GB200"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-SXM4-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.2, "A100-PCIe-80GB"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100-PCIe-40GB"),
        ("Tesla V100-SXM2-16GB", 15.8, "V100-SXM2-16GB"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100-SXM2-32GB"),
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA A10", 22.1, "A10"),
        ("NVIDIA A10G", 22.1, "A10G"),
        ("NVIDIA L4", 22.2, "L4"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX 4090"),
        ("NVIDIA RTX A6000", 47.5, "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 94.9, "RTX PRO 6000 Blackwell"),
        ("AMD Instinct MI300X", 191.9, "MI300X"),
    ],
)
def test_a_driver_s_name_is_that_of_one_entry(driver: str, gib: float, name: str) -> None:
    found = accelerators.of_driver(driver, round(gib * GIB))
    assert found is not None
    assert found.name == name
    assert accelerators.of_driver(driver) is found


@pytest.mark.parametrize(
    ("driver", "gib"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6),
        ("NVIDIA GeForce RTX 4090 D", 23.6),
        ("NVIDIA GeForce RTX 3090 Ti", 23.6),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 94.9),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.6),
        ("NVIDIA H100 64GB HBM2e", 63.4),
        ("NVIDIA GH200 480GB", 94.5),
        ("NVIDIA H200 NVL", 139.8),
        ("NVIDIA A100-SXM-64GB", 63.4),
        ("NVIDIA A100", 79.2),  # SXM or PCIe
        ("NVIDIA H100", 79.2),
        ("Tesla V100-SXM2", 15.8),
        ("AMD Instinct MI250X / MI250", 64.0),  # one of the two dies that the entry counts
        ("AMD Instinct MI250X", 64.0),
        ("NVIDIA H200", 70.0),
        ("Grace CPU", 480.0),
        ("", 16.0),
    ],
)
def test_a_driver_s_name_that_may_be_another_device_is_none(driver: str, gib: float) -> None:
    assert accelerators.of_driver(driver, round(gib * GIB)) is None
