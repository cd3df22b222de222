"""``medjax preflight``: its fields, its search, its errors, and every demo."""

import dataclasses
import json

import pytest

from medjax.chips import CHIPS
from medjax.compiling import compiled, preflight, topologies
from medjax.compiling.compiled import Figures
from medjax.compiling.run_programs import bytes_per_chip, run_programs
from medjax.config_files import load_config, packaged_names
from medjax.errors import UserError
from medjax.runs.config import parse
from tests import in_process

FIELDS = {
    *("tflop", "hbm_gb", "arguments_gb", "temporaries_gb", "roofline_s"),
    "images_per_second",
}
SMALL = (
    "--config=knee_ddpm:demo",
    "--config.data.image_size=16",
    "--config.data.batch_size=8",
    "--config.data.phantoms.count=16",
    "--config.model.block_out_channels=(8,8)",
    "--config.model.attention_levels=()",
    "--config.model.norm_num_groups=4",
    "--config.eval.samples=4",
)
# Two recipes are demos themselves.
DEMOS = [
    name if name in ("phantom_sd", "phantom_vae") else f"{name}:demo"
    for name in packaged_names()
]


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler of programs of 1 MB and 3 MB an image, for a chip of 20 MB."""
    asked = []

    def compile_program(make, topology, cache):
        program = make(topology)
        asked.append(program.images)
        return Figures(
            flops=2e9,
            hbm_bytes=8e9,
            link_bytes={"all-reduce": 1e9},
            argument_bytes=1e6,
            output_bytes=0.0,
            temporary_bytes=3e6 * program.images,
            needed_bytes=None,
            compile_seconds=1.0,
        )

    chip = dataclasses.replace(CHIPS["v5e"], hbm_gb=0.02, tflops=1, hbm_gb_s=2)
    found = topologies.find_topology

    def find_topology(name):
        return dataclasses.replace(found(name), chip=chip)

    monkeypatch.setattr(preflight, "compile_program", compile_program)
    monkeypatch.setattr(topologies, "find_topology", find_topology)
    return asked


@pytest.mark.ci
def test_json_has_every_field_and_the_search_ends_at_what_fits(compiler):
    done = in_process.medjax("preflight", *SMALL, "--json", "--max_batch")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {"fits", "chips", "largest_batch", "remat"} <= said.keys()
    for program in ("step", "validation", "sampler"):
        assert said[program].keys() >= FIELDS
    step = said["step"]
    assert said["chips"] == 1
    assert step["tflop"] == pytest.approx(0.002)
    # Bound by memory: 8 GB at 2 GB/s.
    assert step["roofline_s"] == pytest.approx(4)
    assert step["images_per_second"] == pytest.approx(2)
    # 25 MB at batch 8, of 20, whatever the remat; 19 MB at batch 6.
    assert said["fits"] is False
    assert said["remat"] is None
    assert said["largest_batch"] == 6


@pytest.mark.ci
def test_the_largest_batch_is_verified(compiler):
    done = in_process.medjax(
        "preflight", *SMALL, "--json", "--max_batch", "--config.data.batch_size=4"
    )
    said = json.loads(done.stdout)
    assert (said["fits"], said["remat"], said["largest_batch"]) == (True, "none", 6)
    # The step alone is compiled again: at half the batch, and at the answer.
    assert compiler[-2:] == [2, 6]


def test_text_tells_the_price_and_what_bounds_it(compiler):
    done = in_process.medjax("preflight", *SMALL, "--price_per_hour=9")
    assert "bound by memory traffic" in done.stdout
    # 2000 steps of 4 seconds.
    assert "at least 2.2 h, 20.00 at 9 per chip and hour" in done.stdout
    assert "does not fit" in done.stdout.splitlines()[-2]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v5e:2x3", "did you mean 'v5e:2x2'?"),
        ("v5e", "did you mean 'v5e:1'?"),
        ("v9x:2x2", "did you mean 'v"),
        ("lokal", "did you mean 'local'?"),
    ],
)
def test_an_unknown_topology_names_the_nearest(name, hint):
    done = in_process.medjax("preflight", *SMALL, f"--topology={name}")
    assert done.returncode == 2
    assert hint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_compiler_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise topologies.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topologies.importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match="pip install .*Google Cloud Platform Terms"):
        topologies.find_topology("v6e:1")


def test_an_unknown_program_is_an_error():
    done = in_process.medjax("preflight", *SMALL, "--programs=stpe")
    assert done.returncode == 2
    assert "did you mean 'step'?" in done.stderr


def test_a_batch_that_devices_do_not_divide_is_an_error():
    done = in_process.medjax(
        "preflight", *SMALL, "--config.train.gradient_accumulation_steps=3"
    )
    assert done.returncode == 2
    assert "config.data.batch_size=8" in done.stderr


def test_a_form_of_attention_that_the_chips_lack_is_an_error():
    done = in_process.medjax("preflight", *SMALL, "--config.model.attention=splash")
    assert done.returncode == 2
    assert "config.model.attention=splash: expected a TPU, got a CPU" in done.stderr


@pytest.mark.ci
def test_a_full_size_recipe_needs_neither_weights_nor_network(monkeypatch):
    """Stable Diffusion 1.5: published sizes, and no memory for them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = parse(load_config("config", "cxr_lora"))
    ready = run_programs(config, topologies.find_topology("local").devices)
    billions = {part: bytes_per_chip(tree) / 1e9 for part, tree in ready.parts.items()}
    # 860 + 84 + 123 million weights in bfloat16.
    assert billions["frozen weights"] == pytest.approx(2 * 1.066, rel=0.01)
    assert billions["optimizer"] == pytest.approx(2 * billions["trained weights"], 0.01)


def _step(config, tmp_path):
    topology = topologies.find_topology("local")
    return preflight.estimate_step(config, topology, tmp_path).figures


@pytest.mark.ci
def test_four_microbatches_cost_four_times_one(tmp_path):
    config = parse(load_config("config", "knee_ddpm:demo"))
    data = dataclasses.replace(config.data, image_size=16, batch_size=2)
    model = dataclasses.replace(
        config.model,
        block_out_channels=(16,),
        layers_per_block=1,
        attention_levels=(),
    )
    config = dataclasses.replace(config, data=data, model=model)
    one = _step(config, tmp_path)
    train = dataclasses.replace(config.train, gradient_accumulation_steps=4)
    larger = preflight.with_batch(dataclasses.replace(config, train=train), 8)
    four = _step(larger, tmp_path)
    assert four.flops == pytest.approx(4 * one.flops, rel=0.02)
    # A step reads and writes the optimizer's state once.
    assert 2 * one.hbm_bytes < four.hbm_bytes < 4.2 * one.hbm_bytes
    # From the cache, so at once.
    assert _step(larger, tmp_path) == four
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.ci
def test_a_demo_is_compiled_for_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "figures_folder", lambda: tmp_path)
    done = in_process.medjax("preflight", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["step"]["tflop"] > said["validation"]["tflop"] > 0
    # The sampler calls the network once a step.
    assert said["sampler"]["tflop"] > 20 * said["validation"]["tflop"]


@pytest.mark.release
@pytest.mark.parametrize("name", DEMOS)
def test_every_demo_is_compiled_for_this_machine(name, tmp_path):
    config = parse(load_config("config", name))
    topology = topologies.find_topology("local")
    found = preflight.preflight(config, topology, tmp_path)
    for one in found.estimates.values():
        assert one.figures.flops > 0
        assert one.figures.temporary_bytes > 0
