"""`posttrain export` and `posttrain import`, and the model card, on a run folder made by hand."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from posttrain_jax import artifacts, main, policy, reward_model, train_state
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.files import write_json
from posttrain_jax.model_card import front_matter
from posttrain_jax.models import ModelConfig, from_pretrained, heads, make_model
from posttrain_jax.models.safetensors import load_pretrained
from posttrain_jax.policy import open_mesh

CONFIG = ModelConfig(704, 1, 16, 2, 2, 8, 24, pad_id=0)
TASKS = {"tasks": {"arithmetic": 1.0}, "count": 40}
METRICS = {"pass@1": {"mean": 0.25, "stderr": 0.0625, "n": 48}, "odd": 1.0}


@pytest.fixture
def run(tmp_path):
    """base (pretrained) > tuned (sft); an evaluation of tuned, and one of base."""
    workdir, made = tmp_path / "run", {}
    kinds = {"base": "pretrained", "tuned": "sft", "exam": "evaluate", "first_exam": "evaluate"}
    inputs = {"tuned": "base", "exam": "tuned", "first_exam": "base"}
    for number, (name, kind) in enumerate(kinds.items()):
        said = {"stage": inputs[name], "id": made[inputs[name]].id} if name in inputs else None
        record = artifacts.Record(
            stage=name, kind=kind, id=f"{number}" * 64, inputs={"policy": said} if said else {},
            config={"tokenizer": "tiny", "chat_template": "tiny" if kind == "sft" else "",
                    "data": {"all": TASKS}, "mesh": {}},
        )  # fmt: skip
        folder = workdir / "artifacts" / record.folder_name
        artifacts.prepare(folder, record)
        if kind in ("pretrained", "sft"):
            model = make_model(CONFIG)
            policy.save_policy(folder, model, model.init(jax.random.key(number)))
        origin = {"origin": {"license": "apache-2.0", "name": "someone/a-base"}}
        made[name] = artifacts.finish(
            folder, metrics=METRICS if kind == "evaluate" else {},
            **(origin if name == "base" else {}),
        )  # fmt: skip
        artifacts.seal(folder)
    stages = {name: {"path": f"artifacts/{made[name].path.name}"} for name in kinds}
    said = {"recipe": "toy", "preset": "tiny", "seed": 3, "order": list(kinds), "stages": stages}
    write_json(workdir / "run.json", said)
    write_json(workdir / "config.json", {"sources": "a paper", "seed": 3})
    return workdir


def call(capsys, *words):
    code = main.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_export_writes_the_last_policy(run, tmp_path, capsys):
    code, out, err = call(capsys, "export", run, "--to", "hf", tmp_path / "out", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["stage"], said["id"]) == ("tuned", "1" * 64)
    assert said["files"]["model.safetensors"] == (tmp_path / "out/model.safetensors").stat().st_size
    model, params, tokenizer = from_pretrained(tmp_path / "out")
    assert model.config.layers == 1 and tokenizer.chat_template
    expected = make_model(CONFIG).init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_model_with_a_head_is_exported_by_its_stage(run, tmp_path, capsys):
    model, mesh = make_model(CONFIG), open_mesh({"mesh": {"data": 1}})
    backbone = train_state.init_params(model, mesh, 1)
    params = reward_model.add_head(model, backbone, mesh, 2, heads.SCORE)
    record = artifacts.Record(
        "taste", "reward_model", "9" * 64,
        {"tokenizer": "tiny", "chat_template": "tiny", "data": {}, "mesh": {}},
    )  # fmt: skip
    folder = run / "artifacts" / record.folder_name
    artifacts.prepare(folder, record)
    reward_model.save(folder, reward_model.RewardModel(model, params, 32, "whole"))
    artifacts.finish(folder)
    artifacts.seal(folder)
    said = json.loads((run / "run.json").read_text())
    said["order"].append("taste")
    said["stages"]["taste"] = {"path": f"artifacts/{folder.name}"}
    write_json(run / "run.json", said)
    assert call(capsys, "export", run, tmp_path / "last")[0] == 0
    assert load_pretrained(tmp_path / "last")  # still the last policy
    assert call(capsys, "export", run, tmp_path / "out", "--stage", "taste")[0] == 0
    again = reward_model.from_folder(tmp_path / "out", mesh)
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_the_card_tells_where_it_comes_from(run, tmp_path, capsys):
    assert call(capsys, "export", run, tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "# toy:tiny, stage tuned",
        "recipe: `toy:tiny`, seed 3",
        f"sha256 `{artifacts.digest({'sources': 'a paper', 'seed': 3})}`",
        "source of the recipe: a paper",
        "base model: `someone/a-base`, licence apache-2.0",
        "| base | pretrained | `000000000000` |  | arithmetic (40) |",
        "| tuned | sft | `111111111111` | policy: base | arithmetic (40) |",
        "| exam | pass@1 | 0.25 | 0.062 | 48 |",
    ):
        assert text in card, text
    assert "first_exam" not in card  # it is of another policy
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0" and head["base_model"] == "someone/a-base"
    assert head["library_name"] == "transformers" and "sft" in head["tags"]
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "pass@1", "name": "pass@1", "value": 0.25}]
    known = front_matter(tmp_path / "out" / "README.md")
    assert known == {"license": "apache-2.0", "base_model": "someone/a-base"}


def test_a_named_stage_in_another_type(run, tmp_path, capsys):
    words = ("export", run, tmp_path / "out", "--stage", "base", "--dtype", "bfloat16")
    code, out, _ = call(capsys, *words)
    assert code == 0 and "stage base" in out and "model.safetensors" in out
    fields, params = load_pretrained(tmp_path / "out")
    assert fields["param_dtype"] == "bfloat16"
    expected = make_model(CONFIG).init(jax.random.key(0))["embed"].astype("bfloat16")
    np.testing.assert_array_equal(params["embed"], expected)


def test_import_makes_a_plain_folder(run, tmp_path, capsys):
    assert call(capsys, "export", run, tmp_path / "a")[0] == 0
    code, out, _ = call(capsys, "import", tmp_path / "a", tmp_path / "b", "--dtype", "float16")
    assert code == 0 and "source=" in out
    assert load_tokenizer(tmp_path / "b").hash == load_tokenizer("tiny").hash
    fields, params = load_pretrained(tmp_path / "b")
    assert fields["param_dtype"] == "float16"
    expected = make_model(CONFIG).init(jax.random.key(1))["embed"].astype("float16")
    np.testing.assert_array_equal(params["embed"], expected)
    assert front_matter(tmp_path / "b" / "README.md")["license"] == "apache-2.0"


def test_mistakes_are_one_line(run, tmp_path, capsys):
    out = tmp_path / "out"
    (unfinished,) = (run / "artifacts").glob("tuned-*")
    cases = [
        (("export", tmp_path, out), "is not a run folder: expected run.json"),
        (("export", run, out, "--stage", "exam"), "no finished model (--stage); there are: base"),
        (("import", tmp_path / "none", out), "config.json; expected a model folder"),
        (("import", tmp_path / "none.gguf", out), "no GGUF file"),
        (("import", run, run), "is both the source and the folder to write"),
    ]
    for words, message in cases:
        code, printed, err = call(capsys, *words)
        assert code == 2 and message in err and err.count("\n") == 1 and not printed
    (unfinished / "DONE").unlink()
    code, _, err = call(capsys, "export", run, out, "--stage", "tuned")
    assert code == 2 and "'tuned' has no finished model" in err and "there are: base" in err
    shutil.rmtree(run / "artifacts")
    assert "no stage that makes a policy is done" in call(capsys, "export", run, out)[2]
    assert not out.exists() and not list(Path(tmp_path).glob(".out*"))
