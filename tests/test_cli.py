from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from torch import nn

import ghn_init
from ghn_init import GHNInitError
from ghn_init.cli.main import main
from ghn_init.models import create_model


def test_export(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w.safetensors"
    assert main(["export", "resnet18", "-o", str(out), "--ghn", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert "predicted" in printed
    assert f"written to {out}" in printed

    model = timm.create_model("resnet18")
    missing, unexpected = safetensors.torch.load_model(model, out)
    assert not missing
    assert not unexpected
    timm.create_model("resnet18").load_state_dict(safetensors.torch.load_file(out), strict=True)
    expected, _ = create_model("resnet18", seed=0)
    ghn_init.apply(expected, ghn=checkpoint)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True)
    )
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    report = ghn_init.apply(expected, ghn=checkpoint, return_report=True)[1]
    assert metadata == {
        "format": "pt",
        "model": "resnet18",
        "library": "timm",
        "method": "ghn3-orth",
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": report.checkpoint_sha256,
        "checkpoint_source": str(checkpoint),
        "checkpoint_revision": "",
        "seed": "0",
        "ghn_init_version": ghn_init.__version__,
    }
    first = safetensors.torch.load_file(out)
    assert main(["export", "resnet18", "-o", str(out), "--ghn", str(checkpoint)]) == 0
    second = safetensors.torch.load_file(out)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_export_is_the_same_bytes(tmp_path: Path, checkpoint: Path) -> None:
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files:
        assert main(["export", "resnet18", "-o", str(file), "--ghn", str(checkpoint)]) == 0
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("command", [["export", "resnet18", "-o"], ["convert", "embedded"]])
def test_names_of_other_formats_are_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(tmp_path / "x.pt")]) == 1
    assert "Give a name that ends in .safetensors." in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_export_options(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "w.safetensors"
    command = ["export", "shufflenet_v2_x0_5", "-o", str(out), "--ghn", str(checkpoint)]
    command += ["--library", "torchvision", "--num-classes", "7", "--method", "ghn3", "--seed", "5"]
    assert main([*command, "--head", "predict", "--noise", "0"]) == 0
    tensors = safetensors.torch.load_file(out)
    assert tensors["fc.weight"].shape == (7, 1024)
    model, library = create_model("shufflenet_v2_x0_5", "torchvision", 7)
    assert library == "torchvision"
    predicted = ghn_init.predict(model, checkpoint, head="predict")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in predicted.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5o"], r"no model 'resnet5o'.*Did you mean resnet50, resnet5\w+, resnet\w+\?"),
        (["resnet18", "--method", "magic"], "unknown method 'magic'"),
        (["resnet18", "--ghn", "missing.pt"], "missing.pt"),
        (["resnet18", "--num-classes", "-3"], "num_classes is -3"),
    ],
)
def test_failed_export_leaves_the_old_file(
    arguments: list[str], message: str, tmp_path: Path, cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "w.safetensors"
    for before in (None, b"precious"):
        if before is not None:
            out.write_bytes(before)
        assert main(["export", *arguments, "-o", str(out)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("ghn-init: ")
        assert len(error.splitlines()) == 1
        assert re.search(message, error)
        assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else [out.name])
        assert before is None or out.read_bytes() == before


@pytest.mark.parametrize("written", [0, 1])
def test_killed_export_leaves_the_old_file(written: int, tmp_path: Path) -> None:
    """Killed when its temporary file is there, still empty (0) or already being filled (1)."""
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"precious")
    command = ["export", "wide_resnet50_2", "--method", "orth", "--orth-start", "999"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ghn_init", *command, "-o", str(out)], stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        if any(p.stat().st_size >= written for p in tmp_path.glob(".*.tmp")):
            process.kill()
            break
    process.wait()
    assert process.returncode == -9  # there was a temporary file to wait for
    assert out.read_bytes() == b"precious" or (written and safetensors.torch.load_file(out))


def test_unwritable_output(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (tmp_path, tmp_path / "no" / "folder" / "w.safetensors"):
        assert main(["export", "resnet18", "-o", str(target), "--ghn", str(checkpoint)]) == 1
        assert "cannot write" in capsys.readouterr().err


def test_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "squeezenet1_1", "--library", "torchvision"]) == 0
    assert capsys.readouterr().out == (
        "squeezenet1_1 (torchvision)\n"
        "nodes 65, edges 72, average degree 2.22, longest shortest path 48\n"
        "max_pool 3  conv 26  concat 8  input 1  bias 26  glob_avg 1\n"
        "parameters in the graph 1,235,496 of 1,235,496 (100.00%), tensors 52 of 52\n"
    )
    assert main(["trace", "resnet18", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["library"] == "timm"
    assert content["nodes"][1] == {"op": "conv", "param": "conv1.weight", "shape": [64, 3, 7, 7]}
    assert content["edges"][0] == [0, 1]


def test_list(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("ghn3xlm16", "ghn3lm8", "ghn3sm8", "ghn3tm8", "ghn2", "ghn3-orth", "rand"):
        assert name in printed


def test_convert(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(checkpoint), str(tmp_path / "c.safetensors")]) == 0
    assert ghn_init.load_ghn(tmp_path / "c.safetensors").config.hidden_size == 16


def test_verify(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the norms that the published implementation was recorded with."""
    norms = {}
    for name in ("alexnet", "squeezenet1_1", "vit_b_16", "convnext_tiny", "regnet_x_400mf"):
        recorded = json.loads((shared / "golden" / "torchvision" / f"{name}.json").read_text())
        norms[name] = recorded["total_norm"]["ghn3"]
    table = tmp_path / "table.json"
    table.write_text(json.dumps(norms))
    command = ["verify", str(shared / "golden" / "ghn3_seeded.joblib.pt"), "--table", str(table)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 of 5 checks agree"
    assert [line.split()[3:] for line in lines[1:-1]] == [
        ["exact", "ok"], ["exact", "ok"], ["approximate", "ok"], ["approximate", "ok"],
        ["exact", "ok"],
    ]  # fmt: skip
    table.write_text(json.dumps({**norms, "alexnet": norms["alexnet"] + 0.02}))
    assert main([*command, "--models", "alexnet,squeezenet1_1"]) == 1
    printed = capsys.readouterr().out
    assert "MISMATCH" in printed
    assert "1 of 2 checks agree" in printed


def test_verify_compares_the_tensors_of_an_example(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = create_model("resnet50", "torchvision")
    tensors = ghn_init.predict(model, checkpoint)
    example, table = tmp_path / "example.safetensors", tmp_path / "table.json"
    table.write_text("{}")
    command = ["verify", str(checkpoint), "--table", str(table), "--example", str(example)]
    safetensors.torch.save_file({n: t.clone() for n, t in tensors.items()}, example)
    assert main(command) == 0
    assert "1 of 1 checks agree" in capsys.readouterr().out
    tensors["layer3.2.conv2.weight"].view(-1)[7] *= 1.1
    safetensors.torch.save_file({n: t.clone() for n, t in tensors.items()}, example)
    assert main(command) == 1
    assert "MISMATCH" in capsys.readouterr().out
    assert main([*command[:-1], str(checkpoint)]) == 1
    assert "no state dict of a ResNet-50" in capsys.readouterr().err


def test_model_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=3): return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, num_classes))\n"
    )
    name = f"{tmp_path / 'mine.py'}:net"
    out = tmp_path / "w.safetensors"
    assert main(["export", name, "-o", str(out), "--method", "orth", "--num-classes", "5"]) == 0
    assert safetensors.torch.load_file(out)["1.weight"].shape == (5, 8)
    capsys.readouterr()
    for bad in (f"{name}x", f"{tmp_path / 'none.py'}:net"):
        assert main(["trace", bad]) == 1
        assert "cannot be built" in capsys.readouterr().err


ODD_MODELS = """
import sys, torch
from torch import nn

def tied():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[2].weight = model[1].weight
    model.register_buffer("first_row", model[0].bias.data[:4])
    return model

class Extra(nn.Conv2d):
    def get_extra_state(self): return {"version": 1}
    def set_extra_state(self, state): pass

def extra():
    model = nn.Sequential(Extra(3, 8, 3), nn.Conv2d(8, 8, 1))
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return model

def view():
    model = nn.Conv2d(3, 8, 3)
    model.register_buffer("part", torch.arange(9.0)[3:6])
    return model

def leaves(): sys.exit("no more models")
def leaves_in_silence(): raise SystemExit
"""


def test_odd_models_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "odd.py", tmp_path / "w.safetensors"
    file.write_text(ODD_MODELS)

    def export(name: str) -> tuple[int, str]:
        code = main(["export", f"{file}:{name}", "-o", str(out), "--ghn", "embedded"])
        return code, capsys.readouterr().err

    assert export("tied") == (0, "")
    model, _ = create_model(f"{file}:tied", seed=1)
    assert safetensors.torch.load_model(model, out) == (set(), [])
    assert model[2].weight is model[1].weight
    expected, _ = create_model(f"{file}:tied")
    ghn_init.apply(expected, ghn="embedded")
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    with safe_open(out, "pt") as opened:
        assert set(opened.keys()) == model.state_dict().keys() - {"2.weight", "first_row"}
        assert opened.metadata()["2.weight"] == "1.weight"
        assert opened.metadata()["first_row"] == "0.bias"

    code, warning = export("extra")
    assert code == 0
    assert re.fullmatch(
        r"ghn-init: warning: .*graph, 0\._extra_state: not in the file.*\n", warning
    )
    model, _ = create_model(f"{file}:extra")
    found = model.load_state_dict(safetensors.torch.load_file(out), strict=False)
    assert sorted(found.missing_keys) == ["0._extra_state", "graph"]
    assert not found.unexpected_keys

    assert export("view") == (0, "")
    assert safetensors.torch.load_file(out)["part"].tolist() == [3, 4, 5]

    before = out.read_bytes()
    for name, reason in (("leaves", "no more models"), ("leaves_in_silence", "SystemExit")):
        code, error = export(name)
        assert code == 1
        assert re.fullmatch(rf"ghn-init: .*cannot be built: .*{reason}\n", error)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"odd.py", "w.safetensors", "__pycache__"}


def test_a_model_file_imports_its_neighbors(tmp_path: Path) -> None:
    path = list(sys.path)
    for width, folder in ((8, tmp_path / "a"), (16, tmp_path / "b")):
        (folder / "parts").mkdir(parents=True)
        (folder / "layers.py").write_text(
            f"from torch import nn\nconv = nn.Conv2d(3, {width}, 3)\n"
        )
        (folder / "parts" / "__init__.py").write_text("from layers import conv\n")
        (folder / "net.py").write_text(
            "from layers import conv\n"
            "def early(): return conv\n"
            "def late(): import parts; return parts.conv\n"
        )
    for width, folder in ((8, "a"), (16, "b"), (8, "a")):  # names that both have are not mixed up
        for factory in ("early", "late"):
            model, _ = create_model(f"{tmp_path / folder / 'net.py'}:{factory}")
            assert model.out_channels == width
    assert sys.path == path


def test_verify_errors(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(checkpoint)]) == 1
    assert "no published norms" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("[1, 2]")
    for table in ("bad.json", "missing.json"):
        assert main(["verify", str(checkpoint), "--table", str(tmp_path / table)]) == 1
        assert "no table of norms" in capsys.readouterr().err


def test_published_norms() -> None:
    from ghn_init.verify import published_norms

    in_full = "hf-hub:SamsungSAILMontreal/ghn3/ghn3tm8.pt@main"
    for name in ("ghn3xlm16", "ghn3tm8", "ghn2", "ghn3xlm16@main", in_full):
        assert len(published_norms(name)) == 74
    assert published_norms("ghn3xlm16")["alexnet"] == 72.4766


def test_models_by_name() -> None:
    state = torch.get_rng_state()
    a, library = create_model("resnet18", seed=3)
    b, _ = create_model("resnet18", seed=3)
    assert library == "timm"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    model, library = create_model("fcn_resnet50", num_classes=5)  # its backbone is not downloaded
    assert library == "torchvision"
    assert isinstance(model, nn.Module)
    with pytest.raises(GHNInitError, match="unknown library 'nowhere'"):
        create_model("convnext_tiny", "nowhere")


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return result.stdout


def command(
    *words: str, code: str = "", stdout: int | IO[str] = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, after some code."""
    program = (
        f"import sys; from ghn_init.cli import main\n{code}\nsys.exit(main.main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *words], stdout=stdout, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = command("list", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "ghn-init: No space left on device: standard output\n"


def test_a_terminal_that_is_not_utf8(tmp_path: Path) -> None:
    model = tmp_path / "\N{GREEK CAPITAL LETTER OMEGA}.py"
    model.write_text("from torch import nn\ndef f():\n    return nn.Linear(3, 2)\n")
    done = command("trace", f"{model}:f", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    shown = str(tmp_path).encode("ascii", "replace").decode()
    assert done.stdout.startswith(f"{shown}/?.py:f")


def test_interrupted_in_a_command(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("import os, signal\ndef f():\n    os.kill(os.getpid(), signal.SIGINT)\n")
    done = command("trace", f"{model}:f")
    assert (done.returncode, done.stderr) == (130, "ghn-init: interrupted\n")


def test_interrupted_while_torch_is_imported() -> None:
    """An exception there would be one in C++ code, which aborts."""
    code = (
        "import os, signal\n"
        "main.importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)"
    )
    done = command("list", code=code)
    assert (done.returncode, done.stderr) == (130, "ghn-init: interrupted\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--orth-start", "abc", "'abc' is no layer: give a number such as 12, or a share"),
        ("--seed", "x", "invalid int value: 'x'"),
    ],
)
def test_arguments_that_cannot_be_read(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["export", "resnet18", "-o", "x.safetensors", option, value])
    assert message in capsys.readouterr().err
