"""Define the competitors that train a ControlNet: medjax, diffusers' Flax, and torch.

    L = mean (noise − U(z_t, t, text, ControlNet(z_t, t, text, image)))²             (1)

The U-Net is frozen. A step consists of the loss, its gradient, clipping at norm 1, and
AdamW (learning rate 1e-5, betas 0.9 and 0.999, weight decay 1e-2). These are defaults
of the two scripts of diffusers, `train_controlnet.py` and `train_controlnet_flax.py`.
Trained weights and the optimiser are float32. `Settings.dtype` is the dtype of frozen
weights and activations.

A function of `Settings` makes each trainer. The trainer is a function that takes one
step, waits until it is done, and returns the loss before the step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from bench.networks import (
    BETAS,
    CLIP_NORM,
    DECAY,
    INPUTS,
    LEARNING_RATE,
    Settings,
    draw_batch,
    draw_controlnet,
    draw_unet,
)
from bench.torch_steps import channels_first, make_torch
from bench.workers import Counted, Step
from medjax import trees


def make_medjax(settings: Settings) -> Step:
    """Return medjax's training step, with its own loss, optimiser and mesh."""
    frozen = {"unet": draw_unet(settings)}
    params = {"controlnet": draw_controlnet(settings)}
    return medjax_step(controlled(settings), params, frozen, settings)


def controlled(settings: Settings, **options: Any) -> Any:
    """Return the task of a ControlNet on a frozen U-Net; both take `options`."""
    import jax.numpy as jnp

    from medjax.models.controlnet import ControlNet
    from medjax.models.unet_2d_condition import UNet2DCondition

    options |= {"dtype": jnp.dtype(settings.dtype)}
    return _Controlled(
        UNet2DCondition.from_config(settings.unet_config, **options),
        ControlNet.from_config(settings.controlnet_config, **options),
    )


def medjax_step(task: Any, params: Any, frozen: Any, settings: Settings) -> Step:
    """Return medjax's training step of a task, with its own optimiser and mesh.

    Args:
        task: Object with a loss.
        params: Trained weights.
        frozen: Frozen weights.
        settings: Settings of the batch.
    """
    import jax
    import jax.numpy as jnp

    from medjax import meshes
    from medjax.training.speed import step_flops
    from medjax.training.step import init_state, make_train_step

    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    frozen = trees.cast(frozen, jnp.dtype(settings.dtype))
    frozen = jax.device_put(frozen, meshes.param_shardings(frozen, mesh))
    optimizer = medjax_optimizer(params)
    state = init_state(params, {}, optimizer, mesh, ema=False)
    del params
    train_step = make_train_step(task, optimizer, mesh)
    batch = meshes.place_batch(draw_batch(settings), mesh)
    key = jax.random.key(0)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, frozen, batch, key)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Counted(step, lambda: step_flops(train_step, state, frozen, batch, key))


def medjax_optimizer(params: Any) -> Any:
    """Return medjax's optimiser with the settings of all competitors."""
    from medjax.runs.sections import OptimConfig
    from medjax.training.optimizer import make_optimizer

    config = OptimConfig(
        learning_rate=LEARNING_RATE,
        b1=BETAS[0],
        b2=BETAS[1],
        weight_decay=DECAY,
        clip_norm=CLIP_NORM,
    )
    return make_optimizer(config, 10_000, params)


class LatentsGiven:
    """`medjax.tasks.Task` without a loss, for batches of latents and embeddings."""

    def check(self, size: int, sampling: Any) -> None:
        """Accept every size, because the latents are given."""

    def sample(self, *_: Any) -> Any:
        """Raise NotImplementedError, because a benchmark of steps samples no images."""
        raise NotImplementedError

    def follow(self, statistics: Any, observed: Any, key: Any) -> Any:
        """Return the statistics unchanged; they are empty."""
        del observed, key
        return statistics, {}

    def nets(self, params: Any, frozen: Any) -> Any:
        """Return all weights by network, gathered as in medjax's tasks."""
        from medjax.meshes import gather_params
        from medjax.tasks.captioned import GATHERING

        return gather_params(trees.merge(params, frozen), GATHERING)


@dataclasses.dataclass(frozen=True, eq=False)
class _Controlled(LatentsGiven):
    """The loss of eq. 1."""

    unet: Any
    controlnet: Any

    def loss(self, params: Any, frozen: Any, batch: Any, keys: Any, train: bool) -> Any:
        from medjax.diffusion.objective import errors
        from medjax.tasks.interface import Outcome

        del keys, train
        nets = self.nets(params, frozen)
        inputs = [batch[k] for k in INPUTS]
        down, mid = self.controlnet.apply(
            {"params": nets["controlnet"]}, *inputs, batch["conditioning_image"]
        )
        output = self.unet.apply({"params": nets["unet"]}, *inputs, down, mid)
        return Outcome(errors(output, batch["noise"]))


def make_flax(settings: Settings) -> Step:
    """Return a jitted training step of diffusers' Flax modules with optax."""
    import jax
    import jax.numpy as jnp

    # Our trees use the same names, so the weights need no conversion.
    frozen = jax.device_put(trees.cast(draw_unet(settings), jnp.dtype(settings.dtype)))
    begin, train_step = flax_program(settings)
    state = begin(jax.device_put(draw_controlnet(settings)))
    batch = {
        name: jnp.asarray(channels_first(x)) for name, x in draw_batch(settings).items()
    }

    def step() -> float:
        nonlocal state
        state, value = train_step(state, frozen, batch)
        jax.block_until_ready(state)
        return float(value)

    return step


def flax_program(settings: Settings) -> tuple[Callable[[Any], Any], Any]:
    """Return a function of the weights to the first state, and the jitted step."""
    import jax
    import jax.numpy as jnp
    import optax
    from diffusers import FlaxControlNetModel, FlaxUNet2DConditionModel
    from flax.training.train_state import TrainState

    dtype = jnp.dtype(settings.dtype)
    unet: Any = FlaxUNet2DConditionModel(**settings.unet_config, dtype=dtype)
    controlnet: Any = FlaxControlNetModel(**settings.controlnet_config, dtype=dtype)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(LEARNING_RATE, *BETAS, weight_decay=DECAY),
    )

    def begin(params: Any) -> TrainState:
        return TrainState.create(apply_fn=controlnet.apply, params=params, tx=optimizer)

    def loss(params: Any, frozen: Any, batch: Any) -> Any:
        inputs = [batch[k] for k in INPUTS]
        down, mid = controlnet.apply(
            {"params": params},
            *inputs,
            batch["conditioning_image"],
            return_dict=False,
            train=True,
        )
        output = unet.apply(
            {"params": frozen},
            *inputs,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        return jnp.square(batch["noise"] - output).mean()

    def update(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
        value, gradients = jax.value_and_grad(loss)(state.params, frozen, batch)
        return state.apply_gradients(grads=gradients), value

    return begin, jax.jit(update, donate_argnums=0)


# By name: the function that makes the trainer, and the packages that it requires.
Competitors = dict[str, tuple[Callable[[Settings], Step], tuple[str, ...]]]
COMPETITORS: Competitors = {
    "medjax": (make_medjax, ()),
    "flax": (make_flax, ("diffusers",)),
    "torch": (make_torch, ("torch", "diffusers")),
}
