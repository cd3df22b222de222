"""Define CLIP's text encoder, from token ids to the hidden states for the U-Net.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", 2021, section 2.4. Parameter names and results agree with transformers'
`CLIPTextModel`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from medjax.arrays import Array, Params
from medjax.errors import UserError
from medjax.meshes import split_activations
from medjax.models.attention_forms import attend
from medjax.models.configs import module_fields
from medjax.models.initial import draw_params, param_shapes
from medjax.models.layers import dense

M = TypeVar("M", bound="CLIPText")

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
}
# Keys of transformers' files that do not change the hidden states. Some belong to text
# generation, which older versions wrote into every file.
IGNORED = (
    "architectures bos_token_id eos_token_id pad_token_id model_type torch_dtype dtype "
    "transformers_version initializer_factor initializer_range projection_dim "
    "attention_dropout dropout return_dict id2label label2id max_length top_k "
    "pruned_heads diversity_penalty"
).split()


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of the text encoder. Names and defaults agree with transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: Any = jnp.float32


class CLIPText(nn.Module):
    """A causal transformer over tokens."""

    config: CLIPTextConfig

    @classmethod
    def from_config(cls: type[M], config: Mapping[str, Any], **overrides: Any) -> M:
        """Build from a transformers `config.json`; `overrides` may set `dtype`.

        Raises:
            UserError: If the network does not support the configuration.
        """
        names = {field.name for field in dataclasses.fields(CLIPTextConfig)}
        fields = module_fields(cls.__name__, config, names - {"dtype"}, ignored=IGNORED)
        if (act := fields.get("hidden_act", "quick_gelu")) not in ACTIVATIONS:
            raise UserError(
                f"CLIPText does not support hidden_act='{act}'; "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        return cls(CLIPTextConfig(**fields, **overrides))

    def param_shapes(self) -> Params:
        """Return the shapes of the parameters."""
        return param_shapes(self, jnp.zeros((1, 2), jnp.int32))

    def init_params(self, key: Array) -> Params:
        """Return random initial parameters (float32)."""
        return draw_params(self.param_shapes(), key)

    @nn.compact
    def __call__(self, text_ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Return the last hidden states, after the final norm."""
        return _TextModel(self.config, name="text_model")(text_ids)


def _norm(config: CLIPTextConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=config.dtype,
        use_fast_variance=False,
        name=name,
    )


class _TextModel(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, text_ids: Array) -> Array:
        x = _Embeddings(self.config, name="embeddings")(text_ids)
        x = _Encoder(self.config, name="encoder")(x)
        return _norm(self.config, "final_layer_norm")(x)


class _Embeddings(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, text_ids: Array) -> Array:
        c = self.config
        token = nn.Embed(
            c.vocab_size, c.hidden_size, dtype=c.dtype, name="token_embedding"
        )
        position = nn.Embed(
            c.max_position_embeddings,
            c.hidden_size,
            dtype=c.dtype,
            name="position_embedding",
        )
        return token(text_ids) + position(jnp.arange(text_ids.shape[1]))


class _Encoder(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _Layers(self.config, name="layers")(x)


class _Layers(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, name=str(i))(x)
        return x


class _Layer(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        attention = _SelfAttention(self.config, name="self_attn")
        x = split_activations(x + attention(_norm(self.config, "layer_norm1")(x)))
        mlp = _MLP(self.config, name="mlp")
        return split_activations(x + mlp(_norm(self.config, "layer_norm2")(x)))


class _SelfAttention(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def project(name: str, y: Array) -> Array:
            return dense(self.config.hidden_size, dtype=self.config.dtype, name=name)(y)

        def heads(y: Array) -> Array:
            y = y.reshape(*y.shape[:2], self.config.num_attention_heads, -1)
            return split_activations(y, None, "tensor")

        attended = attend(
            heads(project("q_proj", x)),
            heads(project("k_proj", x)),
            heads(project("v_proj", x)),
            causal=True,
        )
        return project("out_proj", attended.reshape(x.shape))


class _MLP(nn.Module):
    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        y = dense(c.intermediate_size, dtype=c.dtype, name="fc1")(x)
        return dense(c.hidden_size, dtype=c.dtype, name="fc2")(
            ACTIVATIONS[c.hidden_act](y)
        )
