import pytest

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.tasks.shape_checks import check_base, check_image_size
from tests.tasks import small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": {"in_channels": 9}}, "U-Net expects 9 channels, .*inpainting"),
        (
            {"text_encoder": {"hidden_size": 16}},
            "expects texts of 8 channels, .* gives 16",
        ),
        ({"text_encoder": {"vocab_size": 40}}, "has 50 tokens, .* has 40"),
    ],
)
def test_parts_of_different_models_are_told(change, message):
    task, _ = small.make()
    parts = {
        "unet": small.UNET,
        "vae": small.VAE,
        "text_encoder": small.TEXT,
    }
    good = {name: getattr(task.model, name) for name in parts}
    check_base("the one at x", **good, tokens=50)
    changed = {
        name: type(good[name]).from_config({**parts[name], **keys})
        for name, keys in change.items()
    }
    with pytest.raises(UserError, match=rf"the one at x: .*{message}"):
        check_base("the one at x", **good | changed, tokens=50)


@pytest.mark.parametrize(
    ("size", "near"),
    [(3, "such as 4,"), (6, "such as 4 or 8,"), (9, "such as 8 or 12,")],
)
def test_sizes_that_cannot_be_halved_are_told(size, near):
    for good in (4, 8, 12):
        check_image_size(good, 2, 2)
    with pytest.raises(UserError, match=f"image_size={size}: .* multiple of 4, {near}"):
        check_image_size(size, 2, 2)


def test_the_task_asks_before_anything_is_placed():
    task, _ = small.make()
    task.check(8, SamplingConfig())
    with pytest.raises(UserError, match="image_size=7"):
        task.check(7, SamplingConfig())
    with pytest.raises(UserError, match="steps"):
        task.check(8, SamplingConfig(steps=2000))
