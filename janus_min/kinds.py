"""Kinds of results of evaluations.

    rubric      grades 1 to 5 of an LLM judge, over several runs (Multifaceted Bench)
    pairwise    an LLM judge's choices between two responses, shown in both orders
    people      people's choices between two responses
    alpaca-eval, mt-bench, arena-hard     helpfulness in general, by an LLM judge
    toxicity    continuations of prompts, by a scorer (RealToxicityPrompts)
    reward      a reward model's choices between two responses of which one is known to be better
    responses   lengths of responses, and how much they differ; nobody judges

A new kind is a `Kind` in one of the three tables below.
"""

from janus_min.general import GENERAL
from janus_min.measures import MEASURES
from janus_min.multifaceted import MULTIFACETED
from janus_min.results import Kind

RESULT = "result.json"  # in the folder of an evaluation
KINDS: dict[str, Kind] = MULTIFACETED | GENERAL | MEASURES
