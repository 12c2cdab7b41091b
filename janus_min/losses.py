"""The equations. Tensors in, tensors out.

    paper                           here              TRL
    log π(y_t | x, y_<t)            token_logps       per_token_logps
    log π(y | x) = Σ_t              sequence_logps    logps
    1/m · log π(y | x)              average_logps     get_batch_logps(average_log_prob=True)
    L_SFT                           sft_loss          loss of SFTTrainer
    L_DPO(π; π_ref)                 dpo_loss          loss_type "sigmoid" of DPOTrainer
    L_OR                            orpo_loss         odds_ratio_loss of ORPOTrainer, up to the sign
    L_ORPO = L_SFT + λ·L_OR         objectives.orpo   loss of ORPOTrainer, beta for λ
    L_RM                            reward_loss       loss of RewardTrainer

Subscripts w and l, the winner and the loser of a pair, are `chosen` and `rejected` here.
Log-probabilities are in nats and at least fp32. Losses come back per token or per pair: the mean is
taken over a whole optimizer step (`objectives.py`), because a mean over one row would weigh tokens
and pairs by the row they happen to stand in.

    Note: ORPO's L_SFT runs over the tokens of the chosen response, as in its paper. TRL and ORPO's
    own code run it over the prompt too; `nll_on_prompt` of a recipe does the same.
    Note: in fp32, TRL's log-odds have the gradient NaN where log p > −3e-8; ours is finite.
    Note: ORPO's own code averages over one target too many, the padding behind the response.
    Note: where EOS is the pad token, as in TRL for Mistral, transformers reads a reward one token
    before EOS; here it is read on EOS, as in Janus's run.
    Note: Janus's run took the losses of ORPO and the reward model in bf16; here they are fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sequence_logps(token_logps: Tensor, response: Tensor, num_responses: int) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t) of each response, Eq. 1 of arXiv 1409.3215.

    token_logps (N,), 0 where nothing is scored; response (N,) which response owns the token that a
    position predicts, −1 for none. Returns (S,).
    """
    total = token_logps.new_zeros(num_responses + 1)  # −1 adds to the last one, which is dropped
    return total.index_add(0, response % (num_responses + 1), token_logps)[:-1]


def dpo_loss(
    *,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direct Preference Optimization, Eq. 7 of arXiv 2305.18290.

        L = −log σ( β·log[π(y_w|x)/π_ref(y_w|x)] − β·log[π(y_l|x)/π_ref(y_l|x)] )

    The four log-probabilities are sums over the response's tokens, one per pair. Returns the loss
    of each pair, and the rewards of y_w and of y_l, β·log[π/π_ref], detached.
    """
    chosen_rewards = beta * (policy_chosen - reference_chosen)
    rejected_rewards = beta * (policy_rejected - reference_rejected)
    loss = -F.logsigmoid(chosen_rewards - rejected_rewards)
    return loss, chosen_rewards.detach(), rejected_rewards.detach()


def sft_loss(token_logps: Tensor) -> Tensor:
    """−log π(y_t | x, y_<t) of each token, (N,); 0 where nothing is scored."""
    return -token_logps


def average_logps(
    token_logps: Tensor, targets: Tensor, response: Tensor, num_responses: int
) -> Tensor:
    """1/m · log π(y|x) of each response of m tokens, Eq. 3 of arXiv 2403.07691.

    Arguments and result as in `sequence_logps`; targets (N,), −1 where nothing is scored.
    """
    m = sequence_logps((targets >= 0).to(token_logps.dtype), response, num_responses)
    return sequence_logps(token_logps, response, num_responses) / m


def log_odds(logps: Tensor) -> Tensor:
    """log[p / (1 − p)] of log p ≤ 0, Eq. 4 of arXiv 2403.07691.

    expm1 keeps the digits of 1 − p. A p that rounds to 1 counts as 1 − ε, so that neither the
    odds nor their gradient, 1 / (1 − p), is infinite.
    """
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return logps - torch.log(-torch.expm1(logps))


def orpo_loss(*, policy_chosen: Tensor, policy_rejected: Tensor) -> tuple[Tensor, Tensor]:
    """The odds-ratio term of ORPO, Eq. 7 of arXiv 2403.07691.

        L_OR = −log σ( log[odds(y_w|x) / odds(y_l|x)] )

    The log-probabilities are means over the response's tokens, one per pair. Returns the loss of
    each pair, and its log odds ratio, detached.
    """
    log_ratio = log_odds(policy_chosen) - log_odds(policy_rejected)
    return -F.logsigmoid(log_ratio), log_ratio.detach()


def reward_loss(*, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry: −log σ(r(x, y_w) − r(x, y_l)) of each pair, Eq. 1 of arXiv 2203.02155."""
    return -F.logsigmoid(chosen - rejected)
