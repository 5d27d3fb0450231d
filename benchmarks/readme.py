"""Writes the tables between the markers of both READMEs from saved_models/ and benchmarks/results/: `make results`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import (
    _results,
    captioner_speed,
    chargen_speed,
    cifar10_speed,
    dcgan_speed,
    denoiser_quality,
    denoiser_speed,
    export_speed,
    vae_speed,
)
from kerasdl.files import write_text

ROOT = Path(__file__).parent.parent
PUBLISHED = {
    "fast-13": "94.01 flip and shift average, 8 epochs on a GPU (airbench94_muon); 91.25 ResNet-20 (He et al. 2015)",
    "fast-21": "94.01 flip and shift average, 8 epochs on a GPU (airbench94_muon)",
    "resnet20": "91.25 after 164 epochs (He et al. 2015, table 6)",
}

EXTRA = (
    "flip_average_accuracy",
    "calibration_error",
    "nats_per_character_nanogpt_protocol",
    "bleu4",
    "cider",
    "restored_psnr_db_25",
    "frechet_floor",
    "class_accuracy",
)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def applications() -> str:
    """One row an application: the first sentence of its docstring, and its verbs."""
    rows = []
    for path in sorted((ROOT / "apps").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sentence = (ast.get_docstring(tree) or "").splitlines()[0].partition(": ")[2]
        (verbs,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and _is(node.target, "VERBS"))
        assert isinstance(verbs, ast.Tuple)
        own = [ast.unparse(verb) for verb in verbs.elts]
        rows.append([f"[`{path.stem}`](apps/{path.name})", sentence.removesuffix("."), ", ".join(own)])
    return table(["application", "what it does", "verbs beside train, evaluate and export"], rows)


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def exports() -> str:
    """One row an exported application."""
    rows = []
    for path in sorted((ROOT / "saved_models").glob("*/*/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        name, version = path.parts[-3], path.parts[-2]
        ours = {key: value for key, value in metrics.items() if not key.startswith("noisy")}
        shown = [f"{key} {value:.4f}" for key, value in ours.items() if isinstance(value, float)][:1]
        shown += [f"{key} {metrics[key]:.4f}" for key in EXTRA if key in metrics]
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) / 2**20
        card = f"[card](saved_models/{name}/{version}/MODEL_CARD.md)"
        rows.append([name, metrics["split"], "<br>".join(shown), f"{size:.1f} MiB", card])
    return table(["application", "measured on", "the export's metrics", "size", ""], rows)


def accuracy() -> str:
    """One row a recipe on CIFAR-10."""
    rows = []
    for recipe, published in PUBLISHED.items():
        found = _results.read(f"cifar10_accuracy_{recipe}")
        if found is None:
            continue
        mean, spread = found["mean"], found["deviation"]
        seeds = len(found["rows"])

        def percent(key: str, mean: dict[str, float] = mean, spread: dict[str, float] = spread) -> str:
            deviation = f" ± {100 * spread[key]:.2f}" if spread[key] is not None else ""
            return f"{100 * mean[key]:.2f}{deviation}"

        rows.append(
            [
                f"`{recipe}`",
                percent("accuracy"),
                percent("flip_average_accuracy"),
                ", ".join(f"{row['training_minutes']:.1f}" for row in found["rows"]),
                str(seeds),
                published,
            ]
        )
    if not rows:
        return "Not measured yet."
    head = ["recipe", "test accuracy, %", "with flip average, %", "minutes", "seeds", "published, %"]
    return table(head, rows)


PEERS = {
    "keras_float32": "plain Keras `fit`, float32",
    "torch_float32": "PyTorch, float32",
    "torch_bfloat16": "PyTorch, bfloat16",
    "torch_compile_float32": "PyTorch torch.compile, float32",
    "torch_compile_bfloat16": "PyTorch torch.compile, bfloat16",
    "predict": "`model.predict` in a loop (keras-io)",
    "predict_loop": "`model.predict` in a loop (keras-io)",
    "one_step": "one-step `tf.function` in a loop (TensorFlow tutorial)",
    "torch": "PyTorch, float32",
}


def by_kind(module: str, works: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Of each kind of processor that was measured the results of these works; simulated kinds come last."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for work in works:
        for kind, block in _results.read_kinds(f"{module}_{work}").items():
            kinds.setdefault(kind, []).append(block)
    return dict(sorted(kinds.items(), key=lambda item: item[1][0]["simulated"]))


def headed(kind: str, content: str, blocks: list[dict[str, Any]], notes: str = "") -> str:
    """What stands under one kind of processor, with the machines and protocols below."""
    conditions: dict[str, list[str]] = {}
    for block in blocks:
        asked = [f"; {name}={value} set by the user" for name, value in block.get("set_by_user", {}).items()]
        text = "".join([block["machine"], "; ", block["protocol"], *asked, "."])
        conditions.setdefault(text, []).extend(row["work"].replace("_", " ") for row in block["rows"])
    if len(conditions) == 1:
        return f"**On {kind}**\n\n{content}\n\n{next(iter(conditions))}{notes}"
    lines = "\n".join(f"- {', '.join(works)}: {text}" for text, works in conditions.items())
    return f"**On {kind}**\n\n{content}\n\n{lines}{notes}"


def speed(module: str, works: Iterable[str]) -> str:
    """Of each kind of processor one row a work and a peer, of those that were measured."""
    parts = []
    for kind, blocks in by_kind(module, works).items():
        lines, notes = [], []
        for row in (row for block in blocks for row in block["rows"]):
            lines += [_beside(row, peer) for peer in PEERS if peer in row["per_second"]]
            notes += _shares_of_the_peak(row)
        unit = blocks[0]["unit"]
        head = ["work", "peer", f"peer, {unit}/s", f"ours, {unit}/s", "ours / peer (rounds)", "peak memory, GiB"]
        parts.append(headed(kind, table(head, lines), blocks, "".join(notes)))
    return "\n\n".join(parts) or "Not measured yet."


TRAINING = {
    "cifar10": "fast",
    "sentiment": "training",
    "chargen": "training",
    "captioner": "training",
    "denoiser": "training",
    "vae": "elbo",
    "dcgan": "32",
}
"""The work of each application's speed benchmark that stands for all."""


