"""Files of prompts, and benchmarks, answered through a server, into the files that a model on this
machine would write.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from janus_min import outputs, remote
from janus_min.answers import Dialogue
from janus_min.prompt_files import read_prompts, require_ids
from janus_min.remote import Missing, Work, answer_dialogues, answer_prompts, estimate


def answer_file(source: Path, output: Path, n: int, work: Work) -> None:
    """Answers all prompts n times and writes the output; in a dry run it says what that takes.
    Raises UserError if there are prompts without an answer, which are written down elsewhere.
    """
    prompts = read_prompts(source)
    require_ids(prompts, source, output)
    if work.remote.dry_run:
        estimate([(prompt.system, [prompt.instruction]) for prompt in prompts], n, work)
        return
    found = answer_prompts([(p.system, p.instruction) for p in prompts], n, work, output)
    records, ids, failures = [], [], []
    for number, reply in enumerate(found):
        prompt, sample = prompts[number // n], number % n
        base = prompt.record | {"line": prompt.line, "sample": sample}
        if isinstance(reply, Missing):
            failures.append((base, reply))
            continue
        about = {"response": reply.text, "stop": reply.stop, "model": reply.model}
        records.append(base | about | {"sampling": work.settings()})
        ids.append(prompt.id)
    if records:
        outputs.finish(output, records, ids)
        print(f"{len(records):,} responses to {len(prompts):,} prompts in {output}")
    remote.finish(output, failures, len(found))


def answer_benchmark(
    dialogues: list[Dialogue],
    system: str | None,
    temperature: Callable[[Dialogue], float] | None,
    output: Path,
    work: Work,
    write: Callable[[list[Dialogue]], None],
) -> None:
    """Adds the answers to all turns to each dialogue, as `dialogues.answer_dialogues`, and writes
    those that have all; in a dry run it says what that takes. Raises UserError if there are others.
    """
    if work.remote.dry_run:
        estimate([(system, dialogue.question["turns"]) for dialogue in dialogues], 1, work)
        return
    missing = answer_dialogues(dialogues, system, temperature, work, output)
    if whole := [dialogue for i, dialogue in enumerate(dialogues) if i not in missing]:
        write(whole)
    asked = [asdict(dialogues[index]) for index in missing]
    remote.finish(output, list(zip(asked, missing.values())), len(dialogues))
