"""The page of all recipes by the TPU's compiler; the compiler is replaced here."""

import json

import pytest

from bench import recipes, report
from medjax.chips import CHIPS
from medjax.compiling.compiled import Figures
from medjax.compiling.preflight import Estimate
from medjax.models.remat import POLICIES


@pytest.fixture
def asked(monkeypatch):
    """The configs and topologies that were asked for."""
    calls = []

    def step(config, topology):
        calls.append((config, topology))
        chips = config.mesh.data * config.mesh.fsdp
        figures = Figures(2e12, 9e9, {"all-reduce": 1e9}, 3e9, 0.0, 4e9, kernels=5)
        size = config.data.batch_size
        return Estimate(figures, size, abs(chips), CHIPS["v6e"], 0.0)

    monkeypatch.setattr(recipes, "step", step)
    return calls


def made(monkeypatch, folder, *flags):
    monkeypatch.setattr("sys.argv", ["recipes", *flags, f"--out={folder}"])
    report.run(recipes.main)


def test_a_page_has_each_policy_and_mesh(asked, monkeypatch, tmp_path):
    made(monkeypatch, tmp_path, "--only=remat,scaling")
    content = json.loads((tmp_path / "recipes-tpu.json").read_text())
    policies, meshes = content["tables"].values()
    assert [row["remat"] for row in policies] == 2 * list(POLICIES)
    assert [(row["data"], row["fsdp"]) for row in meshes] == [(1, 1), (16, 1), (1, 16)]
    assert {config.data.image_size for config, _ in asked} == {512}
    # 8 images a chip.
    assert [config.data.batch_size for config, _ in asked] == 7 * [8] + 2 * [128]
    first = policies[0]
    assert (first["memory, GB"], first["fits"]) == (7, "yes")
    # 9 GB at 1640 GB/s take longer than 2 TFLOP at 918 TFLOP/s.
    assert first["bound by"] == "memory traffic"
    assert not content["doubts"]


def test_an_unknown_table_is_an_error(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        made(monkeypatch, tmp_path, "--only=ramat")
    assert "did you mean 'remat'?" in capsys.readouterr().err


@pytest.mark.parametrize("topology", recipes.RECIPES)
def test_every_recipe_can_be_asked_for(topology):
    for recipe in recipes.RECIPES[topology]:
        assert recipes.config_of(recipe).data.image_size > 0