def speeds() -> str:
    """One row an application: its training speed over that of two peers, on each kind of processor."""
    kinds = {name: by_kind(f"{name}_speed", [work]) for name, work in TRAINING.items()}
    columns = sorted({(blocks[0]["simulated"], kind) for found in kinds.values() for kind, blocks in found.items()})
    rows = []
    for name, found in kinds.items():
        cells = []
        for _, kind in columns:
            (row,) = found[kind][0]["rows"] if kind in found else [{"per_second": {}}]
            peers = [peer for peer in ("torch_bfloat16", "torch_float32") if peer in row["per_second"]][:1]
            ratios = [_beside(row, peer)[4].split()[0] for peer in (*peers, "keras_float32") if row["per_second"]]
            cells.append(" / ".join(ratios))
        rows.append([name, *cells])
    return table(["PyTorch / plain Keras", *(kind for _, kind in columns)], rows)


def _beside(row: dict[str, Any], peer: str) -> list[str]:
    """The line of a peer: beside ours in its precision, or in the one that `--precision auto` takes."""
    speeds, memory = row["per_second"], row["peak_memory_gib"]
    alike = "ours_float32" if peer in ("torch_float32", "torch_compile_float32") else "ours_bfloat16"
    mine = next(name for name in ("ours", alike, "ours_float32") if name in speeds)
    ratios = [ours / theirs for ours, theirs in zip(row["all"][mine], row["all"][peer], strict=True)]
    onednn = ", oneDNN off" if row["contenders"][peer].get("onednn") is False else ""
    return [
        row["work"].replace("_", " "),
        PEERS[peer] + onednn,
        f"{speeds[peer]:,.0f}",
        f"{speeds[mine]:,.0f}",
        f"{speeds[mine] / speeds[peer]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{memory[mine]:.1f} / {memory[peer]:.1f}",
    ]


def _shares_of_the_peak(row: dict[str, Any]) -> list[str]:
    """How near ours comes to what a single convolution reaches, a sentence a precision."""
    speeds, notes = row["per_second"], []
    for precision in ("bfloat16", "float32"):
        if peak := speeds.get(f"convolution_peak_{precision}"):
            share = 6e-9 * cifar10_speed.MACS[row["work"]] * speeds[f"ours_{precision}"] / peak
            which = f"of the fastest convolution layer alone ({peak:.0f} GFLOP/s)"
            notes.append(f" {row['work']}, {precision}: {share:.0%} {which}.")
    return notes


