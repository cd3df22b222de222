"""Define the U-Net of plain convolutions of the published knee and brain models.

A block is conv–BatchNorm–ReLU twice, with ReLU(Linear(time)) added between. A residual
block adds its input before the last ReLU.

Batch normalisation uses the whole batch in training and running averages in sampling.
The averages are not parameters. They are in the collection ``batch_stats``: training
returns new ones (``mutable=["batch_stats"]``), all other code reads them.

Source: Ronneberger et al., "U-Net", 2015, section 2; Ioffe and Szegedy, "Batch
Normalization", 2015, algorithms 1 and 2.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Num

from medjax.arrays import Array, Params
from medjax.meshes import split_activations
from medjax.models.initial import draw_params
from medjax.models.layers import conv, dense, timestep_embedding

TIME_CHANNELS = 32
# Part of the running averages that a step keeps. Torch's momentum is 1 minus this, 0.1.
_KEPT = 0.9


class ConvUNet(nn.Module):
    """Predict noise, velocity or clean images from noisy ones.

    Attributes:
        channels: Number of input and output channels.
        block_out_channels: Channels of each level. The last level is the bottleneck and
            has one block.
        layers_per_block: Number of blocks of every other level.
        residual: Whether blocks are residual. If so, a norm precedes the output.
        num_classes: Number of classes, without the additional class "none". 0 means
            unconditional.
        dtype: Dtype of the computation.
    """

    channels: int = 1
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    layers_per_block: int = 1
    residual: bool = False
    num_classes: int = 0
    dtype: Any = jnp.float32

    @property
    def downsampling(self) -> int:
        """Factor by which the bottleneck is smaller than the input, per side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def init_variables(self, key: Array) -> tuple[Params, Params]:
        """Return random initial parameters, and initial running averages."""
        side = self.downsampling
        images = jnp.zeros((1, side, side, self.channels))
        labels = jnp.zeros(1, jnp.int32) if self.num_classes else None
        shapes = jax.eval_shape(
            lambda: self.init(jax.random.key(0), images, jnp.zeros(1), labels)
        )
        stats = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "var")),
            shapes["batch_stats"],
        )
        return draw_params(shapes["params"], key), stats

    @nn.compact
    def __call__(
        self,
        noisy_images: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Return ε, v or z_0, depending on the schedule's `prediction_type`.

        Args:
            noisy_images: Noisy images. Height and width are multiples of
                `downsampling`.
            timesteps: Timesteps in [0, T).
            labels: Numbers of the classes. `num_classes` means no class.
            train: Whether to normalise by this batch, and to update the averages.
        """
        temb = timestep_embedding(timesteps, TIME_CHANNELS)
        temb = dense(TIME_CHANNELS, name="time_embedding", dtype=self.dtype)(temb)
        temb = nn.relu(temb)
        if labels is not None:
            embed = nn.Embed(
                self.num_classes + 1,
                TIME_CHANNELS,
                dtype=self.dtype,
                name="class_embedding",
            )
            temb = temb + embed(labels)

        def level(name: str, x: Array, features: int, layers: int) -> Array:
            for i in range(layers):
                x = _Block(
                    features, self.residual, train, self.dtype, name=f"{name}_block_{i}"
                )(x, temb)
            return x

        *widths, bottleneck = self.block_out_channels
        x, skips = noisy_images, []
        for i, width in enumerate(widths):
            x = level(f"down_{i}", x, width, self.layers_per_block)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = level("mid", x, bottleneck, 1)
        for i, width in enumerate(reversed(widths)):
            up = nn.ConvTranspose(
                width, (2, 2), strides=(2, 2), dtype=self.dtype, name=f"up_{i}_conv"
            )
            x = jnp.concatenate([skips.pop(), up(x)], axis=-1)
            x = level(f"up_{i}", x, width, self.layers_per_block)
        if self.residual:
            x = _batch_norm("norm_out", x, train, self.dtype)
        return conv(self.channels, 1, name="conv_out", dtype=self.dtype)(x)


class _Block(nn.Module):
    features: int
    residual: bool
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, temb: Array) -> Array:
        def normed(i: int, y: Array) -> Array:
            y = conv(self.features, name=f"conv{i}", dtype=self.dtype)(y)
            return _batch_norm(f"norm{i}", y, self.train, self.dtype)

        shift = dense(self.features, name="time_emb_proj", dtype=self.dtype)(temb)
        y = nn.relu(normed(1, x)) + nn.relu(shift)[:, None, None, :]
        y = normed(2, y)
        if self.residual:
            if x.shape[-1] != self.features:
                x = conv(self.features, 1, name="conv_shortcut", dtype=self.dtype)(x)
                x = _batch_norm("norm_shortcut", x, self.train, self.dtype)
            y = y + x
        return split_activations(nn.relu(y))


def _batch_norm(name: str, x: Array, train: bool, dtype: Any) -> Array:
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=_KEPT,
        dtype=dtype,
        # E[x²] − E[x]² in one pass loses precision. Two passes keep it.
        use_fast_variance=False,
        name=name,
    )
    return norm(x)
