"""The command line: one verb a room. The first word is read by argparse; torch is imported only
by the verbs that compute. Errors are one message and an exit code; `--debug` shows the traceback.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jingdu import __version__, canon
from jingdu.errors import Interrupted, JingduError, Refused, UsageError, is_out_of_memory, unknown

VERBS = {
    "list": "the papers of the library",
    "show": "a paper: idea, lineage, variants, claims with our results",
    "train": "train a paper's recipe into a run folder",
    "reproduce": "test a paper's claims again",
    "predict": "use a network: image files, texts, samples",
    "eval": "measure weights on data",
    "bench": "time a network against another library's, with the same weights",
    "weights": "published weights: what there is, where it is kept, whether it is intact; and the way out",
    "doctor": "this machine, versions and limits",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if arguments is None:  # asked to end, a program of its own ends as by Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _dispatch(words)
    except JingduError as error:
        if debug:
            raise
        if not error.silent:
            print(f"jingdu: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("jingdu: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        if debug:
            raise
        if is_out_of_memory(error):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"jingdu: out of memory ({first}): give it more, or less at a time (--batch-size, fewer or smaller "
                  "inputs)", file=sys.stderr)  # fmt: skip
            return Refused.exit_code
        print(f"jingdu: a fault of ours, please report it ({type(error).__name__}: {error}); --debug shows where",
              file=sys.stderr)  # fmt: skip
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print("jingdu (精读, close reading): the landmark papers of deep learning, running.\n")
        print("usage: jingdu VERB ... [--debug]\n")
        for verb, about in VERBS.items():
            print(f"  {verb:10} {about}")
        print("\njingdu VERB --help says more.")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"jingdu {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    return globals()[f"_{verb}"](rest)


# list, show: no torch ----------------------------------------------------------------------------


def _years(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 9999
    first, dash, last = text.partition("-")
    try:
        return int(first or 0), int(last or 9999) if dash else int(first)
    except ValueError:
        raise UsageError(f"years {text!r}: write 2015, 2012-2016, 2012- or -2016") from None


def _list(words: list[str]) -> int:
    parser = _Parser("jingdu list", description="The papers of the library, oldest first.")
    parser.add_argument("--area", help="only this area: " + ", ".join(sorted({p.area for p in canon.papers()})))
    parser.add_argument("--years", help="only these: 2015, 2012-2016, 2012-")
    parser.add_argument("--json", action="store_true", help="for programs")
    flags = parser.parse_args(words)
    first, last = _years(flags.years)
    papers = [p for p in canon.papers(flags.area) if first <= p.year <= last]
    if flags.json:
        keys = ("key", "area", "year", "title", "authors")
        rows = [{k: getattr(p, k) for k in keys} | {"variants": list(p.variants)} for p in papers]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("key", "year", "area", "title", "claims"):
        table.add_column(column, no_wrap=column in ("key", "year", "area"))
    for p in papers:
        verdicts = ", ".join((c.report or {}).get("verdict", "not run") for c in canon.claims(p))
        table.add_row(p.key, str(p.year), p.area, p.title, verdicts)
    Console().print(table)
    return 0


def _show(words: list[str]) -> int:
    parser = _Parser("jingdu show", description="One paper: idea, lineage, variants, lecture, claims.")
    parser.add_argument("paper")
    parser.add_argument("--source", action="store_true", help="print the module that implements it")
    parser.add_argument("--flat", action="store_true", help="the same, with what it imports from other papers in it")
    parser.add_argument("--bib", action="store_true", help="print a BibTeX entry")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the idea")
    parser.add_argument("--json", action="store_true", help="the card, for programs")
    parser.add_argument("--attention", nargs="+", metavar="IMAGE", help="draw where the network looks in image files")
    parser.add_argument("--weights", help="for --attention: run folder, file, hf:OWNER/NAME, URL#sha256=..., default")
    parser.add_argument("--out", type=Path, default=Path("attention.png"), help="for --attention: the picture's file")
    flags = parser.parse_args(words)
    if flags.attention:
        from jingdu import verbs

        for prediction in verbs.show_attention(flags.paper, flags.attention, flags.weights, flags.out):
            print(json.dumps(prediction.data) if flags.json else prediction.text)
        print(f"wrote {flags.out}", file=sys.stderr if flags.json else sys.stdout)
        return 0
    if flags.weights is not None:
        raise UsageError("--weights is for --attention IMAGE: jingdu show prints a card without them")
    card = canon.paper(flags.paper)
    if flags.source:
        files = card.source_files
        for path in files:
            print(f"# {path.name}\n" if len(files) > 1 else "", end="")
            print(path.read_text("utf-8"), end="\n" if path != files[-1] else "")
        return 0
    if flags.flat:
        from jingdu.flat import flat

        print(flat(card.key), end="")
        return 0
    if flags.bib:
        print(card.bibtex())
        return 0
    claims = canon.claims(card)
    later = [p.key for p in canon.papers() if card.key in p.builds_on]
    if flags.json:
        import dataclasses

        claims_json = [dataclasses.asdict(c) for c in claims]
        table = {**dataclasses.asdict(card), "imported_by": later, "claims": claims_json}
        print(json.dumps(table, ensure_ascii=False, indent=1))
        return 0
    zh = flags.lang == "zh"

    def line(en: str, cn: str, value: str) -> None:
        if value:
            print(f"{cn if zh else en}: {value}")

    print(f"{card.title}\n{card.authors}. {card.venue}. {card.link}\n")
    print(card.idea_zh if zh else card.idea_en)
    print()
    line("builds on", "代码来自", ", ".join(card.builds_on) or ("无" if zh else "nothing"))
    line("cites", "引用", ", ".join(card.cites))
    line("imported by", "被引用于", ", ".join(later))
    if card.course:
        course = card.course
        link = f"https://www.bilibili.com/video/{course['bilibili']}" if "bilibili" in course else ""
        line("lecture", "课程", f"{course['title']} ({course.get('length', '')}) {link}")
    if card.variants:
        line("variants", "变体", "")
        print("variants (parameters):" if not zh else "变体（参数量）:")
        for name, count in card.variants.items():
            print(f"  {name:28} {count:>13,}")
    print("claims:" if not zh else "论断:")
    for claim in claims:
        print(f"  {claim.name}: {claim.text} [{claim.source}]")
        if claim.report is not None:
            from jingdu.lab.reports import summary

            print(f"    {summary(claim.report)}")
        else:
            print(f"    not run yet: jingdu reproduce {card.key} --claim {claim.name}")
    return 0


# train -------------------------------------------------------------------------------------------


def _train(words: list[str]) -> int:
    parser = _Parser(
        "jingdu train",
        description="Train a paper's recipe. Every field of the recipe is a flag: jingdu train PAPER --fields lists them.",
    )
    parser.add_argument("paper")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--variant", help="another variant of the paper")
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the variant's build"
    )
    parser.add_argument("--out", type=Path, help="run folder (default runs/PAPER-PRESET)")
    parser.add_argument("--resume", action="store_true", help="go on, or start where there is no run yet")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument(
        "--parallel", choices=("ddp", "fsdp"), help="how the processes of a torchrun job divide the work (ddp)"
    )
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--fields", action="store_true", help="print the recipe's fields and values, and stop")
    # A flag that argparse does not know is a field of the stage; abbreviations would hide those.
    parser.allow_abbrev = False
    flags, rest = parser.parse_known_args(words)

    import dataclasses

    from jingdu import verbs
    from jingdu.engine import train

    chosen = verbs.recipe(flags.paper, flags.preset)
    stages = list(chosen.stages)
    if flags.variant:
        if canon.resolve(flags.variant).paper.key != flags.paper:
            raise UsageError(f"variant {flags.variant!r} is not one of {flags.paper}'s: see jingdu show {flags.paper}")
        stages[-1] = verbs.with_variant(stages[-1], flags.variant)
    if flags.override:
        stages[-1] = verbs.with_overrides(stages[-1], _pairs(flags.override))
    stages = _stage_flags(stages, rest, f"jingdu train {flags.paper}", help_only=flags.fields)
    if flags.fields:
        return 0
    out = flags.out or Path("runs") / f"{flags.paper}-{flags.preset}"
    try:
        run = train(
            dataclasses.replace(chosen, stages=tuple(stages)),
            out,
            device=flags.device,
            resume=flags.resume,
            quiet=flags.quiet,
            tensorboard=flags.tensorboard,
            parallel=flags.parallel,
        )
    except Interrupted as stop:
        again = Interrupted(f"{stop}: jingdu train {shlex.join([*words, *([] if flags.resume else ['--resume'])])}")
        again.silent = stop.silent
        raise again from stop
    if int(os.environ.get("RANK", "0")) > 0:  # another process of the job says it
        return 0
    for name, value in run.metrics.items():
        expected = chosen.expect.get(name)
        print(f"{name} {value:.4g}" + (f"  (expected {expected[0]:g} to {expected[1]:g})" if expected else ""))
    print(f"run folder: {run.folder}")
    return 0


def _pairs(words: list[str]) -> dict[str, Any]:
    import ast

    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--override {word!r}: write KEY=VALUE")
        try:
            pairs[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            pairs[key] = value
    return pairs


def _stage_flags(stages: list[Any], words: list[str], program: str, help_only: bool = False) -> list[Any]:
    """Apply --FIELD VALUE to the only stage, or --STAGE.FIELD VALUE to one of several."""
    import dataclasses

    from jingdu.engine import Stage
    from jingdu.verbs import change

    if len(stages) == 1:
        given = _parse(Stage, stages[0], words, program, help_only)
        return [_one_length(stages[0], given, words, change)]
    # "pre-training" is no name of a field; tyro writes pre_training as --pre-training.
    fields = [stage.name.replace("-", "_") for stage in stages]
    kind = dataclasses.make_dataclass(
        "Stages",
        [(name, Stage, dataclasses.field(default=stage)) for name, stage in zip(fields, stages, strict=True)],
        frozen=True,
    )
    given = _parse(kind, kind(), words, program, help_only)

    def spoken(name: str) -> list[str]:
        """Its own flags among the words, without its name."""
        prefix = f"--{name}."
        own = (word for word in words if word.replace("-", "_").startswith(prefix.replace("-", "_")))
        return [f"--{word[len(prefix) :]}" for word in own]

    return [
        _one_length(stage, getattr(given, name), spoken(name), change)
        for name, stage in zip(fields, stages, strict=True)
    ]


def _one_length(default: Any, given: Any, words: list[str], change: Any) -> Any:
    """`--epochs` on a recipe that counts steps replaces the steps, and the other way round."""
    import dataclasses

    spoken = {word.partition("=")[0].lstrip("-") for word in words if word.startswith("--")}
    if "epochs" in spoken and "steps" not in spoken:
        return dataclasses.replace(given, steps=None)
    if "steps" in spoken and "epochs" not in spoken:
        return dataclasses.replace(given, epochs=None)
    return given


def _parse(kind: Any, default: Any, words: list[str], program: str, help_only: bool) -> Any:
    """tyro over a dataclass or function, its complaints turned into one UsageError."""
    import io

    import tyro

    config = (tyro.conf.FlagConversionOff,) if default is not None else ()
    if help_only:
        words = ["--help"]
    caught = io.StringIO()
    arguments: dict[str, Any] = {} if default is None else {"default": default}
    try:
        if help_only:
            return tyro.cli(kind, args=words, prog=program, config=config, **arguments)
        with contextlib.redirect_stderr(caught), contextlib.redirect_stdout(caught):
            return tyro.cli(kind, args=words, prog=program, config=config, **arguments)
    except SystemExit as stop:
        if help_only:
            return default
        text = " ".join(line.strip(" │╭╮╰╯─") for line in caught.getvalue().splitlines() if line.strip(" │╭╮╰╯─"))
        if stop.code == 0:
            print(caught.getvalue())
            raise
        raise UsageError(_complaint(text) or f"cannot read {' '.join(words)}") from None


def _complaint(text: str) -> str:
    """tyro's error box as one sentence."""
    import re

    parts = [part.strip() for part in re.split(r"-{10,}|Argument helptext:|For full helptext", text)]
    # A box has a title, what is wrong, and how to get help.
    text = next((part for part in parts[1:] if part), parts[0]).removeprefix("Error parsing Stage: ")
    value = r"Error parsing (\S+): no type matching (.+?) could be instantiated from \[(.*?)\].*"
    return re.sub(value, r"\1 \3: this is no \2", text)