def inference() -> str:
    """Of each kind of processor the milliseconds of one call of the exports, one row a signature and batch."""
    parts = []
    for kind, blocks in by_kind("export_speed", export_speed.WORKS).items():
        lines = []
        for row in (row for block in blocks for row in block["rows"]):
            for batch in export_speed.BATCHES:
                on, off = f"onednn_on_{batch}", f"onednn_off_{batch}"
                ratios = [one / other for one, other in zip(row["all"][on], row["all"][off], strict=True)]
                quotient = row["per_second"][on] / row["per_second"][off]
                calls = [row["per_second"].get(name) for name in (on, off, f"onnxruntime_{batch}")]
                lines.append(
                    [
                        row["work"].replace("_", " ", 1),
                        str(batch),
                        *("" if value is None else f"{1000 / value:,.3g}" for value in calls),
                        f"{quotient:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    ]
                )
        head = ["signature", "examples", "oneDNN on, ms", "oneDNN off, ms", "ONNX Runtime, ms", "off / on (rounds)"]
        parts.append(headed(kind, table(head, lines), blocks))
    return "\n\n".join(parts) or "Not measured yet."


def reviews() -> str:
    """The exported text classifier beside its teacher, its student and linear models, all on the IMDB test split."""
    found = _results.read("sentiment_baselines")
    if found is None:
        return "Not measured yet."
    export = json.loads((ROOT / "saved_models/sentiment/1/metrics.json").read_text(encoding="utf-8"))
    by_length = [value for key, value in export.items() if key.startswith("accuracy_words")]
    ours = {"model": "this project's export, with unlabelled reviews, too", **export}
    ours |= {f"accuracy_length_quartile_{i + 1}": value for i, value in enumerate(by_length)}
    others = {"its teacher, the default: labelled reviews alone": "default", "a student of its own": "second-student"}
    measured = {model: _results.read(f"sentiment_accuracy_{recipe}") for model, recipe in others.items()}
    kin = [{"model": model, **result["mean"]} for model, result in measured.items() if result is not None]
    published = [{"model": f"published: {name}", "accuracy": value} for name, value in found["published"].items()]
    quartiles = [f"accuracy_length_quartile_{i}" for i in range(1, 5)]
    rows = [
        [row["model"]]
        + [f"{100 * row[key]:.2f}" if key in row else "" for key in ("accuracy", *quartiles)]
        + [f"{row['calibration_error']:.3f}" if "calibration_error" in row else ""]
        for row in (ours, *kin, *found["rows"], *published)
    ]
    begins, ends = [0, *(limit + 1 for limit in found["quartiles_words"])], [*found["quartiles_words"], "more"]
    head = ["model", "accuracy, %"] + [f"of {a} to {b} words" for a, b in zip(begins, ends, strict=True)]
    return f"{table([*head, 'calibration error'], rows)}\n\n{found['protocol']}."


def characters() -> str:
    """The text generator's recipes on Tiny Shakespeare."""
    rows = []
    for recipe in ("three-minutes", "default"):
        found = _results.read(f"chargen_accuracy_{recipe}")
        if found is None:
            continue
        key, strict = "nats_per_character_nanogpt_protocol", "nats_per_character"
        of_seeds = [
            ", ".join(f"{row[column]:.{digits}f}" for row in found["rows"])
            for column, digits in ((key, 4), (strict, 4), ("training_minutes", 1))
        ]
        rows.append([f"`{recipe}`", *of_seeds])
    if not rows:
        return "Not measured yet."
    return table(["recipe", "nats by nanoGPT's protocol", "nats, every character of the test split", "minutes"], rows)


CAPTIONS = {
    "Xu et al. 2015, soft attention (VGG, 224 px)": (67.0, 44.8, 29.9, 19.5),
    "Xu et al. 2015, hard attention": (67.0, 45.7, 31.4, 21.3),
    "Show and Tell, as Xu et al. 2015 quote it": (63.0, 41.0, 27.0, None),
}


def captions() -> str:
    """The exported captioner beside published figures on Flickr8k's test split."""
    path = ROOT / "saved_models/captioner/1/metrics.json"
    if not path.is_file():
        return "Not measured yet."
    found = json.loads(path.read_text(encoding="utf-8"))
    columns = [f"bleu{n}" for n in range(1, 5)]
    plain = [found[column] for column in columns]
    whole = [value / found["brevity_penalty"] for value in plain]
    others = [f"{found[column]:.1f}" for column in ("rouge_l", "meteor") if column in found]
    named = [column.upper().replace("_", "-") for column in ("rouge_l", "meteor") if column in found]
    rows = [
        ["this project's export", *(f"{value:.1f}" for value in plain), *others, f"{found['cider']:.3f}"],
        ["the same without brevity penalty", *(f"{value:.1f}" for value in whole), *[""] * (len(others) + 1)],
        *(
            [name, *("" if value is None else f"{value:.1f}" for value in values), *[""] * (len(others) + 1)]
            for name, values in CAPTIONS.items()
        ),
    ]
    said = (
        f"Of {found['split']}: {found['distinct_words']:.0f} different words, "
        f"{found['distinct_captions_ratio']:.0%} of the captions differ from each other, "
        f"{found['in_training_ratio']:.0%} stand word for word in the training captions, "
        f"{found['mean_words']:.1f} words a caption."
    )
    return table(["captions by", *(f"BLEU-{n}" for n in range(1, 5)), *named, "CIDEr"], rows) + f"\n\n{said}"


def restored(dataset: str) -> str:
    """The denoiser beside classical filters: PSNR and SSIM at each strength."""
    found = _results.read(f"denoiser_quality_{dataset}")
    if found is None:
        return "Not measured yet."
    strengths = sorted({row["strength"] for row in found["rows"]})
    cells = {(row["method"], row["strength"]): f"{row['psnr_db']:.2f} / {row['ssim']:.3f}" for row in found["rows"]}
    methods = dict.fromkeys(row["method"] for row in found["rows"])
    rows = [[name.replace("_", " "), *(cells[name, strength] for strength in strengths)] for name in methods]
    head = ["PSNR in dB / SSIM", *(f"sigma {strength:g}" for strength in strengths)]
    return f"{table(head, rows)}\n\n{found['protocol']}."


def restored_photographs() -> str:
    """The denoiser beside BM3D on photographs, also in grey and as files hold them."""
    rows, said = [], ""
    for name in denoiser_quality.PHOTOGRAPHS:
        found = _results.read(f"denoiser_quality_{name}")
        if found is None:
            return "Not measured yet."
        psnr = {(row["method"], row["strength"]): row["psnr_db"] for row in found["rows"]}
        strengths = sorted({row["strength"] for row in found["rows"]})
        label = name.replace("-", ", ")
        for method in ("noisy", "bm3d", "ours"):
            rows.append([f"{label}: {method}", *(f"{psnr[method, at]:.2f}" for at in strengths)])
        rows.append([f"{label}: ahead", *(f"{psnr['ours', at] - psnr['bm3d', at]:+.2f}" for at in strengths)])
        said = said or found["protocol"]
    head = ["PSNR in dB", *(f"sigma {strength:g}" for strength in strengths)]
    return f"{table(head, rows)}\n\n{said}; files: with noise clipped and rounded."


NATS = {
    "VAE, Burda et al. 2015": 86.76,
    "IWAE of 50 samples, Burda et al. 2015": 84.78,
    "NVAE, Vahdat and Kautz 2020": 78.01,
}


def bounds() -> str:
    """The exported VAE, and the objectives that were measured, beside published bounds on MNIST."""
    path = ROOT / "saved_models/vae/1/metrics.json"
    if not path.is_file():
        return "Not measured yet."
    export = json.loads(path.read_text(encoding="utf-8"))
    measured = {"this project's export": export}
    for recipe in ("elbo", "iwae"):
        if found := _results.read(f"vae_accuracy_{recipe}"):
            measured |= {f"`{recipe}`, seed {row['seed']}": row for row in found["rows"]}
    rows = [
        [name, f"{found['nll_nats']:.2f}", f"{found['elbo_nats']:.2f}", str(found["active_latents"])]
        for name, found in measured.items()
    ]
    rows += [[f"published: {name}", f"{value:.2f}", "", ""] for name, value in NATS.items()]
    head = ["", "nats, bound of 5,000 samples", "nats, evidence lower bound", "latents in use"]
    return f"{table(head, rows)}\n\n{export['split']}; lower is better."


def drawn() -> str:
    """The exported DCGAN beside keras-io's recipe."""
    path = ROOT / "saved_models/dcgan/1/metrics.json"
    if not path.is_file():
        return "Not measured yet."
    export = json.loads(path.read_text(encoding="utf-8"))
    measured = {"this project's export": export}
    if found := _results.read("dcgan_baseline_cifar10"):
        measured |= {
            f"{row['model']}, {row['training_minutes']:.0f} minutes, {row['steps']:,} steps": row
            for row in found["rows"]
        }
    spaces = {found["feature_space"] for found in measured.values()}
    if len(spaces) > 1:
        raise ValueError(f"distances of {len(spaces)} feature spaces, expected one: measure anew: {spaces}")
    rows = [
        [
            name,
            f"{found['frechet']:.1f}",
            f"{found['precision']:.3f}",
            f"{found['recall']:.3f}",
            f"{found['modes_hit']:.0f}",
            f"{found['class_accuracy']:.3f}" if "class_accuracy" in found else "",
            f"{found['nearest_distance']:.2f}",
        ]
        for name, found in measured.items()
    ]
    rows.append(
        ["training pictures", f"{export['frechet_floor']:.1f}", "", "", "", "", ""],
    )
    real = f"{export['classifier_accuracy']:.3f}", f"{export['nearest_distance_test']:.2f}"
    rows.append(["test pictures", "0", "", "", "10", *real])
    head = ["pictures of", "Fréchet distance", "precision", "recall", "classes hit", "drawn as asked", "to the nearest"]
    return f"{table(head, rows)}\n\n{export['split']}; feature space: {export['feature_space']}."


def digits() -> str:
    """The DCGAN's digits."""
    found = _results.read("dcgan_accuracy_mnist")
    if found is None:
        return "Not measured yet."
    columns = [name for name in found["rows"][0] if name != "seed"]
    rows = [[f"{row[name]:.4g}" for name in columns] for row in found["rows"]]
    return f"{table([name.replace('_', ' ') for name in columns], rows)}\n\n{found['protocol']}."


SEARCHES = {
    "ours": "this project, `--prune none`",
    "keras_tuner": "Keras Tuner alone",
    "optuna": "Optuna, no pruning",
    "ours_median": "this project, `--prune median`",
    "optuna_median": "Optuna, median rule",
    "ours_halving": "this project, `--prune halving`",
    "ours_two_workers": "this project, `--prune none --workers 2`",
    "ray_asha": "Ray Tune, ASHA, two processes",
}


def searches() -> str:
    """Searches of this project and of others on the same space, budget and model."""
    found = _results.read("search_peers")
    if found is None:
        return "Not measured yet."
    by_name = {row["contender"]: row for row in found["rows"]}
    alone = {name: row["seconds"] / row["trials"] for name, row in by_name.items() if name.startswith("bare")}
    rows = []
    for name, words in SEARCHES.items():
        if (row := by_name.get(name)) is None:
            continue
        whole = row["epochs"] == row["trials"] * found["epochs"]
        in_turn = "two_workers" not in name and name != "ray_asha"
        around = (row["seconds"] - row.get("training_seconds", 0)) / row["trials"]
        overhead = f"{around:.2f}" if whole and in_turn else ""
        seconds = f"{row['wall_seconds']:.0f}", f"{row['startup_seconds']:.0f}", overhead
        memory = " / ".join(f"{mib:,}" for mib in row["memory_mib"])
        rows.append([words, *seconds, str(row["epochs"]), f"{row['best']:.2f}", memory])
    head = ["search", "whole, s", "of it start-up, s", "overhead a trial, s", "epochs", "best val_loss", "memory, MiB"]
    return (
        f"{table(head, rows)}\n\n{found['machine']}; {found['protocol']}. A trial with no search around takes "
        f"{alone['bare']:.2f} s by Keras' `fit`, {alone['bare_ours']:.2f} s by the application's `train`. Memory of "
        "the process that trains, after 5 trials and after 30."
    )


SERVERS = {
    "bare_32": "the signature alone, 32 examples",
    "bare_1": "the signature alone, one example",
    "ours": "this project",
    "litserve": "LitServe, batches of 32",
    "fastapi": "FastAPI, the signature",
    "fastapi_predict": "FastAPI, `model.predict`",
}


def servers() -> str:
    """The model server beside others, by kind of processor."""
    texts = []
    for block in _results.read_kinds("serving_speed").values():
        rows = []
        for row in sorted(
            block["rows"], key=lambda row: (row["model"], row["connections"], [*SERVERS].index(row["contender"]))
        ):
            latency = [f"{row[name]:.1f}" if name in row else "" for name in ("p50_ms", "p99_ms")]
            connections = str(row["connections"]) if "p50_ms" in row else ""
            speed = f"{row['per_second']:.0f}"
            who = SERVERS[row["contender"]]
            rows.append([row["model"], connections, who, speed, *latency, f"{row['processor_ms']:.1f}"])
        head = ["model", "connections", "server", "requests/s", "p50, ms", "p99, ms", "processor, ms a request"]
        texts.append(f"{table(head, rows)}\n\n{block['machine']}; {block['protocol']}.")
    return "\n\n".join(texts) or "Not measured yet."


def load() -> str:
    """The model server under mixed load, by kind of processor."""
    texts = []
    for block in _results.read_kinds("serving_load").values():
        row = block["rows"][0]
        heavy = ", ".join(f"{name}: {count}" for name, count in sorted(row["heavy"].items()))
        memory = row["memory_mib"]
        parts = [
            f"{row['requests']:,} requests, {row['failed']} failed; median {row['p50_seconds']} s, 99 % within",
            f"{row['p99_seconds']} s, the longest {row['longest_seconds']} s. Memory {memory[0]:,} MiB at first,",
            f"at most {max(memory):,}, {memory[-1]:,} at the end, with that of the process that reads large bodies.",
            f"Answers to the heavy client (status): {heavy}.\n\n{block['machine']}; {block['protocol']}.",
        ]
        texts.append(" ".join(parts))
    return "\n\n".join(texts) or "Not measured yet."


def document(name: str) -> Path:
    """The file in which a part stands."""
    return ROOT / ("README.md" if name in ("applications", "exports") else "benchmarks/README.md")


def replace(text: str, name: str, content: str) -> str:
    """Puts `content` between the markers of a part.

    Raises:
        ValueError: the markers are not there.
    """
    begin, end = f"<!-- {name}: written by make results -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"there are no markers {begin} and {end}; put them where the table belongs")
    return text[: text.index(begin)] + f"{begin}\n{content}\n" + text[text.index(end) :]


def parts() -> dict[str, str]:
    """What stands between the markers, by their names."""
    return {
        "applications": applications(),
        "exports": exports(),
        "speeds": speeds(),
        "accuracy": accuracy(),
        "cifar10 speed": speed("cifar10_speed", cifar10_speed.MACS),
        "reviews": reviews(),
        "sentiment speed": speed("sentiment_speed", ["training"]),
        "chargen accuracy": characters(),
        "chargen speed": speed("chargen_speed", chargen_speed.CONTENDERS),
        "captions": captions(),
        "restored cifar10": restored("cifar10"),
        "restored mnist": restored("mnist"),
        "restored photographs": restored_photographs(),
        "captioner speed": speed("captioner_speed", captioner_speed.WORKS),
        "denoiser speed": speed("denoiser_speed", denoiser_speed.WORKS),
        "bounds": bounds(),
        "vae speed": speed("vae_speed", vae_speed.WORKS),
        "drawn": drawn(),
        "digits": digits(),
        "dcgan speed": speed("dcgan_speed", dcgan_speed.WORKS),
        "export speed": inference(),
        "searches": searches(),
        "serving speed": servers(),
        "serving load": load(),
    }


def main() -> None:
    """Rewrites both files."""
    for name, content in parts().items():
        path = document(name)
        write_text(path, replace(path.read_text(encoding="utf-8"), name, content))
    print("wrote README.md and benchmarks/README.md")


if __name__ == "__main__":
    main()
