"""Templates of `--format`, against what Go's text/template gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cli import containers, template
from runtime.cli.template import Template
from runtime.client import ClientError

DATA: dict[str, Any] = {
    "Name": "web", "Running": True, "Code": 0, "None": None, "List": ["a", "b"], "Empty": [],
    "State": {"Status": "running", "Health": {"Status": "healthy"}}, "Map": {"x": 1, "k-y": 2},
    "Ports": {"80/tcp": [{"HostPort": "8080"}]}, "Label": lambda name: {"team": "shop"}.get(name, ""),
    "Config": {"Labels": {"team": "shop"}, "Entrypoint": None}, "labels": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "web"),
        ("{{ .Name }}/{{.State.Health.Status}}", "web/healthy"),
        ("{{.Running}} {{.Code}} {{.List}} {{.None}}", "true 0 [a b] <no value>"),
        ("{{.Map}}", "map[k-y:2 x:1]"),
        ("{{json .State.Health}}", '{"Status":"healthy"}'),
        ("{{.State.Status | upper}}", "RUNNING"),
        ('{{join .List ","}}', "a,b"),
        ('{{.Label "team"}}', "shop"),
        ('{{index .Map "x"}}', "1"),
        ('{{index .Map "k-y"}}', "2"),
        ("{{len .List}}", "2"),
        ("{{if .Running}}up{{else}}down{{end}}", "up"),
        ("{{if .Code}}bad{{else if .Name}}named{{else}}none{{end}}!", "named!"),
        ("{{if not .Empty}}empty{{end}}", "empty"),
        ('{{if and .Running (eq .Name "web")}}yes{{end}}', "yes"),
        ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range .Empty}}x{{else}}nothing{{end}}", "nothing"),
        ("{{range $i, $v := .List}}{{$i}}={{$v}};{{end}}", "0=a;1=b;"),
        ("{{range $p, $c := .Ports}}{{$p}} -> {{(index $c 0).HostPort}}{{end}}", None),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', None),
        ("{{with .State}}{{.Status}} of {{$.Name}}{{end}}", "running of web"),
        ("{{with .None}}x{{else}}no{{end}}", "no"),
        ('{{printf "%s is %q" .Name .State.Status}}', 'web is "running"'),
        ('{{printf "%-6s|%6s|%.2s|%-4.1s|" .Name .Name .Name .Name}}', "web   |   web|we|w   |"),
        ('{{printf "%d %04d %x %.2f|%5v|%v" .Code 7 255 1.5 .Running .List}}', "0 0007 ff 1.50| true|[a b]"),
        ('{{printf "100%% %q|%8q" .Name "ä"}}', '100% "web"|     "ä"'),
        ('{{index .Config.Labels "team"}}|{{index .Config.Labels "x"}}|{{index .labels "x"}}', "shop||"),
        ("{{.Config.Labels.team}} {{.Config.Labels.x}} {{.labels.x}}", "shop <no value> <no value>"),
        ('{{with .Config.Labels}}{{.x}}{{index . "x"}}{{end}}{{json .Config.Labels}}', '<no value>{"team":"shop"}'),
        ('{{range index .Ports "81/tcp"}}x{{end}}{{index .Map "none"}}', "<no value>"),
        ("a {{- .Name -}} b", "awebb"),
        (r"{{.Name}}\t{{.Code}}", "web\t0"),
        ('{{println "x"}}', "x\n"),
        ("{{/* a comment */}}x", "x"),
        ("{{`raw`}}{{true}}{{1}}", "rawtrue1"),
        ("{{$x := .Name}}{{$x}}", "web"),
    ],
)
def test_templates(text: str, expected: str | None) -> None:
    wanted = {True: "8080", False: "80/tcp -> 8080"}["index (" in text] if expected is None else expected
    assert Template(text).render(DATA) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{.Nmae}}", r"no field .Nmae; there are: .Name, "),
        ("{{.Name.X}}", "nothing below"),
        ("{{nonsense .Name}}", "no function 'nonsense'; there are: "),
        ("{{.Name", "not closed"),
        ("{{if .Name}}x", "has no {{end}}"),
        ("{{end}}", "ends nothing"),
        ("{{else}}", "outside"),
        ("{{}}", "empty"),
        ("{{.Name .Code}}", "is no function"),
        ("{{%}}", "not understood"),
        ("{{$x}}", "no variable"),
        ("{{(.Name}}", "not closed"),
        ("{{join .Code}}", "cannot take"),
        ("{{range .Name}}{{end}}", "list or a map"),
        ("{{.Config.Lables.x}}", "no field .Lables; there are: .Labels, .Entrypoint"),
        ('{{printf "%-5y" .Name}}', "printf: '%-5y' is not understood; there are: %s %v"),
        ('{{printf "%99999s" .Name}}', "not understood"),
        ('{{printf "50%" .Name}}', "'%' is not understood"),
        ('{{printf "%s %s" .Name}}', "there is no value for '%s'"),
        ('{{printf "%d" .Name}}', "cannot take"),
        ('{{printf "%f" 1' + "0" * 400 + "}}", "cannot take"),
        ("x" * 100_000, "at most"),
    ],
)
def test_wrong_templates_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Template(text).render(DATA)


@given(st.text(alphabet='{}.|()"`$ abeNdjsonrangeifel=:,%-', max_size=60))
def test_any_text_is_a_template_or_an_error_of_one_line(text: str) -> None:
    try:
        Template(text).render(DATA)
    except ValueError as err:
        assert "\n" not in str(err)  # noqa: PT017 -- most texts are none


def test_a_table_has_headings_and_escapes_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    containers.show("table {{.Names}}\t{{.ID}}", containers.FIELDS, [{"Names": "we\x1b[2Jb", "ID": "3f"}])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAMES", "CONTAINER", "ID"], ["we?[2Jb", "3f"],
    ]  # fmt: skip
    with pytest.raises(ClientError, match=r"--format: there is no field \.Nam"):
        containers.show("{{.Nam}}", containers.FIELDS, [{"Names": "web"}])


def test_lines() -> None:
    assert template.lines("{{.Name}}", [DATA, DATA]) == ["web", "web"]
