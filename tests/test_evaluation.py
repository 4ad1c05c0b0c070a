"""`posttrain eval` on a run folder made by hand and on its export: recipe, table, errors."""

import json
import shutil

import pytest

from posttrain_jax import artifacts, evaluation, interrupt, main, policy, runtime
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.files import write_json
from posttrain_jax.metrics import read_rows

TEXT = {"tokenizer": "tiny", "chat_template": "tiny"}
SUMS = {"tasks": {"arithmetic": 1.0, "logic": 1.0}, "split": "heldout", "count": 40}
EXAM = {
    "kind": "evaluate", "data": {"sums": SUMS, "chat": {"tasks": {"chat": 1.0}, "count": 9}},
    "samples": 2, "batch_size": 4, "prompt_length": 24, "max_new": 6, "workers": 1,
}  # fmt: skip
STAGES = {
    "base": {"kind": "pretrained"},
    "tuned": {"kind": "sft", "inputs": {"policy": "base"}},
    "exam": EXAM | {"inputs": {"policy": "tuned"}},
    "taste": {"kind": "reward_model", "inputs": {"policy": "base"}},
    "hard": EXAM
    | {
        "inputs": {"policy": "base", "reference": "tuned", "rows": "tuned"}, "max_new": 5,
        "data": {"rows": {"input": "rows"}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory, make_small):
    """base > tuned, a reward model, and two evaluations that have not run."""
    workdir, paths = tmp_path_factory.mktemp("runs") / "run", {}
    small = make_small(vocab_size=load_tokenizer("tiny").vocab_size, max_length=64)
    for number, name in enumerate(("base", "tuned", "taste")):
        record = artifacts.Record(name, STAGES[name]["kind"], f"{number}" * 64, TEXT)
        folder = workdir / "artifacts" / record.folder_name
        artifacts.prepare(folder, record)
        head = {"head": "score"} if name == "taste" else {}
        policy.save_policy(folder, small.model, small.params, **head)
        artifacts.finish(folder)
        artifacts.seal(folder)
        paths[name] = f"artifacts/{folder.name}"
    stages = {name: {"path": paths.get(name, f"artifacts/{name}-0")} for name in STAGES}
    about = {"recipe": "toy", "preset": "tiny", "seed": 3, "order": list(STAGES)}
    write_json(workdir / "run.json", about | {"stages": stages})
    write_json(workdir / "config.json", about | TEXT | {"mesh": {"data": 1}, "stages": STAGES})
    return workdir


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    """That run folder in the working folder, with a file of problems beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "use_cache", lambda: None)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Compute 2+3.", "answer": 5}\n' * 3)
    return shutil.copytree(written, tmp_path / "run")


def asked(*words):
    return evaluation.make(main.parse(["eval", *map(str, words)]))


def call(capsys, *words):
    code = main.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_recipes_own_evaluation(run):
    found = asked(run)
    stage = found.config["stages"]["evaluation"]
    assert stage["inputs"] == {"policy": "tuned"} and stage["data"]["sums"] == SUMS
    assert (stage["samples"], stage["max_new"], stage["verifier"]) == (2, 6, "task_answer")
    assert {name: a.id for name, a in found.given.items()} == {"tuned": "1" * 64}
    assert (found.config["seed"], found.config["tokenizer"]) == (3, "tiny")
    assert found.workdir.parent.name == "runs" and "eval-run-tuned-" in found.workdir.name
    assert "with the settings of exam" in found.remarks[0]
    # of the policy that is asked for, with the inputs that its data and its KL need
    other = asked(run, "--stage", "base")
    assert other.config["stages"]["evaluation"]["max_new"] == 5
    assert set(other.given) == {"base", "tuned"} and other.workdir != found.workdir


def test_data_samples_and_scorers_of_the_command(run):
    found = asked(
        run, "--data", "sums", "--data", "mine.jsonl", "--data", "logic", "--count", 7,
        "--samples", 16, "--verifier", "math_answer", "--reward-model", "taste",
        "--config.stages.evaluation.temperature=0.6", "--workdir", "here",
    )  # fmt: skip
    stage = found.config["stages"]["evaluation"]
    assert stage["data"] == {
        "sums": SUMS | {"count": 7}, "mine": {"path": "mine.jsonl", "count": 7},
        "logic": {"tasks": {"logic": 1.0}, "split": "heldout", "count": 7},
    }  # fmt: skip
    assert (stage["samples"], stage["temperature"]) == (16, 0.6)
    assert stage["scorers"] == {"taste": {"reward_model": "taste"}}
    assert stage["inputs"] == {"policy": "tuned", "taste": "taste"}
    assert str(found.workdir) == "here" and found.given["taste"].id == "2" * 64
    # a name of another evaluation's data brings no input of that evaluation with it
    assert asked(run, "--stage", "base", "--data", "sums").config["stages"]["evaluation"][
        "inputs"
    ] == {"policy": "base", "reference": "tuned"}


def test_a_run_folder_to_its_table_and_again(run, capsys):
    words = ("eval", run, "--data", "sums", "--count", 6)
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert "domain" in out and "arithmetic" in out and "[0.0, 0.0]" in out
    (workdir,) = (run.parent / "runs").iterdir()
    assert out.endswith(f"report: runs/{workdir.name}/report.html\n")
    assert json.loads((workdir / "run.json").read_text())["given"]["tuned"]["kind"] == "sft"
    (folder,) = (workdir / "artifacts").iterdir()
    made = artifacts.load(folder)
    assert made.metrics["pass@2"]["n"] == 6 and made.metrics["pass@1/logic"]["n"] == 3
    rows = read_rows(folder / "data.jsonl")
    assert [(r["index"], r["sample"]) for r in rows] == [(i, n) for i in range(6) for n in (0, 1)]
    assert {r["task"] for r in rows} == {"arithmetic", "logic"} and "prompt" not in rows[0]
    code, again, _ = call(capsys, *words)
    assert "evaluation: done before" in again and "arithmetic" in again
    code, out, _ = call(capsys, *words, "--json")
    assert json.loads(out)["metrics"]["pass@1"].keys() == {"mean", "stderr", "n", "low", "high"}
    assert "no stage of this run" not in (workdir / "report.html").read_text()


def test_a_stopped_evaluation_goes_on_where_it_was(run, capsys, monkeypatch):
    """Stopped in the second pass, after three of four batches."""
    words = ("eval", run, "--data", "sums", "--count", 6, "--workdir")
    code, out, err = call(capsys, *words, "whole", "--json")
    assert code == 0 and json.loads(out)["workdir"] == "whole" and "evaluation: done in" in err
    asked_for = iter([False, False, False, True])  # before the stage, then after each batch
    monkeypatch.setattr(interrupt, "requested", lambda: next(asked_for, False))
    code, out, _ = call(capsys, *words, "parts")
    assert code == 130 and "saved at step 3. Continue with the same command:\n  posttrain" in out
    (folder,) = (run.parent / "parts" / "artifacts").iterdir()
    with open(folder / "graded.jsonl", "a") as file:
        file.write('{"step": 4, "tab')  # a kill in the middle of a line
    assert call(capsys, *words, "parts")[0] == 0
    made, whole = (
        artifacts.load(next((run.parent / name / "artifacts").iterdir()))
        for name in ("parts", "whole")
    )
    assert made.metrics == whole.metrics and made.metrics["skipped_prompts"]["mean"] == 0
    for name in ("data.jsonl", "samples.jsonl"):
        assert (made.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert [row["step"] for row in read_rows(made.path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (made.path / "graded.jsonl").exists()


def test_weights_in_a_file(run, capsys):
    assert call(capsys, "export", run, "model")[0] == 0
    settings = [
        f"--config.stages.evaluation.{key}={value}"
        for key, value in (("batch_size", 4), ("prompt_length", 24), ("max_new", 6))
    ]
    words = ("eval", "model", "--data", "arithmetic", "--count", 4, "--samples", 2, *settings)
    before = asked(*words[1:])
    assert before.config["stages"]["evaluation"]["verifier"] == "task_answer"
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "") and "weights: done" in out and "arithmetic" in out
    for file in (run.parent / "model").iterdir():
        file.touch()
    assert asked(*words[1:]).workdir != before.workdir


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere does not exist: expected a run folder, a model folder"),
        (("mine.jsonl",), "mine.jsonl is no run folder; name the problems by --data"),
        (("mine.jsonl", "--data", "logic", "--stage", "x"), "expected run.json in it"),
        (("run", "--data", "sum"), "Did you mean 'sums'?"),
        (("run", "--data", "sum"), "source of the recipe's evaluations (sums, chat, rows)"),
        (("run", "--data", "sums", "--data", "sums"), "there is a source 'sums' already"),
        (("run", "--stage", "taste"), "expected a policy, it is a reward_model"),
        (("run", "--stage", "exam"), "there are: base, tuned, taste"),
        (("run", "--reward-model", "tast"), "there are: base, tuned, taste"),
        (("run", "--samples", "0"), "--samples 0: expected 1 or more"),
        (("run", "--count", "-1"), "--count -1: expected 0 or more"),
        (("run", "--config.stages.evaluation.sample=1"), "Did you mean 'stages.evaluation.samples"),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, message):
    code, out, err = call(capsys, "eval", *words)
    assert code == 2 and message in err and not out
    assert err.count("\n") == 1 and not (run.parent / "runs").exists()


def test_a_recipe_without_an_evaluation(run, capsys):
    config = json.loads((run / "config.json").read_text())
    config["order"] = ["base", "tuned", "taste"]
    write_json(run / "config.json", config)
    assert "its recipe has no evaluate stage" in call(capsys, "eval", run)[2]
    stage = asked(run, "--data", "mine.jsonl").config["stages"]["evaluation"]
    assert stage["verifier"] == "math_answer" and stage["data"]["mine"] == {"path": "mine.jsonl"}
