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
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.networks import Settings, draw_batch, draw_controlnet, draw_unet
from medjax import trees

Step = Callable[[], float]
LEARNING_RATE, BETAS, DECAY, CLIP_NORM = 1e-5, (0.9, 0.999), 1e-2, 1.0
INPUTS = ("noisy_latents", "timesteps", "text_embeddings")


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

    return step


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

    def follow(self, statistics: Any, observed: Any, key: Any) -> Any:
        """Return the statistics unchanged; they are empty."""
        del observed, key
        return statistics, {}


@dataclasses.dataclass(frozen=True, eq=False)
class _Controlled(LatentsGiven):
    """The loss of eq. 1."""

    unet: Any
    controlnet: Any

    def loss(self, params: Any, frozen: Any, batch: Any, keys: Any, train: bool) -> Any:
        from medjax.diffusion.objective import errors
        from medjax.meshes import gather_params
        from medjax.tasks.interface import Outcome

        del keys, train
        nets = gather_params(trees.merge(params, frozen))
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


def make_torch(settings: Settings) -> Step:
    """Return a training step of torch diffusers' modules with AdamW.

    In bfloat16 the step uses autocast, and the frozen weights are stored in bfloat16.
    Attention is torch's `scaled_dot_product_attention`, the default of diffusers. The
    optimiser is the fused one. On a GPU both networks are compiled, and channels come
    last. There, float32 matrix products may use TF32, as in jax.
    """
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = getattr(torch, settings.dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**settings.unet_config)
        controlnet: Any = ControlNetModel(**settings.controlnet_config)
    load_torch(unet, draw_unet(settings))
    load_torch(controlnet, draw_controlnet(settings))
    unet.requires_grad_(False).to(device, dtype)
    controlnet.train().to(device)
    if gpu:
        torch.set_float32_matmul_precision("high")
        unet, controlnet = (
            torch.compile(net.to(memory_format=torch.channels_last))
            for net in (unet, controlnet)
        )

    def predict(batch: Any) -> Any:
        inputs = [batch[k] for k in INPUTS]
        down, mid = controlnet(*inputs, batch["conditioning_image"], return_dict=False)
        return unet(
            *inputs,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    return torch_step(predict, controlnet.parameters(), settings)


def torch_step(
    predict: Callable[[Any], Any], parameters: Iterable[Any], settings: Settings
) -> Step:
    """Return torch's training step, with the fused AdamW, and autocast in bfloat16.

    Args:
        predict: Returns the output of the U-Net for a batch.
        parameters: Trained weights.
        settings: Settings of the batch.
    """
    import torch

    parameters = list(parameters)
    device, dtype = parameters[0].device, getattr(torch, settings.dtype)
    optimizer = torch.optim.AdamW(
        parameters, LEARNING_RATE, BETAS, weight_decay=DECAY, fused=True
    )
    batch = {
        name: torch.from_numpy(channels_first(x)).to(device)
        for name, x in draw_batch(settings).items()
    }

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = predict(batch)
        loss = torch.nn.functional.mse_loss(output.float(), batch["noise"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


def load_torch(module: Any, params: Any) -> None:
    """Load all weights of our tree into a torch module."""
    import torch

    from medjax.pretrained.names import to_torch, torch_names

    weights = {
        torch_names(path)[0]: torch.from_numpy(
            np.ascontiguousarray(to_torch(path, leaf))
        )
        for path, leaf in trees.flatten(params).items()
    }
    module.load_state_dict(weights, strict=True, assign=True)


def channels_first(x: np.ndarray) -> np.ndarray:
    """Return images in torch's layout, b c h w, and other arrays unchanged."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


# By name: the function that makes the trainer, and the packages that it requires.
Competitors = dict[str, tuple[Callable[[Settings], Step], tuple[str, ...]]]
COMPETITORS: Competitors = {
    "medjax": (make_medjax, ()),
    "flax": (make_flax, ("diffusers",)),
    "torch": (make_torch, ("torch", "diffusers")),
}
