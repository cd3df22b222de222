"""Hub ids: as little as possible is asked for, and errors say what to do.

The hub here is a folder; its client's own matching of file patterns is used.
"""

import json
import shutil

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from medjax.errors import UserError
from medjax.pretrained import load_controlnet, load_stable_diffusion, sources
from medjax.pretrained import save_stable_diffusion as save
from tests.pretrained.small import assert_same, stable_diffusion

ID = "owner/name"
PLAIN = "diffusion_pytorch_model.safetensors"
OTHERS = (
    "README.md",
    "v1-5-pruned.ckpt",
    "safety_checker/model.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16.safetensors",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    sd = stable_diffusion()
    folder = tmp_path_factory.mktemp("saved")
    save(sd, folder)
    return sd, folder


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """Return a hub's folder, the cache, and the calls made so far."""
    remote, cache, calls = tmp_path / "remote", tmp_path / "cache", []
    shutil.copytree(saved[1], remote)
    for name in OTHERS:
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_bytes(b"not to be downloaded")

    def snapshot_download(name, allow_patterns):
        assert name == ID
        calls.append(allow_patterns)
        files = [
            str(file.relative_to(remote))
            for file in remote.rglob("*")
            if file.is_file()
        ]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return remote, cache, calls


def files(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


@pytest.mark.ci
def test_only_what_is_needed_is_downloaded(saved, hub):
    _, cache, calls = hub
    loaded = load_stable_diffusion(ID)
    assert_same(loaded.unet.params, saved[0].unet.params)
    assert len(calls) == 1
    assert files(cache) == files(saved[1])


def test_half_precision_is_asked_for_only_without_full(saved, hub):
    remote, cache, calls = hub
    for part in ("unet", "vae"):
        file = remote / part / PLAIN
        file.rename(file.with_name(PLAIN.replace(".saf", ".fp16.saf")))
    model = remote / "text_encoder" / "model.safetensors"
    model.rename(model.with_name("model.fp16.safetensors"))
    loaded = load_stable_diffusion(ID)
    assert_same(loaded.vae.params, saved[0].vae.params)
    assert len(calls) == 2
    assert not [file for file in files(cache) if file.endswith(".bin")]


def test_shards_are_among_what_is_asked_for(saved, hub):
    remote, cache, _ = hub
    file = remote / "unet" / PLAIN
    shard = file.with_name("diffusion_pytorch_model-00001-of-00001.safetensors")
    file.rename(shard)
    with open(shard, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    weight_map = {name: shard.name for name in header if name != "__metadata__"}
    index = remote / "unet" / f"{PLAIN}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_stable_diffusion(ID).unet.params, saved[0].unet.params)
    assert f"unet/{shard.name}" in files(cache)


def test_torchs_own_files_come_last_and_not_for_the_safetensors_route(hub):
    remote, cache, calls = hub
    for file in remote.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="safetensors is missing"):
        load_stable_diffusion(ID, route="safetensors")
    assert not [file for file in files(cache) if file.endswith(".bin")]
    (remote / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")
    calls.clear()
    # The files are not what they say; that they were chosen is the point here. Which
    # error it is depends on what is installed.
    with pytest.raises(UserError, match=r"flax-pipelines|not a file of torch weights"):
        load_stable_diffusion(ID)
    assert len(calls) == 4
    assert "vae/diffusion_pytorch_model.bin" in files(cache)


def made(kind, message="first line.\nsecond line"):
    """Return an error of the hub's client, whose makers want a whole HTTP response."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (made(errors.RepositoryNotFoundError), "hf auth login"),
        (made(errors.GatedRepoError), "accept terms"),
        (made(errors.LocalEntryNotFoundError), "local cache"),
        (OSError("disk full\n"), "disk full"),
    ],
)
def test_each_refusal_of_the_hub_has_its_remedy(error, said, monkeypatch):
    def refuse(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as raised:
        load_controlnet(ID)
    message = str(raised.value)
    assert said in message
    assert "no such local folder" in message
    assert "\n" not in message


def test_a_home_folder_is_expanded(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[1].parent))
    found = sources.local_folder(f"~/{saved[1].name}", [], lambda _: True)
    assert found == saved[1]


def test_a_folder_of_adapters_is_no_base(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    for file in ("model_index.json", "unet/config.json"):
        with pytest.raises(UserError, match=r"contains only adapters \(LoRA\)\. "):
            sources.read_json(tmp_path / file)