# reproduce, predict, eval ------------------------------------------------------------------------


def _reproduce(words: list[str]) -> int:
    parser = _Parser("jingdu reproduce", description="Test a paper's claims again and write a report for each.")
    parser.add_argument("paper")
    parser.add_argument("--claim", help="only this one")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: the claim's)")
    parser.add_argument("--out", type=Path, help="folder for the reports (default results/AREA/PAPER)")
    parser.add_argument("--json", action="store_true", help="the reports, for programs")
    parser.add_argument("--smoke", action="store_true", help="tiny budgets: tries the code, proves nothing")
    flags = parser.parse_args(words)
    card = canon.paper(flags.paper)
    names = [claim.name for claim in canon.claims(card)]
    if flags.claim is not None and flags.claim not in names:
        raise unknown(f"claim of {card.key}", flags.claim, names)

    from jingdu import verbs

    def progress(text: str) -> None:
        print(text, file=sys.stderr)

    outcomes = verbs.reproduce(
        flags.paper, flags.claim, seeds=flags.seeds, out=flags.out, smoke=flags.smoke, progress=progress
    )
    if flags.json:
        print(json.dumps([json.loads((o.folder / "report.json").read_text()) for o in outcomes], indent=1))
    else:
        for outcome in outcomes:
            print((outcome.folder / "report.md").read_text("utf-8"))
            print(f"report: {outcome.folder}/report.html\n")
    return 0 if all(outcome.verdict == "holds" for outcome in outcomes) else 1


