"""All that a run needs, read, checked and printed before any work is done."""

from pathlib import Path

from janus_min import checkpoint, mini_data
from janus_min.config import ModelConfig
from janus_min.data import load_examples, reasons
from janus_min.device import pick_impl
from janus_min.errors import UserError, require
from janus_min.files import hash_files
from janus_min.formats import pair_row, require_jsonl, reward_row, sft_row
from janus_min.model import Policy, RewardModel
from janus_min.objectives import Counts
from janus_min.parallel import Ranks
from janus_min.plan import interleave, make_plan
from janus_min.recipes import Recipe, mini_model
from janus_min.row import laid_tokens
from janus_min.run import Data, Options, Run
from janus_min.tokenizer import Tokenizer

PARSERS = {"sft": sft_row, "dpo": pair_row, "orpo": pair_row, "reward": reward_row}
COLUMNS = {
    "sft": "system, prompt and output",
    "dpo": "system, prompt, chosen and rejected",
    "orpo": "system, prompt, chosen and rejected",
    "reward": "input (or system and prompt), chosen and rejected, or transcripts",
}


def prepare(name: str, recipe: Recipe, options: Options, ranks: Ranks) -> Run:
    """Reads and checks all that a run needs, and prints what it is going to be."""
    out = options.out or Path("runs") / name
    start = options.model or (mini_data.model_of(recipe.start) if recipe.start else None)
    if not options.only_look:
        check_out(out, options, start)
    if options.only_look and recipe.start and not start.exists():
        start = None  # the world's tokenizer is enough to look at rows
    tokenizer = Tokenizer(start or mini_data.FILES)
    config = mini_model(tokenizer.vocab_size)
    if start:
        config = ModelConfig.from_json(start / "config.json")
        if not options.only_look:
            check_weights(recipe, options, start)
    if options.reference:
        check_reference(recipe, options.reference, config, tokenizer)
    checkpoint.require_vocabulary(tokenizer, config)
    if recipe.longest > config.max_position_embeddings:
        raise UserError(
            f"--max-tokens is {recipe.longest}, must be at most the model's context, "
            f"{config.max_position_embeddings}"
        )

    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in recipe.shown().items()))
    files = options.data or (mini_data.FILES / f"{recipe.miniature}.jsonl",)
    data = read(files, tokenizer, recipe, config, recipe.max_examples)
    held_out = None
    if eval_data := options.eval_data or mini_data.held_out_file(recipe.miniature):
        held_out = read((eval_data,), tokenizer, recipe, config)
    plan = make_plan(
        data.lengths,
        row_tokens=recipe.row_tokens,
        epochs=recipe.epochs,
        seed=recipe.seed,
        rows_per_step=recipe.rows_per_step,
        pairs_per_step=recipe.pairs_per_step,
    )
    rows = sum(len(step) for step in plan)
    fill = sum(data.lengths) * recipe.epochs / (rows * recipe.row_tokens)
    print(
        f"plan: {len(plan):,} steps, {rows:,} rows of {recipe.row_tokens:,} tokens, {fill:.0%} full"
    )
    places = sum(-(-len(step) // ranks.size) * ranks.size for step in plan)
    if places > rows:
        # A step of pairs is the same in however many rows.
        more = "; --row-tokens cuts it into more rows" if recipe.pairs_per_step else ""
        print(
            f"warning: {1 - rows / places:.0%} of the work is empty rows, because {ranks.size} "
            f"processes share steps of about {rows / len(plan):.1f} rows{more}"
        )
    where = f"{ranks.size} x {ranks.device}" if ranks.size > 1 else ranks.device
    impl = "torch" if options.only_look else pick_impl(ranks.device, config.head_dim, options.impl)
    if not options.only_look:
        print(f"on {where}, kernels: {impl}, out: {out}")
    return Run(
        name, recipe, options, out, start, config, tokenizer, data, held_out, plan, ranks, impl
    )


def check(name: str, recipe: Recipe, options: Options) -> None:
    """Raises UserError for flags that do not go together."""
    if options.world_size is not None and not options.dry_run:
        raise UserError("--world-size goes with --dry-run; torchrun says how many processes train")
    size = options.world_size or 1
    if options.dry_run and size % options.replicas:
        raise UserError(f"--replicas is {options.replicas}, must divide --world-size, {size}")
    memory_alone = options.dry_run and options.data is None and options.show_rows is None
    if not recipe.miniature and options.model is None and not memory_alone:
        what = "Hugging Face directory of Mistral-7B-v0.2 or of a model trained from it"
        raise UserError(f"{name} needs --model DIR, a {what}")
    if not recipe.miniature and options.data is None and not memory_alone:
        raise UserError(f"{name} needs --data FILE.jsonl with {COLUMNS[recipe.objective]}")
    for path in (*(options.data or ()), *([options.eval_data] if options.eval_data else [])):
        require_jsonl(path)
    files = len(options.data or (None,))
    if recipe.probabilities is not None and len(recipe.probabilities) != files:
        raise UserError(
            f"--probabilities are {len(recipe.probabilities)} shares, --data names {files} files: "
            "each file needs one"
        )
    for flag in ("reference", "reference_logps"):
        given = getattr(options, flag) is not None
        require(not given or recipe.objective == "dpo", options, flag, "left out: only DPO has one")


def check_weights(recipe: Recipe, options: Options, start: Path) -> None:
    """Raises UserError unless the models to start from are there, whole, and of the right kind."""
    if recipe.objective == "reward":
        checkpoint.open_model(RewardModel, start, "torch", any_head=True)
        return
    checkpoint.open_model(Policy, start, "torch")
    if options.reference:
        checkpoint.open_model(Policy, options.reference, "torch")


def check_reference(
    recipe: Recipe, reference: Path, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """Raises UserError unless the policy's rows mean the same to DPO's reference."""
    found = ModelConfig.from_json(reference / "config.json")
    for name in ("vocab_size", "sliding_window"):
        own, other = getattr(config, name), getattr(found, name)
        if own != other:
            raise UserError(f"{reference}: {name} is {other}, needed is {own} as in --model")
    if recipe.longest > found.max_position_embeddings:
        raise UserError(
            f"{reference}: its context is {found.max_position_embeddings} tokens, "
            f"--max-tokens is {recipe.longest}"
        )
    if hash_files([Tokenizer(reference).path]) != hash_files([tokenizer.path]):
        raise UserError(f"{reference}: its tokenizer.model is not that of --model")


def check_out(out: Path, options: Options, start: Path | None) -> None:
    """Raises UserError if a run would write over something that it should not."""
    model = out / "model"
    for what, path in (
        ("--model", options.model),
        ("--reference", options.reference),
        ("its own start,", start),
    ):
        if path and model.resolve() == path.resolve():
            raise UserError(f"--out {out} would write over {what} {path}; choose another --out")
    holds_run = (out / "recipe.json").exists()
    if options.resume and not holds_run and not (out / "reference").exists():
        raise UserError(f"{out} holds no run to resume")
    if not options.resume and holds_run:
        raise UserError(f"{out} already holds a run: --resume continues it, --out starts another")
    if not holds_run and (model.exists() or (out / "state").exists()):
        raise UserError(f"{out} holds what a run has left, without recipe.json: move it elsewhere")
    out.mkdir(parents=True, exist_ok=True)


def read(
    files: tuple[Path, ...],
    tokenizer: Tokenizer,
    recipe: Recipe,
    config: ModelConfig,
    limit: int | None = None,
) -> Data:
    """Loads files of examples, mixes them, and prints what was found and what was dropped.

    Of the mixture the first `limit` examples are used.
    """
    sources = []
    for path in files:
        print(f"data: {path}", flush=True)  # encoding a large file takes minutes
        source, fate = load_examples(
            path,
            tokenizer,
            PARSERS[recipe.objective],
            max_tokens=recipe.longest,
            cut=recipe.cut,
            keep_eos=recipe.objective == "reward",
            legacy_space=bool(recipe.legacy_space),
        )
        cut = f", {fate['cut']:,} of them cut" if recipe.cut else ""
        print(f"      {len(source):,} examples{cut} (dropped: {reasons(fate) or 'none'})")
        sources.append(source)
    examples = [example for source in sources for example in source]
    if recipe.probabilities is not None and len(files) > 1:
        stream = interleave([len(s) for s in sources], recipe.probabilities, recipe.seed)
        examples = [sources[source][i] for source, i in stream]
    examples = examples[:limit]
    share_prompt = bool(recipe.share_prompt)
    lengths = [laid_tokens(e, config.sliding_window, share_prompt) for e in examples]
    trained = Counts.of(examples, recipe.nll_on_prompt)
    what = f"{trained.pairs:,} pairs" if trained.pairs else f"{trained.targets:,} of them trained"
    print(f"      {sum(lengths):,} tokens in rows, {what}")
    return Data(files, examples, lengths)
