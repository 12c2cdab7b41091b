"""Scores of toxicity from the Perspective API, which RealToxicityPrompts (arXiv 2009.11462) uses.

    POST BASE/v1alpha1/comments:analyze     a text in English, the attribute TOXICITY
    {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.12}}}}

A score is from 0 to 1: how likely a reader finds the text toxic. Any server that answers in this
form will do. Scores are kept in a journal, and each text is asked for once. That a text has no
score, because it is too long or not in English, is an answer, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import requests

from janus_min.client import Client, Job
from janus_min.connection import Connection, Request
from janus_min.endpoint import Answer, Endpoint
from janus_min.journal import Journal
from janus_min.verdicts import Service, Verdict, json_body, judge_status

ATTRIBUTE, LANGUAGE = "TOXICITY", "en"
UNSCORABLE = (  # what a server finds wrong with a text, not with us
    "COMMENT_EMPTY",
    "COMMENT_TOO_LONG",
    "LANGUAGE_DETECTION_FAILED",
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
)


@dataclass(frozen=True)
class PerspectiveConnection(Connection):
    """How to talk to a server that scores texts."""

    base_url: str = "https://commentanalyzer.googleapis.com"  # of Perspective, or one like it
    key_variable: str = "PERSPECTIVE_API_KEY"  # environment variable that holds the key
    requests_per_minute: float | None = 60.0  # limit, evenly spread; a new project may send 60


class PerspectiveEndpoint(Endpoint):
    """An endpoint that has the key in the header which Google's services read."""

    def authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Puts the key into a request."""
        if self._key:
            request.headers["X-Goog-Api-Key"] = self._key
        return request


def score_request(text: str) -> Request:
    """What is sent to have a text scored."""
    body = {"comment": {"text": text}, "requestedAttributes": {ATTRIBUTE: {}}}
    return Request(body | {"languages": [LANGUAGE], "doNotStore": True})


def read_score(request: Request, answer: Answer) -> tuple[dict | Verdict, tuple[int, int]]:
    """{"score": 0 to 1}, or {"score": None, "reason": one of UNSCORABLE}, or what is wrong with the
    answer; and no tokens, which this service does not count.
    """
    body, nothing = json_body(answer.body), (0, 0)
    if answer.status == 400:
        for reason in _details(body, "errorType"):
            if reason in UNSCORABLE:
                return {"score": None, "reason": reason}, nothing
    if answer.status != 200:
        verdict = judge_status(answer)
        # A wrong key has the status 400, one that may not use this service 403.
        if answer.status == 403 or "API_KEY_INVALID" in _details(body, "reason"):
            verdict = verdict._replace(again=False, fatal=True)
        return verdict, nothing
    try:
        score = body["attributeScores"][ATTRIBUTE]["summaryScore"]["value"]
    except (TypeError, KeyError):
        score = None
    if type(score) not in (int, float) or not 0 <= score <= 1:
        return Verdict(f"the answer has no score of {ATTRIBUTE} from 0 to 1"), nothing
    return {"score": score}, nothing


PERSPECTIVE = Service(
    "/v1alpha1/comments:analyze", read_score, lambda request: (0, 0), PerspectiveEndpoint, False
)


def fetch_scores(
    texts: list[str], connection: Connection, journal: Journal
) -> dict[str, dict[str, object]]:
    """What has become of each text: a score as `read_score` gives it, or {"score": None, "reason",
    "unanswered": True}. The journal is asked first, and keeps what the server says.

    Raises UserError if the whole run must stop.
    """
    wanted = {text: score_request(text) for text in texts}

    def jobs() -> Iterator[Job | None]:
        """One for each text; None for one that was scored before."""
        for request in wanted.values():
            done = journal.get(request.key()) is not None
            yield None if done else lambda own=request: None if journal.get(own.key()) else own

    failures: dict[str, str] = {}
    if any(jobs()):  # else neither a server nor a key is needed
        client = Client(connection, journal, PERSPECTIVE)
        client.run(jobs(), len(wanted), "text")
        failures = client.failures
    found = {}
    for text, request in wanted.items():
        if line := journal.get(request.key()):
            found[text] = line["reply"]
        else:
            reason = failures.get(request.key(), "no answer")
            found[text] = {"score": None, "reason": reason, "unanswered": True}
    return found


def _details(body: object, key: str) -> list[object]:
    """What the details of an error have under a key."""
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    details = details if isinstance(details, list) else []
    return [detail.get(key) for detail in details if isinstance(detail, dict)]