def _predict(words: list[str]) -> int:
    parser = _Parser(
        "jingdu predict",
        description="Use a network. The paper's own options follow; jingdu predict NAME --options lists them.",
    )
    parser.add_argument("name", help="a variant, a paper, or LIBRARY/NAME")
    parser.add_argument("inputs", nargs="*", help="image files or folders, texts; none for a sampler")
    parser.add_argument("--weights", help="run folder, file, hf:OWNER/NAME, URL#sha256=..., default")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="compile the making of text first, for one text at a time: by what is quickest here",
    )
    parser.add_argument("--options", action="store_true", help="print the paper's own options, and stop")
    parser.allow_abbrev = False
    found = canon.resolve(parser.parse_known_args(words)[0].name)

    from jingdu import verbs

    # Inputs may stand anywhere: only the paper's flags and their values are not the command's.
    own, rest = _divide(words, found.paper)
    flags, strange = parser.parse_known_intermixed_args(own)
    options = _predict_options(found.paper, [*rest, *strange], f"jingdu predict {flags.name}", flags.options)
    if flags.options:
        return 0
    if "stream" in options and sys.stdout.isatty() and not flags.json:
        options["stream"] = True  # someone is looking
    rows = []
    for prediction in verbs.predict(flags.name, flags.inputs, flags.weights, optimize=flags.optimize, **options):
        if flags.json:
            if not prediction.more:
                rows.append({**prediction.data, "files": [str(path) for path in prediction.files]})
        else:
            print(prediction.text, end="" if prediction.more else "\n", flush=prediction.more)
            for path in prediction.files:
                print(f"wrote {path}")
    if flags.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    return 0


