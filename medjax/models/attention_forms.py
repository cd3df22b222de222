"""Attention's one entry: which form computes it, by platform and shape, and why.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d) V                                    (1)

The form is chosen while a program is lowered, so one traced program serves every
platform:

* **CPU**: some queries at a time where there are many keys (`contractions`).
* **TPU**: a kernel of ours (`attention_kernel`) from 256 queries on, if all keys of a
  head stay on the chip; jax's splash attention (`attention_splash`) for more keys. The
  table below has the reason. Maps of 8 × 8 pixels stay plain products.
* **GPU**: cuDNN's fused attention through `jax.nn.dot_product_attention`, within its
  limits: half precision, heads of a multiple of 8 channels, at most 128, or 256 from
  Hopper on. jax 0.10.2 refuses the gradient for an odd number of tokens, so the 77 of a
  caption are plain products. jax asks the local cuDNN for its version while it traces,
  so a machine without a GPU traces plain products in its place.
* **Everything else**: plain products, with the softmax in float32.

`config.model.attention` names one of `FORMS` instead.

HBM traffic in GB of one attention, forward and gradient, by the compiler for TPU v6e
(jax 0.10.2; batch 8, 8 heads, bfloat16), without what splash attention reads again:

======== ==== ======== ===== ====== =====
queries  keys channels plain splash fused
======== ==== ======== ===== ====== =====
4096     4096 40       32.8  1.14   0.36
4096     77   40       0.87  0.71   0.22
1024     1024 80       2.54  0.43   0.34
1024     77   80       0.37  0.26   0.14
256      256  160      0.35  0.20   0.17
256      77   160      0.19  0.16   0.12
======== ==== ======== ===== ====== =====
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Float

from medjax import meshes
from medjax.arrays import Array
from medjax.errors import UserError
from medjax.models import contractions
from medjax.models.attention_kernel import fits, fused
from medjax.models.attention_splash import splash
from medjax.models.autodiff import with_forward_mode

FORMS = ("auto", "plain", "fused", "splash", "cudnn")
Form = Literal["auto", "plain", "fused", "splash", "cudnn"]

# Queries from which a kernel saves traffic on a TPU.
_LEAST_QUERIES = 256
_HALF = (jnp.bfloat16, jnp.float16)

_Attend = Callable[[Array, Array, Array], Array]
_KERNELS: dict[str, _Attend] = {"fused": fused, "splash": splash}


def attend(
    query: Float[Array, "b n heads d"],
    key: Float[Array, "b l heads d"],
    value: Float[Array, "b l heads d"],
    *,
    form: Form = "auto",
    causal: bool = False,
) -> Float[Array, "b n heads d"]:
    """Return the attention of each head (eq. 1), with the softmax in float32.

    Args:
        query: Queries of n tokens.
        key: Keys of l tokens.
        value: Values of the same tokens as `key`.
        form: How to compute it. All but "auto" are for a platform where
            `check_form` accepts them.
        causal: Whether token i attends to the tokens up to i only.

    Raises:
        UserError: If `form` does not support these operands.
    """
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    operands = (query, key, value)
    if form == "plain":
        return plain(*operands)
    if form in _KERNELS and not causal:
        if form == "fused" and not _fits(key):
            raise UserError(
                f"config.model.attention=fused: {key.shape[1]} keys of {key.shape[3]} "
                "channels do not fit on the chip; use auto"
            )
        return _on_each_device(_KERNELS[form])(*operands)
    if form == "cudnn":
        if problem := _cudnn_problem(query, key):
            raise UserError(
                f"config.model.attention=cudnn: {problem}; use auto, which takes plain "
                "products there"
            )
        return _cudnn(plain)(*operands)
    return lax.platform_dependent(
        *operands, default=plain, **_forms(plain, query, key, causal)
    )


def check_attention(model: Any, mesh: Mesh) -> None:
    """Check that the form that a config asks for exists on the devices.

    Args:
        model: The config's section of that name, perhaps without attention.
        mesh: The devices.

    Raises:
        UserError: If it does not.
    """
    if hasattr(model, "attention"):
        platform = mesh.devices.flat[0].platform
        check_form(model.attention, platform, model.dtype)


def check_form(form: str, platform: str, dtype: str) -> None:
    """Check that attention has a form on a platform.

    Args:
        form: One of `FORMS`.
        platform: "cpu", "gpu" or "tpu".
        dtype: Of the computation.

    Raises:
        UserError: If it does not.
    """
    where = {"fused": "tpu", "splash": "tpu", "cudnn": "gpu"}
    if form not in FORMS:
        raise UserError(
            f"config.model.attention={form}: expected one of {', '.join(FORMS)}"
        )
    if where.get(form, platform) != platform:
        raise UserError(
            f"config.model.attention={form}: expected a {where[form].upper()}, got a "
            f"{platform.upper()}; use auto"
        )
    if form == "cudnn" and jnp.dtype(dtype) not in _HALF:
        raise UserError(
            f"config.model.attention=cudnn: expected config.model.dtype=bfloat16, got "
            f"{dtype}; use auto"
        )


def _forms(
    plain: _Attend, query: Array, key: Array, causal: bool
) -> dict[str, _Attend]:
    """Return the platforms with a form of their own for such operands."""
    forms: dict[str, _Attend] = {}
    if not causal:
        forms["cpu"] = contractions.attention_on_cpu
        if query.shape[1] >= _LEAST_QUERIES:
            forms["tpu"] = _on_each_device(fused if _fits(key) else splash)
    if not _cudnn_problem(query, key):
        forms["cuda"] = _cudnn(plain)
    return forms


def _fits(key: Array) -> bool:
    return fits(key.shape[1], key.shape[3], key.dtype.itemsize)


def _on_each_device(attention: _Attend) -> _Attend:
    """Return attention that each device computes of its examples and heads.

    The compiler cannot partition a kernel.
    """

    def split(query: Array, key: Array, value: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return attention(query, key, value)
        spec = meshes.activation_spec(query.shape, None, "tensor")
        # A kernel does not say over which axes its results vary.
        return jax.shard_map(
            attention, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )(query, key, value)

    return split


def _cudnn(plain: Callable[..., Array]) -> _Attend:
    fused = functools.partial(plain, implementation="cudnn")
    return with_forward_mode(fused, plain)


def _cudnn_problem(query: Array, key: Array) -> str:
    """Return why cuDNN cannot attend from these to those tokens; "" if it can."""
    capability = _cudnn_capability()
    most, channels = (256 if capability >= (9, 0) else 128), query.shape[-1]
    if query.dtype not in _HALF:
        return f"expected bfloat16 or float16, got {query.dtype}"
    if channels % 8 or channels > most:
        return f"expected a multiple of 8 up to {most} channels a head, got {channels}"
    tokens = (query.shape[1], key.shape[1])
    if any(count % 2 for count in tokens):
        # jax takes its placeholder of a bias for one, and such a bias must be even.
        return f"expected even numbers of tokens, got {tokens[0]} and {tokens[1]}"
    if not capability:
        return "expected a GPU with cuDNN, found none"
    return ""


@functools.cache
def _cudnn_capability() -> tuple[int, ...]:
    """Return the compute capability of the local GPU; () without one or cuDNN."""
    try:
        device, *_ = jax.local_devices(backend="cuda")
        tiny = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
        fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        jax.eval_shape(fused, tiny, tiny, tiny)
    except RuntimeError:
        return ()
    return tuple(int(part) for part in device.compute_capability.split("."))
