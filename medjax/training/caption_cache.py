"""Compute the embedding of each distinct caption once, and keep it on disk.

A frozen text encoder gives a caption the same embedding in every epoch, and in every
image that has this caption.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from medjax import meshes
from medjax.arrays import Array, Params
from medjax.data.tokens import tokenize
from medjax.training.latent_cache import CachedLatents
from medjax.training.stop import StopRequest
from medjax.training.stored_rows import STORED, Rows, StoredRows, compute_rows

logger = logging.getLogger(__name__)

_ARRAY = "text_embeddings"

TextEmbedding = Callable[[Params, Array], Array]
"""Maps frozen weights and token ids to the embeddings of captions."""


@dataclasses.dataclass(frozen=True)
class EmbeddedCaptions:
    """A split whose records have ``text_embeddings``.

    Attributes:
        source: The split.
        rows: The embeddings, one per distinct caption.
    """

    source: CachedLatents
    rows: StoredRows

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        return record | self.rows.arrays(self._row[record["text"]])

    @functools.cached_property
    def _row(self) -> dict[str, int]:
        return {record["text"]: i for i, record in enumerate(self.rows.records)}

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read the captions themselves.
        return {"source": self.source, "rows": self.rows}


def cache_captions(
    source: CachedLatents,
    tokenizer: Any,
    base: Mapping[str, str],
    embed: TextEmbedding,
    frozen: Params,
    mesh: Mesh,
    batch_size: int,
    home: Path,
    stop: StopRequest,
) -> EmbeddedCaptions:
    """Return the split with its captions' embeddings; compute those that are missing.

    Args:
        source: The split.
        tokenizer: Tokenizer of the captions.
        base: Fingerprint of the base model, which determines the embeddings.
        embed: The text encoder.
        frozen: Its weights, on `mesh`.
        mesh: Devices to compute on.
        batch_size: Captions to embed at once.
        home: Folder of all embeddings. All hosts share it.
        stop: A request ends the work between two batches. The next call resumes there.

    Raises:
        Stopped: If `stop` was requested.
    """
    texts = sorted({record["text"] for record in source.rows.records})
    tokens = [tokenize(tokenizer, text) for text in texts]
    if lost := [end for _, end in tokens if end]:
        logger.warning(
            "%d of %d captions are longer than 77 tokens; cut off, for example: '%s'",
            *(len(lost), len(texts), lost[0]),
        )
    ids = np.stack([one for one, _ in tokens])
    one = jax.ShapeDtypeStruct((1, *ids.shape[1:]), ids.dtype)
    shape = jax.eval_shape(embed, frozen, one)
    facts = {
        "base": base["fingerprint"],
        "dtype": f"{shape.dtype}, {STORED}",
        "texts": texts,
        "ids": ids.tolist(),
    }
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    rows = compute_rows(
        home / name,
        {_ARRAY: shape.shape[1:]},
        len(texts),
        "embeddings of captions",
        functools.partial(_embedded, texts, ids, embed, frozen, mesh, batch_size),
        stop,
    )
    return EmbeddedCaptions(source, rows)


def _embedded(
    texts: Sequence[str],
    ids: Int[np.ndarray, "n l"],
    embed: TextEmbedding,
    frozen: Params,
    mesh: Mesh,
    batch_size: int,
    first: int,
) -> Generator[Rows]:
    """Yield the embeddings of batches of captions, from the first one to embed on."""
    encode = jax.jit(meshes.on_mesh(mesh, embed), out_shardings=meshes.replicated(mesh))
    rows = np.asarray(meshes.host_rows(batch_size, mesh))
    for start in range(first, len(texts), batch_size):
        # The last batch is filled up with captions from the beginning.
        own = ids[(start + rows) % len(ids)]
        placed = meshes.place_batch({"text_ids": own}, mesh)["text_ids"]
        records = [{"text": text} for text in texts[start : start + batch_size]]
        yield [np.asarray(encode(frozen, placed))], records