def _divide(words: list[str], card: canon.Paper) -> tuple[list[str], list[str]]:
    """The command's own words, and the options of the paper's `predict` with their values."""
    import inspect
    from typing import get_origin

    parameters = inspect.signature(card.load().predict).parameters.values()
    kinds = {f"--{p.name.replace('_', '-')}": p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    own: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(words):
        flag, equals, _ = words[position].partition("=")
        kind = kinds.get(flag.replace("_", "-"), kinds.get(flag.replace("_", "-").replace("--no-", "--", 1)))
        if words[position] == "--" or not flag.startswith("--") or kind is None:
            own += words[position:] if words[position] == "--" else words[position : position + 1]
            position = len(words) if words[position] == "--" else position + 1
            continue
        end = position + 1
        if get_origin(kind) in (tuple, list) and not equals:
            while end < len(words) and not words[end].startswith("--"):
                end += 1
        elif kind is not bool and not equals:
            end += 1
        rest += words[position:end]
        position = end
    return own, rest


def _predict_options(card: canon.Paper, words: list[str], program: str, help_only: bool) -> dict[str, Any]:
    """The keyword-only parameters of a paper's `predict` as flags."""
    import dataclasses
    import inspect
    import re

    function = card.load().predict
    text = inspect.getdoc(function) or ""
    fields = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            help_text = re.search(rf"^\s+{p.name}: (.+?)(?=^\s+\w+: |^\s*$|\Z)", text, re.M | re.S)
            about = " ".join(help_text.group(1).split()) if help_text else ""
            fields.append((p.name, p.annotation, dataclasses.field(default=p.default, metadata={"help": about})))
    if not fields:
        if words:
            raise UsageError(f"{card.key} has no option {words[0]!r}")
        return {}
    import tyro

    described = [(name, _annotated(kind, spec.metadata["help"], tyro), spec) for name, kind, spec in fields]
    kind = dataclasses.make_dataclass("Options", described, frozen=True)
    given = _parse(kind, None, words, program, help_only) or kind()
    return {name: getattr(given, name) for name, _, _ in fields}


def _annotated(kind: Any, about: str, tyro: Any) -> Any:
    from typing import Annotated

    return Annotated[kind, tyro.conf.arg(help=about)]


def _eval(words: list[str]) -> int:
    parser = _Parser("jingdu eval", description="Measure weights on data.")
    parser.add_argument("name")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", help="a folder, a data set's name, hf:NAME (default: a run's own test split)")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args(words)
    canon.resolve(flags.name)
    from jingdu import verbs

    measures = verbs.evaluate(flags.name, flags.weights, flags.data, batch_size=flags.batch_size, device=flags.device)
    if flags.json:
        print(json.dumps(measures))
    else:
        if "error" in measures:
            print(f"accuracy {1 - measures['error']:.4f}")
        for name, value in measures.items():
            print(f"{name} {value:.6g}")
    return 0


