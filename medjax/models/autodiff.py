"""Functions with a gradient of their own that forward mode can differentiate too.

`jax.custom_vjp` forbids `jax.jvp`. Here a function has a derivative that is linear in
the tangents, and that linear map has a transpose of its own. Forward mode uses the map,
reverse mode uses its transpose. `jax.vmap` and a second derivative are not supported.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call

from medjax.arrays import Array

Transpose = Callable[[Array, Array, Array], Array]


def bilinear(
    function: Callable[[Array, Array], Array], transposes: Sequence[Transpose]
) -> Callable[[Array, Array], Array]:
    """Return a bilinear function with these transposes.

    An operand without a tangent costs nothing.

    Args:
        function: Linear in each of its two operands.
        transposes: For each operand, a function of both operands and of the result's
            gradient that returns the operand's gradient.
    """

    def change(number: int, primals: tuple[Array, Array], tangent: Array) -> Array:
        def forward(primals: tuple[Array, Array], tangent: Array) -> Array:
            operands = list(primals)
            operands[number] = tangent
            return function(*operands)

        def backward(primals: tuple[Array, Array], gradient: Array) -> Array:
            return transposes[number](*primals, gradient)

        return linear_call(forward, backward, primals, tangent)

    @jax.custom_jvp
    def product(a: Array, b: Array) -> Array:
        return function(a, b)

    def derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
        changes = (change(i, primals, tangents[i]) for i in _nonzero(tangents))
        return product(*primals), functools.reduce(jnp.add, changes)

    product.defjvp(derivative, symbolic_zeros=True)
    return product


def with_forward_mode(
    function: Callable[..., Array], reference: Callable[..., Array]
) -> Callable[..., Array]:
    """Return `function` with the tangents of another function of the same values.

    Args:
        function: Differentiable in reverse mode only.
        reference: Differentiable in both modes.
    """

    @jax.custom_jvp
    def both(*operands: Array) -> Array:
        return function(*operands)

    def derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
        numbers = _nonzero(tangents)

        def of_chosen(
            function: Callable[..., Array], primals: Sequence[Array]
        ) -> tuple[Callable[..., Array], list[Array]]:
            """Return a function of the operands that have tangents, and those."""

            def partial(*chosen: Array) -> Array:
                operands = list(primals)
                for number, operand in zip(numbers, chosen, strict=True):
                    operands[number] = operand
                return function(*operands)

            return partial, [primals[i] for i in numbers]

        partial, chosen = of_chosen(function, primals)
        result, pullback = jax.vjp(partial, *chosen)
        leaves, structure = jax.tree.flatten(pullback)

        def forward(saved: Any, tangents: Sequence[Array]) -> Array:
            partial, chosen = of_chosen(reference, saved[0])
            return jax.jvp(partial, chosen, tangents)[1]

        def backward(saved: Any, gradient: Array) -> Sequence[Array]:
            return list(jax.tree.unflatten(structure, saved[1])(gradient))

        tangents = [tangents[i] for i in numbers]
        return result, linear_call(forward, backward, (primals, leaves), tangents)

    both.defjvp(derivative, symbolic_zeros=True)
    return both


def _nonzero(tangents: Sequence[Any]) -> list[int]:
    """Return the numbers of the tangents that are not known to be zero."""
    return [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
