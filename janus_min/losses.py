"""The equations. Tensors in, tensors out.

    paper                       here              TRL
    log π(y_t | x, y_<t)        token_logps       per_token_logps
    log π(y | x) = Σ_t          sequence_logps    logps
    L_SFT                       sft_loss          loss

Log-probabilities are in nats and at least fp32. Losses come back per token or per response: the
mean is taken over a whole optimizer step (`objectives.py`), because a mean over one row would weigh
tokens by the row they happen to stand in.
"""

from torch import Tensor


def sequence_logps(token_logps: Tensor, response: Tensor, num_responses: int) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t) of each response, Eq. 1 of arXiv 1409.3215.

    token_logps (N,), 0 where nothing is scored; response (N,) which response owns the token that a
    position predicts, −1 for none. Returns (S,).
    """
    owned = response >= 0
    total = token_logps.new_zeros(num_responses)
    return total.index_add(0, response.clamp(min=0), token_logps * owned)


def sft_loss(token_logps: Tensor) -> Tensor:
    """−log π(y_t | x, y_<t) of each token, (N,); 0 where nothing is scored."""
    return -token_logps