def _bench(words: list[str]) -> int:
    parser = _Parser(
        "jingdu bench",
        description="Time our network against another library's: same weights, same input, alternating runs; and what this machine can do at most.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a variant, a paper, or LIBRARY/NAME")
    parser.add_argument("--against", help="torchvision, timm or transformers (the first that has the network)")
    parser.add_argument("--batch", type=int, default=4, help="inputs at once (4)")
    parser.add_argument("--train", action="store_true", help="a training step; else inference")
    parser.add_argument("--dtype", default="float32", help="float32 or bf16")
    parser.add_argument(
        "--optimize", action="store_true", help="ours by optimize_for_inference, against the reference's plain float32"
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="only the making of text, which else follows the inference of networks that do",
    )
    parser.add_argument("--rounds", type=int, default=20, help="pairs of runs (20)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--out", type=Path, help="write the numbers and the machine to this file")
    flags = vars(parser.parse_args(words))
    names, as_json, out = flags.pop("names"), flags.pop("json"), flags.pop("out")
    for name in names:
        canon.resolve(name)
    from jingdu.speed.case import bench_all
    from jingdu.speed.paired import save

    rows = bench_all(names, quiet=as_json, **flags)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    if out is not None:
        print(f"wrote {save(rows, out)}", file=sys.stderr if as_json else sys.stdout)
    return 0


