"""Update a codebook by moving averages of its latents, without gradients.

Let n_j be the share of a batch's latents whose nearest entry is j, and m_j the sum of
these latents over the number of all latents. γ is the decay. Then

    N_j ← γ N_j + (1 − γ) n_j,   M_j ← γ M_j + (1 − γ) m_j,   e_j = M_j / N_j       (1)
    perplexity = exp(−Σ_j n_j log n_j)                                            (2)

An entry is dead if it is the nearest entry of few latents: N_j < δ / k. It moves to the
place of a frequent entry, with noise as large as the distance of latents from their
entries. So it becomes the nearest entry of some of these latents.

Shares and sums are means over the batch, so that devices and microbatches can average
them.

Sources: van den Oord et al., 2017, appendix A.1 (1); Linde, Buzo and Gray, "An
Algorithm for Vector Quantizer Design", 1980, section V (splitting).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from medjax.arrays import Array, Params


def init_codebook(key: Key[Array, ""], size: int, channels: int) -> Params:
    """Return a codebook of `size` entries from a standard normal distribution.

    Returns:
        ``codes`` (k d), ``share`` (k), which is N, and ``sums`` (k d), which is M.
    """
    codes = jax.random.normal(key, (size, channels))
    share = jnp.full(size, 1 / size)
    return {"codes": codes, "share": share, "sums": codes * share[:, None]}


def observe(
    latents: Float[Array, "*n d"],
    numbers: Int[Array, " *n"],
    codes: Float[Array, "k d"],
) -> Params:
    """Return the statistics of a batch that the codebook's update needs.

    Args:
        latents: Latents before quantisation.
        numbers: Index of the nearest entry of each latent.
        codes: Entries of the codebook.

    Returns:
        ``share`` (k), which is n, ``sums`` (k d), which is m, and ``error`` (d), the
        mean squared distance to the nearest entry.
    """
    flat, numbers = latents.reshape(-1, latents.shape[-1]), numbers.reshape(-1)
    count = codes.shape[0]
    share = jnp.zeros(count).at[numbers].add(1.0) / len(numbers)
    sums = jnp.zeros(codes.shape).at[numbers].add(flat) / len(numbers)
    return {
        "share": share,
        "sums": sums,
        "error": jnp.square(flat - codes[numbers]).mean(axis=0),
    }


def usage(share: Float[Array, " k"]) -> dict[str, Float[Array, ""]]:
    """Return the perplexity (eq. 2) of shares that sum to 1, and the fraction above 0.

    Returns:
        ``perplexity``, from 1 to k, and ``codebook_usage``, the fraction of the
        entries in use, in [0, 1].
    """
    logs = jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1.0)), 0.0)
    return {
        "perplexity": jnp.exp(-(share * logs).sum()),
        "codebook_usage": (share > 0).mean(),
    }


def follow(
    codebook: Params,
    observed: Params,
    key: Key[Array, ""],
    decay: float,
    dead_below: float,
) -> Params:
    """Return a codebook after a batch (eq. 1), with dead entries moved.

    Args:
        codebook: The codebook before the batch, as `init_codebook` returns it.
        observed: The batch's statistics, as `observe` returns them.
        key: Random key for the new places of dead entries.
        decay: γ, in [0, 1).
        dead_below: δ, as a fraction of the equal share 1 / k. 0 moves no entries.
    """
    share = decay * codebook["share"] + (1 - decay) * observed["share"]
    sums = decay * codebook["sums"] + (1 - decay) * observed["sums"]
    size = share.shape[0]
    # An entry without latents for very long keeps its place: N_j is about 0 there.
    seen = share > jnp.finfo(jnp.float32).tiny
    codes = jnp.where(
        seen[:, None], sums / jnp.where(seen, share, 1.0)[:, None], codebook["codes"]
    )
    if dead_below > 0:
        where, jitter = jax.random.split(key)
        busy = jax.random.choice(where, size, (size,), p=observed["share"])
        noise = jax.random.normal(jitter, codes.shape) * jnp.sqrt(observed["error"])
        dead = share < dead_below / size
        codes = jnp.where(dead[:, None], codes[busy] + noise, codes)
        # The equal share gives a moved entry time to find latents.
        share = jnp.where(dead, 1 / size, share)
        sums = jnp.where(dead[:, None], codes / size, sums)
    return {"codes": codes, "share": share, "sums": sums}
