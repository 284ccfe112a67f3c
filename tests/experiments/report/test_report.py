"""A report tells what run folders hold: every figure, every difference, and nothing as markup."""

from __future__ import annotations

import json
import pathlib
from html.parser import HTMLParser

import pytest

from experiments.report import figures
from experiments.report.chart import front
from experiments.report.markdown import escaped, markdown
from experiments.report.page import page
from experiments.report.runs import cautions, differences, read_runs
from gam_jax.params import count_params

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Elements that are open, each kind of element, its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.kinds: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.kinds.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(runs, *names):
    """The runs of some folders of a test."""
    return read_runs([str(runs.path / name) for name in names] or [str(runs.path)])


def row(markdown: str, name: str) -> dict[str, str]:
    """A row of the first table of a report in Markdown, by its heading."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line[:1] == "|"]
    return dict(zip(lines[0], next(line for line in lines if line[0] == name), strict=True))


def test_the_figures_are_those_of_the_run(runs):
    runs.add("one", loss=1.5, speed=500.0)
    (run,) = read(runs)
    assert run.final("loss") == pytest.approx(1.5)
    assert (run.steps, run.units, run.speed) == (100, 25_600, 500.0)
    assert run.seconds == pytest.approx(25_600 / 500)  # the lap without a speed counts as others
    assert run.seconds_at(50) == pytest.approx(12_800 / 500)
    assert run.experiment is not None
    assert run.parameters == count_params(run.experiment.model.table())
    assert run.carry_bytes == 4 + 2 * 2 * 16 * 4  # position; layers, inputs, width, float32
    assert run.peak_bytes("process_peak_bytes") == 16 << 20
    assert run.peak_bytes("device_peak_bytes") is None


def test_a_run_of_the_training_command_is_read(trained, command):
    result = command("report.__main__", str(trained.path), "--markdown", "--out=-")
    assert result.code == 0, result.err
    cells, found = row(result.out, "trained"), trained.summary["validation"]
    assert cells["validation loss"] == f"{found['loss']:.4f}"
    assert cells["bits per byte"] == f"{found['bits_per_byte']:.4f}"
    assert cells["steps"] == "120"
    assert cells["process memory"] != figures.UNKNOWN
    for name, values in trained.summary["baselines"].items():
        assert f"| {name} | {values['loss']:.4f} | {values['bits_per_byte']:.4f} |" in result.out


def test_where_the_time_went_is_told_where_any_run_recorded_it(runs):
    runs.add("old")
    runs.add("new")
    path = runs.path / "new" / "metrics.jsonl"
    with path.open("a") as log:
        for step, seconds in ((110, 0.5), (120, 0.4), (130, 0.1), (140, "soon")):
            told = {"step_seconds": seconds, "data_wait_seconds": 0.1, "save_seconds": 0.05}
            told |= {"model_flops_per_second": 2e13, "mfu": 0.25} if step > 110 else {}
            log.write(json.dumps({"step": step, "split": "train", "loss": 1.0, **told}) + "\n")
    text = markdown(read(runs), "")
    new, old = row(text, "new"), row(text, "old")
    names = ("step time", "model FLOP/s", "MFU", "waiting for data", "in saves")
    assert [new[name] for name in names] == ["0.4 s", "20 TFLOP/s", "25.0%", "30.0%", "15.0%"]
    assert {old[name] for name in names} == {figures.UNKNOWN}
    assert "MFU" not in row(markdown(read(runs, "old"), ""), "old")


def test_the_best_comes_first_and_is_named(runs):
    runs.add("worse", loss=1.7)
    runs.add("best", loss=1.2)
    runs.add("unfinished", loss=None)
    found = read(runs)
    assert [run.name for run in found] == ["best", "worse", "unfinished"]
    text = figures.verdict(found, "loss")
    assert text.startswith("Lowest: 1.2000 nats per token, by best.")
    assert "better than unigram and bigram, not than gzip." in text


def test_only_fields_that_differ_are_told(runs):
    runs.add("a", kernel=3)
    runs.add("b", kernel=5)
    assert differences(read(runs)) == {"model.block.mixer.kernel": [3, 5]}
    text = page(read(runs), "")
    table = text.split("What differs")[1].split("Configurations")[0]
    assert "model.block.mixer.kernel" in table
    assert "model.depth" not in table


def test_runs_on_other_texts_or_tokens_are_not_compared_without_a_word(runs):
    runs.add("a", loss=1.0)
    runs.add("b", loss=2.0, name="text:b.txt", tokenizer="bpe:300")
    (runs.path / "a" / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "split": "validation", "loss": 1.0, "bits_per_byte": 3.0})
    )
    found = read(runs)
    assert [run.name for run in found] == ["b", "a"]  # by bits per byte
    notes = " ".join(cautions(found))
    assert "not validated on the same text" in notes
    assert "bits per byte" in notes
    assert "validation, bits per byte" in page(found, "")


def test_runs_without_bits_per_byte_are_ranked_by_loss_with_a_word(runs):
    """As those on prompts and conversations are."""
    chat = {"name": "text:b.jsonl", "format": "chat", "documents": "packed"}
    for name, loss, tokenizer in (("a", 2.0, "one"), ("b", 1.0, "two")):
        folder = runs.add(name, **chat, tokenizer=tokenizer)
        row = {"step": 1, "split": "validation", "loss": loss, "perplexity": 2.0}
        folder.metrics.write_text(json.dumps(row))
        folder.baselines.write_text(json.dumps({"unigram": {"loss": 3.0, "perplexity": 20.0}}))
    found = read(runs)
    assert [run.name for run in found] == ["b", "a"]
    assert "without bits per byte losses say little" in " ".join(cautions(found))
    assert "validation loss, nats" in page(found, "")
    runs.add("c", loss=1.5)  # of text, which has them
    assert "validation, bits per byte" in page(read(runs), "")


def test_a_bad_line_in_the_metrics_is_told_and_costs_no_other_row(runs):
    run = runs.add("a")
    lines = run.metrics.read_bytes().splitlines()
    run.metrics.write_bytes(b"\n".join([lines[0], b"", b"[]", *lines[1:], b""]))
    (found,) = read(runs)
    assert len(found.rows) == len(lines)
    assert any("a: metrics.jsonl: 2 lines are no rows" in note for note in cautions([found]))


def test_what_is_half_written_is_shown_as_far_as_it_is(runs):
    whole, cut, empty = (runs.add(name) for name in ("whole", "cut", "empty"))
    cut.metrics.write_text(cut.metrics.read_text()[:-40])
    cut.baselines.write_text('{"unigram": {"lo')
    empty.metrics.unlink()
    found = {run.name: run for run in read(runs)}
    assert found["cut"].steps == 100
    assert len(found["cut"].rows) == len(whole.metrics.read_text().splitlines()) - 1
    assert found["empty"].final("loss") is None
    text = page(list(found.values()), "")
    assert "empty has no validation yet." in text
    assert "empty stands at step 0 of 100." in text


@pytest.mark.parametrize("broken", ["bits_per_byte", "perplexity", "loss"])
def test_baselines_that_lack_a_score_are_shown_without_it(runs, broken):
    folder = runs.add("a")
    found = json.loads(folder.baselines.read_text())
    del found["bigram"][broken]
    folder.baselines.write_text(json.dumps(found))
    shown = read(runs)
    for text in (page(shown, ""), markdown(shown, "")):
        assert ("unigram" in text) == (broken != "loss")  # without which they are no baselines


def test_a_loss_that_is_no_number_is_left_out(runs):
    folder = runs.add("a")
    with folder.metrics.open("a") as file:
        file.write('{"step": 110, "split": "validation", "loss": NaN, "bits_per_byte": Infinity}\n')
    (run,) = read(runs)
    assert run.final("loss") == pytest.approx(1.5)
    assert "nan" not in page([run], "").lower().split("configurations")[0]


def test_a_loss_that_rose_is_said(runs):
    folder = runs.add("a")
    with folder.metrics.open("a") as file:
        file.write('{"step": 110, "split": "validation", "loss": 2.5}\n')
    assert any("1.5000 at step 100, then it rose" in note for note in cautions(read(runs)))


def test_a_configuration_of_another_version_costs_two_figures_only(runs):
    folder = runs.add("old")
    saved = json.loads(folder.config.read_text())
    saved["model"]["block"]["mixer"]["layer"] = "Hopfield"
    folder.config.write_text(json.dumps(saved))
    (run,) = read(runs)
    assert (run.parameters, run.carry_bytes) == (None, None)
    assert run.final("loss") == pytest.approx(1.5)
    assert any("Hopfield" in note for note in cautions([run]))


def test_the_page_is_well_formed_and_fetches_nothing(runs):
    for i in range(10):  # more than there are colours
        runs.add(f"run{i}", 1 + i / 10, speed=900.0 + i, width=16 + 8 * i, kernel=2 + i)
    text = page(read(runs), "python -m experiments.report runs")
    reader = Reader(text)
    assert reader.open == []
    assert not reader.kinds & {"script", "link", "iframe", "img", "object", "base", "form"}
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "srcset", "action", "data"}
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert ("name", "viewport") in reader.attributes
    assert text.count("<figure>") == 2 + 4  # curves; time, parameters, carry, memory
    assert len(text) < 200_000


def test_names_and_settings_are_text_and_never_markup(runs):
    evil = '<script>alert("x")&amp;'
    folder = runs.add(evil.replace("/", ""))
    runs.add("other", name="text:<img src=x onerror=alert(1)>")
    baselines = json.loads(folder.baselines.read_text())
    folder.baselines.write_text(json.dumps({"<i>b</i>": baselines["bigram"]}))
    reader = Reader(page(read(runs), "report <b>"))
    assert not reader.kinds & {"script", "img", "i"}
    text = "".join(reader.text)
    assert evil in text
    assert "text:<img src=x onerror=alert(1)>" in text
    assert "<i>b</i>" in text


def test_markdown_shows_names_as_they_are():
    assert escaped("a|b_c*\n<d>") == r"a\|b\_c\* \<d\>"


def test_the_front_holds_what_no_other_equals_or_beats():
    points = [(1.0, 5.0), (2.0, 3.0), (2.5, 3.0), (3.0, 4.0), (4.0, 1.0), (1.0, 6.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.234, "1.23 s"), (310, "5 min 10 s"), (3725, "1 h 02 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert figures.duration(seconds) == text


def test_sizes_and_counts_have_units():
    assert (figures.size(132), figures.size(3 << 19)) == ("132 B", "1.5 MiB")
    assert (figures.count(950), figures.count(1.07e6)) == ("950", "1.07 M")


def test_the_command_writes_the_page_and_takes_folders_of_runs(runs, command, tmp_path):
    runs.add("a")
    runs.add("b")
    (runs.path / "notes").mkdir()  # beside the runs, and none itself
    out = tmp_path / "out.html"
    both, each = (
        command("report.__main__", *folders, f"--out={out}")
        for folders in ([str(runs.path)], [str(runs.path / name) for name in "ab"] * 2)
    )
    assert both.code == each.code == 0, both.err + each.err
    assert both.out == each.out.replace(each.out[-14:], both.out[-14:])
    assert out.read_text().startswith("<!doctype html>")
    assert "Report on 2 runs" in out.read_text()
    assert command("report.__main__", str(runs.path / "a"), "--out=-").out.endswith("</html>\n")


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ([], ["run folders"]),
        (["nowhere"], ["nowhere is no run folder"]),
        (["notes"], ["notes is no run folder", "no config.json"]),
        (["a", "notes"], ["notes is no run folder"]),
        (["garbled"], ["config.json is not JSON"]),
        (["list"], ["config.json holds a list, not an object"]),
        (["a", "--out=nowhere/report.html"], ["cannot write nowhere/report.html", "--out"]),
    ],
)
def test_what_is_no_run_is_one_line_that_names_it(folders, words, runs, command, monkeypatch):
    runs.add("a")
    for name, content in (("notes", None), ("garbled", "{"), ("list", "[1]")):
        (runs.path / name).mkdir()
        if content:
            (runs.path / name / "config.json").write_text(content)
    monkeypatch.chdir(runs.path)
    result = command("report.__main__", *folders)
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not pathlib.Path("report.html").exists()