# weights: no torch but for export -----------------------------------------------------------------


def _weights(words: list[str]) -> int:
    parser = _Parser("jingdu weights", description="Published weights: what there is and what is kept here.")
    whats = parser.add_subparsers(dest="what", required=True, metavar="list|where|verify|prune|export")

    def what(name: str, about: str) -> argparse.ArgumentParser:
        one = whats.add_parser(name, help=about, description=about)
        one.add_argument("--json", action="store_true", help="for programs")
        return one

    one = what("list", "The published weights of the cards: variant, format, licence, size, and whether they are here.")
    one.add_argument("name", nargs="?", help="a paper, a variant, or LIBRARY/NAME")
    one = what("where", "The folders in which weights are kept, or the place of one source.")
    one.add_argument("source", nargs="?", help="hf:OWNER/NAME[@revision], an address, a file or folder")
    what("verify", "Read everything that is kept and compare it with its recorded checksum.")
    one = what("prune", "Remove partial downloads and damaged files; or what is named.")
    one.add_argument("source", nargs="?", help="only this: hf:OWNER/NAME or an address")
    one.add_argument("--all", action="store_true", help="all that was fetched")
    one.add_argument("--older-than", type=float, metavar="DAYS", help="what was fetched more than so many days ago")
    one.add_argument("--dry-run", action="store_true", help="say it alone")
    one = what("export", "Write weights as another library reads them.")
    one.add_argument("name", help="a variant, a paper, or LIBRARY/NAME")
    one.add_argument("--weights", required=True, help="run folder, file, hf:OWNER/NAME, URL#sha256=..., default")
    one.add_argument("--to", required=True, help="timm, torchvision, transformers, ...; jingdu: one file of ours")
    one.add_argument(
        "--out", required=True, type=Path, help="FILE.safetensors, FILE.pth, or a folder with a config.json"
    )
    flags = parser.parse_args(words)
    return globals()[f"_weights_{flags.what}"](flags)


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def _weights_list(flags: argparse.Namespace) -> int:
    from jingdu.weights.store import offers

    rows = offers(flags.name)
    if flags.json:
        table = [
            {
                **{key: getattr(row, key) for key in ("paper", "variant", "format", "licence", "parameters")},
                **{key: getattr(row.where, key) for key in ("source", "bytes", "state")},
                "path": str(row.where.path),
            }
            for row in rows
        ]
        print(json.dumps(table, ensure_ascii=False, indent=1))
        return 0
    if not rows:
        print(f"no published weights of {flags.name or 'any paper'} are known")
        return 0
    for row in rows:
        # Four bytes a parameter is what most files have.
        size = _megabytes(row.where.bytes) or (f"~{_megabytes(4 * row.parameters)}" if row.parameters else "")
        here = {"here": "here", "absent": ""}.get(row.where.state, row.where.state)
        print(f"{row.variant:28} {row.format:13} {size:>12}  {here:8} {row.licence}\n  {row.where.source}")
    return 0


