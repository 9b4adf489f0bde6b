"""Command lines: no option is abbreviated, and what is not known is named with the option nearest to it."""

import pytest

from ldm.arguments import CommandParser, parse_command_line
from ldm.experiment import DEFAULT_CONFIG, Experiment


@pytest.fixture
def parser():
    parser = CommandParser("Purpose.")
    parser.add_argument("what", choices=("slots", "resume"))
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--only", nargs="+", choices=("a", "b"), default=["a", "b"])
    return parser


def refused(capsys, call) -> str:
    """What a parser prints on standard error for arguments that it does not take, after the usage."""
    with pytest.raises(SystemExit) as end:
        call()
    assert end.value.code == 2
    usage, _, message = capsys.readouterr().err.partition("error: ")
    assert usage.startswith("usage: ")
    return message.strip()


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--smal", ": did you mean --small?"),
        ("--smal=1", ": did you mean --small?"),
        ("--smlal", ": did you mean --small?"),
        ("-small", ": did you mean --small?"),
        ("--o", ": did you mean --out or --only?"),
        ("--quick", ""),
    ],
)
def test_an_option_that_is_not_known_is_named_with_those_that_it_may_mean(parser, capsys, argument, hint):
    message = refused(capsys, lambda: parser.parse(["slots", argument]))
    assert message == f"unknown option {argument.partition('=')[0]}{hint}"


def test_the_value_of_an_option_that_is_not_known_is_named_too(capsys):
    parser = CommandParser()
    parser.add_argument("--out")
    assert (
        refused(capsys, lambda: parser.parse(["--ot", "here"]))
        == "unknown option --ot: did you mean --out?; unexpected argument here"
    )


def test_options_stand_before_between_and_after_the_other_arguments(parser):
    options = parser.parse(["--out", "folder", "resume", "x=1", "--small", "y=2", "--only", "b"])
    assert vars(options) == {
        "what": "resume",
        "settings": ["x=1", "y=2"],
        "small": True,
        "out": "folder",
        "only": ["b"],
    }
    assert vars(parser.parse(["slots"])) == {
        "what": "slots",
        "settings": [],
        "small": False,
        "out": None,
        "only": ["a", "b"],
    }
    with pytest.raises(SystemExit):
        parser.parse(["both"])


def test_a_command_refuses_abbreviations_of_its_own_options_and_of_those_that_all_commands_have(capsys):
    extra = CommandParser(add_help=False)
    extra.add_argument("--prompt", action="append")

    def parse(*arguments):
        return parse_command_line(Experiment, "", DEFAULT_CONFIG, extra, arguments)

    experiment, options = parse("--prompt", "a circle", "seed=3", "--config", "demo", "run=runs/other")
    assert (experiment.seed, experiment.run, options.prompt) == (3, "runs/other", ["a circle"])
    assert refused(capsys, lambda: parse("--prom", "a circle")).startswith(
        "unknown option --prom: did you mean --prompt?"
    )
    assert (
        refused(capsys, lambda: parse("--seed=3")) == "unknown option --seed: settings are given as section.key=value"
    )
    assert refused(capsys, lambda: parse("--conf=demo")) == "unknown option --conf: did you mean --config?"
