"""Floating-point operations that AMES needs: matrix products only, a multiply-add counted as two.

S = 1 + Q + T tokens, d model width, D descriptor width, F feed-forward width, H heads, L layers. Softmax, LayerNorm and
activations (about 1 % at the released size) are left out, so that a share of the matmul peak is never flattered.
"""

from __future__ import annotations

from ames_jax.model.ames import AMESConfig


def tokenizer(config: AMESConfig, descriptors: int, packed: bool = False) -> int:
    """Descriptors to tokens; from stored bits (`packed`) the projection on the hyperplanes is done already."""
    d, width, bits = config.model_width, config.descriptor_width, config.bits
    if bits is None:
        return 2 * descriptors * width * d
    return 2 * descriptors * bits * ((0 if packed else width) + d)


def block(config: AMESConfig, rows: int, projected: int, seen: int) -> int:
    """An attention block: `projected` rows get q, k, v; `rows` get an output; `seen` (row, key) pairs are scored."""
    d = config.model_width
    return 2 * projected * 3 * d * d + 4 * seen * d + 2 * rows * d * d


def pool(config: AMESConfig, keys: int) -> int:
    """One row over `keys` tokens with the key and value projections folded into the row."""
    d = config.model_width
    return 8 * d * d + 4 * config.heads * keys * d


def feed_forward(config: AMESConfig, rows: int) -> int:
    """The feed-forward block."""
    return 4 * rows * config.model_width * config.feed_forward


def self_block(config: AMESConfig, q: int, t: int) -> int:
    """Query rows see the query and the matching token, database rows alike, the matching token all."""
    s = 1 + q + t
    return block(config, s, s, q * (q + 1) + t * (t + 1) + s)


def cross_block(config: AMESConfig, q: int, t: int) -> int:
    """Query rows see the database and the matching token, database rows the query and it, the matching token all."""
    s = 1 + q + t
    return block(config, s, s, q * (t + 1) + t * (q + 1) + s)


def full_layer(config: AMESConfig, q: int, t: int) -> int:
    """A layer, for all of its tokens."""
    return self_block(config, q, t) + cross_block(config, q, t) + feed_forward(config, 1 + q + t)


def query_once(config: AMESConfig, q: int) -> int:
    """What a query needs once for its whole shortlist: tokens, first self block, and their q, k, v in the cross block."""
    d = config.model_width
    work = tokenizer(config, q) + block(config, q, q + 1, q * (q + 1))
    return work if config.layers == 1 else work + 2 * q * 3 * d * d


def shortlist_pair(config: AMESConfig, q: int, t: int, packed: bool = False) -> int:
    """What each database image of a shortlist needs beside `query_once`; all that is exact is saved.

    First layer: the database's self block, the matching token pooled. Last layer: the matching token alone after the self
    block. Layers between: whole.
    """
    d, s = config.model_width, 1 + q + t
    work = tokenizer(config, t, packed) + block(config, t, t, t * (t + 1)) + pool(config, s) + 2 * 2 * d * d
    last = pool(config, s) + feed_forward(config, 1) + 2 * d
    if config.layers == 1:
        return work + last
    work += cross_block(config, q, t) - 2 * q * 3 * d * d + feed_forward(config, s)
    return work + (config.layers - 2) * full_layer(config, q, t) + self_block(config, q, t) + last


def shortlist(config: AMESConfig, q: int, t: int, images: int, packed: bool = False) -> int:
    """Scoring one query against `images` database images."""
    return query_once(config, q) + images * shortlist_pair(config, q, t, packed)


def dense_pair(config: AMESConfig, q: int, t: int) -> int:
    """One pair computed as in the release: both sides tokenised, (1 + Q + T)² scores in every block, then masked."""
    s = 1 + q + t
    layer = 2 * block(config, s, s, s * s) + feed_forward(config, s)
    return tokenizer(config, q + t) + config.layers * layer + 2 * config.model_width


def tokens_pair(config: AMESConfig, q: int, t: int) -> int:
    """One pair with all of its final tokens, by existing blocks alone (teacher, or student that is distilled)."""
    return tokenizer(config, q + t) + config.layers * full_layer(config, q, t) + 2 * config.model_width


def logit_pair(config: AMESConfig, q: int, t: int) -> int:
    """One pair with its logit alone."""
    s = 1 + q + t
    last = self_block(config, q, t) + pool(config, s) + feed_forward(config, 1)
    return tokenizer(config, q + t) + (config.layers - 1) * full_layer(config, q, t) + last + 2 * config.model_width


def train_pair(config: AMESConfig, q: int, t: int, teacher: AMESConfig | None, full: int) -> int:
    """One pair of a training step: forward, backward (twice the forward; the descriptors need no gradient), teacher.

    The teacher sees `full` descriptors a side; of its last layer only what the loss reads is counted.
    """
    forward = logit_pair(config, q, t) if teacher is None else tokens_pair(config, q, t)
    first = config.bits or config.model_width
    work = 3 * forward - 2 * (q + t) * config.descriptor_width * first
    if teacher is None:
        return work
    s, kept, d = 1 + 2 * full, 1 + q + t, teacher.model_width
    unread = 4 * (s - kept) * d * d + feed_forward(teacher, s - kept)  # their q and output projections, feed-forward
    unread += 4 * d * ((full - q) * (full + 1) + (full - t) * (full + 1))
    return work + tokens_pair(teacher, full, full) - unread