def _weights_where(flags: argparse.Namespace) -> int:
    from jingdu.weights.download import is_offline
    from jingdu.weights.hub import endpoint
    from jingdu.weights.store import kept, places, where

    if flags.source is not None:
        found = where(flags.source)
        if flags.json:
            print(json.dumps({**vars(found), "path": str(found.path)}, ensure_ascii=False, indent=1))
            return 0
        size = f", {_megabytes(found.bytes)}" if found.bytes is not None else ""
        print(f"{found.path} ({found.state}{size})")
        return 0
    names = {
        "address": "fetched from addresses (JINGDU_CACHE)",
        "by hand": "put there by hand for the hub's (JINGDU_CACHE)",
        "hub": "fetched from the hub (HF_HUB_CACHE, HF_HOME)",
    }
    files = list(kept())
    rows = [
        {"place": place, "path": str(path), "files": len(sizes), "bytes": sum(sizes)}
        for place, path in places().items()
        for sizes in [[one.bytes for one in files if one.place == place]]
    ]
    if flags.json:
        print(json.dumps({"places": rows, "hub": endpoint(), "offline": is_offline()}, ensure_ascii=False, indent=1))
        return 0
    for row in rows:
        print(f"{row['path']}\n  {names[row['place']]}: {row['files']} files, {_megabytes(row['bytes'])}")
    print(f"{endpoint()} (HF_ENDPOINT)\n  connections are {'switched off' if is_offline() else 'allowed'}")
    return 0


def _weights_verify(flags: argparse.Namespace) -> int:
    from jingdu.errors import Refused
    from jingdu.weights.store import kept

    rows = []
    for one in kept():
        row = {"path": str(one.path), "source": one.source, "bytes": one.bytes, "state": one.state()}
        rows.append(row)
        if not flags.json:
            print(f"{row['state']:10} {_megabytes(row['bytes']):>12}  {row['path']}")
    if flags.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    bad = [row["path"] for row in rows if row["state"] in ("damaged", "unreadable")]
    if bad:
        raise Refused(f"{len(bad)} of {len(rows)} files are damaged or cannot be read ({bad[0]}): jingdu weights prune")
    if not flags.json:
        print(f"{len(rows)} files, none damaged")
    return 0


def _weights_prune(flags: argparse.Namespace) -> int:
    from jingdu.weights.store import prune

    if sum((flags.source is not None, flags.all, flags.older_than is not None)) > 1:
        raise UsageError("give one of SOURCE, --all and --older-than")
    rows = []
    for one in prune(flags.source, everything=flags.all, older_than=flags.older_than, dry=flags.dry_run):
        rows.append({**vars(one), "path": str(one.path)})
        if not flags.json:
            done = ("would remove" if flags.dry_run else "removed") if one.done else "left, it is being fetched:"
            print(f"{done} {one.path} ({one.why}, {_megabytes(one.bytes)})")
    if flags.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    gone = [row["bytes"] for row in rows if row["done"]]
    print(f"{len(gone)} {'would be removed' if flags.dry_run else 'removed'}, {_megabytes(sum(gone))}")
    return 0


def _weights_export(flags: argparse.Namespace) -> int:
    canon.resolve(flags.name)
    from jingdu.weights.exporting import export

    done = export(canon.create(flags.name, weights=flags.weights), flags.to, flags.out)
    if flags.json:
        print(json.dumps({"files": [str(path) for path in done.files], "network": done.network}, indent=1))
        return 0
    for path in done.files:
        print(f"wrote {path}")
    if done.network:
        print(f"for the network {done.network}")
    return 0


def _doctor(words: list[str]) -> int:
    parser = _Parser("jingdu doctor", description="This machine, versions and limits; or a step that failed.")
    parser.add_argument("step", nargs="?", type=Path, help="RUN/trouble/step-N: do this step again and look at it")
    flags = parser.parse_args(words)
    if flags.step is not None:
        from jingdu.engine.trouble import replay

        print(replay(flags.step))
        return 0
    import importlib.metadata
    import platform

    import torch

    from jingdu import limits

    print(f"jingdu {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA device: {cuda}")
    for extra in ("huggingface_hub", "datasets", "scikit-image", "tensorboard"):
        try:
            print(f"{extra} {importlib.metadata.version(extra)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{extra} not installed")
    print("limits:")
    for name, value in vars(limits).items():
        if name.isupper():
            print(f"  {name} = {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
