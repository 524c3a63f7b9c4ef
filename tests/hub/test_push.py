"""From a training run to a page that strangers use, through the real client and a Hub that does not always behave."""

import io
import json
import re

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from loopback_hub import READ_TOKEN, TOKEN, Fault
from PIL import Image
from running import TINY

from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.push import page_files

pytestmark = pytest.mark.processes

SMALL = [
    *TINY,
    *"--max_train_steps 2 --lr_warmup_steps 1 --checkpointing_steps 1 --num_train_timesteps 50".split(),
    *"--preview_images 4 --preview_inference_steps 6 --holdout 0.1 --eval_num_images 8".split(),
]
METRICS = [
    {
        **{"name": "bits_per_dim", "value": 5.25, "standard_error": 0.125, "n": 8, "seed": 3},
        **{"dataset": "digits", "split": "test", "sampler": None, "steps": None, "floor": None},
    }
]
SECRET = {"HF_TOKEN": TOKEN}
COMMIT = r"POST .*/commit/"
ALWAYS = 10_000
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def published(run_commands, hub, runs):
    """What each command ended with: two models trained and pushed, pages that fail, requests that are refused."""
    token_file = runs / "token"
    token_file.write_text(TOKEN + "\n")
    hub.create("alice/public")
    hub.create("alice/odd", private=True)
    old = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"old",
        "evaluation.json": b"{}",
        "sampling.json": b"{}",
        "pipeline.py": b"",
    }
    hub.commit("alice/odd", {**old, "notes.txt": b"by hand"}, "another model")
    faults = {
        "rough": [
            *(Fault("whoami", 503), Fault("preupload", 503), Fault("objects/batch", 503), Fault("PUT /", "reset")),
            *(Fault(COMMIT, 503), Fault("paths-info", "cut"), Fault("GET .*safetensors", "reset")),
        ],
        "lost": [Fault(COMMIT, "lost")],
        "down": [Fault(COMMIT, 503, ALWAYS)],
        "dead": [Fault(COMMIT, "hang", ALWAYS)],
        "spoiled": [Fault(COMMIT, "spoil")],
        "away": [Fault("whoami", "reset", ALWAYS)],
    }
    report = json.dumps({"schema": 1, "metrics": METRICS})

    def train(name: str, *arguments, environment=SECRET, **task) -> dict:
        argv = ["train.py", "--output_dir", runs / name, "--push_to_hub", *SMALL, *arguments]
        return {"argv": [str(word) for word in argv], "environment": environment, **task}

    def push(*arguments, environment=SECRET, **task) -> dict:
        return {"argv": ["push.py", *map(str, arguments)], "environment": environment, **task}

    plain = ["--hub_model_id", "digits", "--hub_strategy", "checkpoint", "--hub_token_file", token_file]
    odd = ["--class_conditional", "--resolution", "7x5", "--variance_type", "learned_range", "--hub_private_repo"]
    odd += ["--holdout", "0"]
    secret = ["--hub_license", "mit", "--hub_private_repo"]
    tasks = {
        "plain": train("digits", *plain, "--hub_license", "mit", environment={}, faults=faults["rough"]),
        "measured": push(runs / "digits", write={str(runs / "digits" / "evaluation.json"): report}),
        "again": push(runs / "digits"),
        "odd": train("odd", *odd, faults=faults["lost"]),
        "down": train("down", *secret, faults=faults["down"]),
        "down, later": {"printed_by": 4, "environment": SECRET},
        "dead": push(runs / "digits", "--hub_model_id", "dead", faults=faults["dead"]),
        "spoiled": push(runs / "digits", "--hub_model_id", "spoiled", faults=faults["spoiled"]),
        "finished": train("odd", *odd),
        "away": train("x", faults=faults["away"]),
        "no token": train("x", environment={}),
        "wrong token": train("x", environment={"HF_TOKEN": "hf_NobodyKnowsMe"}),
        "read token": train("x", "--hub_model_id", "public", environment={"HF_TOKEN": READ_TOKEN}),
        "new name, read token": train("x", environment={"HF_TOKEN": READ_TOKEN}),
        "bad name": train("x", "--hub_model_id", "a/b/c"),
        "name of others": train("x", "--hub_model_id", "bob/x"),
        "public": train("x", "--hub_model_id", "public", "--hub_private_repo"),
        "licence": train("x", "--hub_license", "beerware"),
        "token in the open": train("x", "--hub_token", TOKEN),
        "token with =": push(runs / "digits", f"--hub_token={TOKEN}"),
        "token for file": train("x", "--hub_token_file", TOKEN),
        "no pipeline": push(runs),
    }
    return dict(zip(tasks, run_commands(*tasks.values()), strict=True))


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def pages(hub, name: str, revision: str = "main") -> dict[str, bytes]:
    return hub.repos[name].files(revision)


# What arrives


def test_bad_moments_of_the_hub_do_not_stop_a_push(published):
    assert published["plain"]["status"] == 0, published["plain"]["printed"]
    assert [fault["hits"] for fault in published["plain"]["faults"]] == [1] * 7
    assert "model page: http://127.0.0.1" in published["plain"]["printed"]


def test_one_commit_has_everything_and_nothing_else(published, hub):
    repo = hub.repos["alice/digits"]
    assert repo.messages[:3] == ["initial commit", "Training, step 1", "End of training"] and not repo.private
    assert sorted(pages(hub, "alice/digits")) == sorted(
        [".gitattributes", "README.md", "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
        + [WEIGHTS, "samples.png", "denoising.png", "denoising.gif", "loss.png"]
        + ["loss.csv", "training_config.yaml", "evaluation.json"]
    )
    settings = yaml.safe_load(pages(hub, "alice/digits")["training_config.yaml"])
    assert settings["max_train_steps"] == 2 and not {name for name in settings if name.startswith("hub")}


def test_a_checkpoint_is_pushed_while_training_goes_on(published, hub):
    shas = list(hub.repos["alice/digits"].commits)
    assert "step 1 of 2" in pages(hub, "alice/digits", shas[1])["README.md"].decode()
    assert "step 1 of 2" not in pages(hub, "alice/digits", shas[2])["README.md"].decode()
    assert pages(hub, "alice/digits", shas[1])[WEIGHTS] != pages(hub, "alice/digits", shas[2])[WEIGHTS]


def test_the_card_has_the_metrics_of_the_evaluation_report(published, hub):
    assert published["measured"]["status"] == 0, published["measured"]["printed"]
    files = pages(hub, "alice/digits")
    card = ModelCard(files["README.md"].decode())
    (result,) = card.data.eval_results
    (metric,) = json.loads(files["evaluation.json"])["metrics"]
    assert (result.metric_type, result.metric_value) == (metric["name"], metric["value"]) == ("bits_per_dim", 5.25)
    assert (result.dataset_name, result.dataset_split) == ("digits", "test") and result.metric_args["n"] == 8
    # The licence was given once, when the run began.
    assert card.data.license == "mit" and card.data.library_name == "diffusers"


def test_equal_content_makes_no_commit_and_a_lost_answer_no_second_one(published, hub):
    assert published["again"]["status"] == 0
    assert hub.repos["alice/digits"].messages[3:] == ["Push with ddpm_hf"]
    assert published["odd"]["status"] == 0 and published["odd"]["faults"][0]["hits"] == 1
    assert hub.repos["alice/odd"].messages == ["initial commit", "another model", "End of training"]


def test_an_earlier_model_leaves_nothing_behind_and_other_files_stay(published, hub):
    files = pages(hub, "alice/odd")
    assert files["notes.txt"] == b"by hand" and not {"evaluation.json", "sampling.json", "pipeline.py"} & files.keys()
    assert [name for name in files if name.endswith(".safetensors")] == [WEIGHTS]


def test_pictures_are_there_and_can_be_seen(published, hub):
    for page in ("alice/digits", "alice/odd"):
        files = pages(hub, page)
        named = re.findall(r"!\[.+?\]\((.+?)\)", files["README.md"].decode())
        assert set(named) == {"samples.png", "denoising.png", "denoising.gif", "loss.png"}
        for name in named:
            picture = np.asarray(Image.open(io.BytesIO(files[name])).convert("L"))
            assert picture.size > 1000 and picture.std() > 5


def test_privacy_is_honoured(published, hub):
    assert hub.repos["alice/odd"].private and hub.repos["alice/down"].private
    assert published["public"]["status"] == 2 and "is public; make it private" in published["public"]["printed"]


def test_a_finished_run_pushes_when_it_is_started_again(published):
    printed = published["finished"]["printed"]
    assert published["finished"]["status"] == 0 and "this run has finished" in printed and "model page: " in printed


# What goes wrong


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("away", "cannot reach the Hub"),
        ("no token", "no token for the Hub"),
        ("wrong token", "does not accept the token"),
        ("read token", "has no write access"),
        ("new name, read token", "has no write access"),
        ("bad name", "--hub_model_id must be a valid repository name, got 'a/b/c'"),
        ("name of others", "--hub_model_id bob/x"),
        ("licence", "--hub_license 'beerware'"),
        ("token in the open", "--hub_token"),
        ("token with =", "--hub_token"),
        ("token for file", "--hub_token_file"),
        ("no pipeline", "no model_index.json"),
    ],
)
def test_what_can_be_known_is_said_before_the_first_step(published, runs, case, words):
    last = published[case]["printed"].strip().splitlines()[-1]
    assert published[case]["status"] == 2 and words in last and "error: " in last, published[case]["printed"]
    assert not (runs / "x").exists()


def test_a_hub_that_stays_away_costs_no_results(published, runs, hub):
    """The run ends well, and the command that it prints puts the page there once the Hub is back."""
    printed = published["down"]["printed"]
    assert published["down"]["status"] == 0 and "the model was not pushed: " in printed
    assert published["down"]["faults"][0]["hits"] == 6
    assert json.loads((runs / "down" / "training_summary.json").read_text())["status"] == "finished"
    assert ModelFolder.read(runs / "down").configs["scheduler"]["num_train_timesteps"] == 50
    assert hub.repos["alice/down"].messages == ["initial commit", "Push with ddpm_hf"]
    later = published["down, later"]
    assert later["status"] == 0, later["printed"]
    assert later["printed"].splitlines()[-1] == f"model page: {hub.endpoint}/alice/down"
    assert ModelCard(pages(hub, "alice/down")["README.md"].decode()).data.license == "mit"


def test_a_hub_that_never_answers_is_given_up(published, hub):
    assert published["dead"]["status"] == 2 and published["dead"]["faults"][0]["hits"] == 6
    assert "the model was not pushed: timed out" in published["dead"]["printed"]
    assert hub.repos["alice/dead"].messages == ["initial commit"]


def test_what_arrived_is_compared_with_what_was_sent(published):
    assert published["spoiled"]["status"] == 2
    assert "alice/spoiled has files that differ from those sent: model_index.json" in published["spoiled"]["printed"]


def test_the_token_is_nowhere(published, runs, hub):
    """Not in what was printed, in any file of the runs, or on any page."""
    secrets = [TOKEN.encode(), READ_TOKEN.encode()]
    found = [name for name, result in published.items() for s in secrets if s in result["printed"].encode()]
    files = [path for path in runs.rglob("*") if path.is_file() and path != runs / "token"]
    found += [path for path in files for s in secrets if s in path.read_bytes()]
    for name, repo in hub.repos.items():
        contents = [content for commit in repo.commits.values() for content in commit.values()]
        found += [name for content in contents for s in secrets if s in content]
    assert len(files) > 30 and not found


# What visitors do

DRAW = """
import json
import torch

def draw(pipeline, **call):
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 5, **call}
    return pipeline(2, torch.Generator().manual_seed(5), output_type="np", **call).images.tolist()

def clean(info):
    return not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
"""


@pytest.fixture(scope="module")
def pages_of_others(published, hub, tiny_cascade, tiny_unclip_pipeline, tmp_path_factory):
    """Pages with content that was put there in other ways: in parts, in half precision, naming our package, tagged;
    and two models of several networks, GLIDE with its upsampler and DALL·E 2."""
    import diffusers
    import torch

    import ddpm_hf

    torch.manual_seed(1)
    unet = ddpm_hf.DDPMUNet2D.from_paper(
        8, channels=1, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1
    )
    unet.conv_out.weight.data.normal_()
    scheduler = ddpm_hf.LinearDDPMScheduler(num_train_timesteps=50, timestep_spacing="linspace")
    pipeline = ddpm_hf.DDPMPipeline(unet, scheduler)
    folders = {name: tmp_path_factory.mktemp("others") for name in ("shards", "half", "naming")}
    pipeline.save_pretrained(folders["shards"], max_shard_size="20KB")
    pipeline.save_pretrained(folders["half"], variant="fp16")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folders["naming"])
    assert len(list((folders["shards"] / "unet").glob("*.safetensors"))) > 2
    assert "ddpm_hf" in (folders["naming"] / "model_index.json").read_text()
    for name, folder in folders.items():
        hub.create(f"alice/{name}")
        files = [path for path in folder.rglob("*") if path.is_file()]
        hub.commit(f"alice/{name}", {path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    cascade, unclip = (tmp_path_factory.mktemp("others") for _ in range(2))
    tiny_cascade().save_pretrained(cascade)
    tiny_unclip_pipeline().save_pretrained(unclip)
    for page, *folders in (("words", cascade / "upsampler", cascade), ("embedded", unclip)):
        for folder in folders:
            write_card(folder, f"alice/{page}")
        files = page_files(ModelFolder.read(folder))
        hub.create(f"alice/{page}")
        hub.commit(f"alice/{page}", {name: path.read_bytes() for name, path in files.items()})
    # Two that are no DDPM for us: another pipeline, and one that wants its own code to be run.
    for name, class_name in (("other", "LDMPipeline"), ("evil", ["pipeline", "Evil"])):
        index = {"_class_name": class_name, "unet": ["diffusers", "UNet2DModel"]}
        index["scheduler"] = ["diffusers", "DDPMScheduler"]
        hub.create(f"alice/{name}")
        code = b"open('trace', 'w')\n"
        hub.commit(f"alice/{name}", {"model_index.json": json.dumps(index).encode(), "pipeline.py": code})
    # Of the page that was trained: a tag on its first state, so that "main" and the tag are different models.
    repo = hub.repos["alice/digits"]
    repo.refs["v0"] = list(repo.commits)[1]


@pytest.fixture(scope="module")
def visitors(pages_of_others, run_python, hub):
    """What two people found who have an empty cache: one has diffusers and not our package, the other has both."""
    cards = {name: pages(hub, f"alice/{name}")["README.md"].decode() for name in ("digits", "odd")}
    blocks, (odd,) = ([b for b in python_blocks(text) if "ddpm_hf" not in b] for text in cards.values())
    words = python_blocks(pages(hub, "alice/words")["README.md"].decode())[1]
    words = words.replace("num_inference_steps=1000", "num_inference_steps=5")
    words = words.replace("small = ", "torch.manual_seed(5)\nsmall = ")
    embedded = python_blocks(pages(hub, "alice/embedded")["README.md"].decode())[0]
    embedded = embedded.replace("num_inference_steps=1000", "num_inference_steps=5")
    embedded = embedded.replace("image = ", "torch.manual_seed(5)\nimage = ")
    assert len(blocks) == 2
    our_blocks = [block for text in cards.values() for block in python_blocks(text) if "ddpm_hf" in block]
    assert len(our_blocks) == 2
    given = (
        f"blocks, odd, words, embedded = {blocks!r}, {odd!r}, {words!r}, {embedded!r}\nendpoint = {hub.endpoint!r}\n"
    )
    stranger = """
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

repo = "alice/digits"
pipeline = DDPMPipeline.from_pretrained(repo)
assert type(pipeline.unet) is UNet2DModel and type(pipeline.scheduler) is DDPMScheduler
results["plain"] = draw(pipeline)
results["generic"] = draw(DiffusionPipeline.from_pretrained(repo))
unet, info = UNet2DModel.from_pretrained(repo, subfolder="unet", output_loading_info=True)
scheduler = DDPMScheduler.from_pretrained(repo, subfolder="scheduler")
results["parts"] = draw(DDPMPipeline(unet, scheduler))
results["clean"] = clean(info)
results["tag"] = draw(DDPMPipeline.from_pretrained(repo, revision="v0"))
shards = DDPMPipeline.from_pretrained("alice/shards")
results["shards"], results["whole chain"] = draw(shards), draw(shards, num_inference_steps=50)
results["half"] = draw(DDPMPipeline.from_pretrained("alice/half", variant="fp16"))
try:
    DDPMPipeline.from_pretrained("alice/naming")
except ValueError as problem:
    results["naming"] = str(problem)
try:
    results["private"] = bool(DDPMPipeline.from_pretrained("alice/odd", token=False))
except OSError as problem:
    results["private"] = "not found" if "Cannot load model" in str(problem) else str(problem)
torch.manual_seed(5)
names = {}
for old, new in (("[0, 1, 2, 3]", "[3, 7]"), ("randn(4", "randn(2"), ("set_timesteps(50)", "set_timesteps(5)")):
    assert odd.count(old) == 1
    odd = odd.replace(old, new)
exec(odd, names)
results["odd"] = (names["x"] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).tolist()
results["blocks"] = []
for block in blocks:
    names = {}
    exec(block, names)
    results["blocks"].append([names["image"].size, names["image"].mode])
results["sample"] = open("sample.png", "rb").read(4)[1:].decode()
exec(words, names := {"torch": torch})
results["words"] = list(names["large"][0].tobytes())
exec(embedded, names := {"torch": torch})
results["embedded"] = list(names["image"].tobytes())

# The Hub goes away; the cache stays.
import urllib.request
fault = json.dumps([{"pattern": ".", "kind": 503, "times": 10000}]).encode()
urllib.request.urlopen(urllib.request.Request(f"{endpoint}/faults", fault, method="PUT"))
results["offline"] = draw(DDPMPipeline.from_pretrained(repo, local_files_only=True))
results["away"] = draw(DDPMPipeline.from_pretrained(repo))
urllib.request.urlopen(urllib.request.Request(f"{endpoint}/faults", b"[]", method="PUT"))
"""
    user = """
import diffusers
import ddpm_hf
from ddpm_hf.pipelines.text_to_image import TextToImagePipeline

ours = ddpm_hf.DDPMPipeline.from_pretrained("alice/digits")
assert type(ours.unet) is ddpm_hf.DDPMUNet2D and type(ours.scheduler) is ddpm_hf.LinearDDPMScheduler
results["plain"] = draw(ours)
results["stock"] = draw(diffusers.DDPMPipeline.from_pretrained("alice/digits"))
for name in ("shards", "naming"):
    results[name] = draw(ddpm_hf.DDPMPipeline.from_pretrained(f"alice/{name}"))
results["whole chain"] = draw(ddpm_hf.DDPMPipeline.from_pretrained("alice/shards"), num_inference_steps=None)
naming = diffusers.DDPMPipeline.from_pretrained("alice/naming")
assert type(naming.unet) is ddpm_hf.DDPMUNet2D
results["naming, stock"] = draw(naming)
results["half"] = draw(ddpm_hf.DDPMPipeline.from_pretrained("alice/half", variant="fp16"))
torch.manual_seed(5)
call = {"class_labels": ["3", "7"], "guidance_scale": 2.0, "num_inference_steps": 5, "output_type": "np"}
results["odd"] = ddpm_hf.DDPMPipeline.from_pretrained("alice/odd")(**call).images.tolist()
results["blocks"] = []
for block in blocks:
    names = {}
    exec(block, names)
    results["blocks"].append(len(names["images"]))
words = TextToImagePipeline.from_pretrained("alice/words")
torch.manual_seed(5)
drawn = words("a red apple", num_inference_steps=5, guidance_scale=3.0).images[0]
results["words"] = list(drawn.tobytes())

from pathlib import Path
from ddpm_hf.pipelines.loading import load_pipeline

embedded = load_pipeline("alice/embedded")
torch.manual_seed(5)
drawn = embedded("a red apple", num_inference_steps=5, guidance_scale=3.0).images[0]
results["embedded"] = list(drawn.tobytes())

results["refused"] = []
for name in ("alice/other", "alice/evil", "alice/nothing"):
    for load in (load_pipeline, ddpm_hf.DDPMPipeline.from_pretrained):
        try:
            load(name)
        except (ValueError, OSError) as problem:
            results["refused"].append(str(problem))
results["trace"] = Path("trace").exists()

# What is pushed by diffusers' own methods is portable too.
ours.push_to_hub("alice/by-hand")
ours.unet.push_to_hub("alice/network")
ours.scheduler.push_to_hub("alice/process")
"""
    return run_python(DRAW + given + stranger, f"\nblocks = {our_blocks!r}\n" + user, HF_TOKEN=TOKEN)


@pytest.fixture(scope="module")
def stranger(visitors):
    return visitors[0]


@pytest.fixture(scope="module")
def user(visitors):
    return visitors[1]


def same(first: list, second: list, tolerance: float = 1e-4) -> bool:
    first, second = np.array(first), np.array(second)
    return first.shape == second.shape and first.std() > 0.01 and np.abs(first - second).max() < tolerance


def test_every_way_of_loading_draws_the_same_images(stranger, user):
    for way in ("generic", "parts", "offline", "away"):
        assert same(stranger[way], stranger["plain"]), way
    assert same(user["plain"], stranger["plain"]) and same(user["stock"], stranger["plain"])
    assert same(user["shards"], stranger["shards"], 1e-5) and same(user["whole chain"], stranger["whole chain"])
    assert stranger["clean"]


def test_parts_halves_and_tags_are_found(stranger, user):
    assert same(stranger["half"], user["half"])
    assert same(stranger["half"], stranger["shards"])  # saved in single precision under that name
    assert not same(stranger["tag"], stranger["plain"], tolerance=1e-3)


def test_a_private_page_is_not_for_everybody(stranger):
    assert stranger["private"] == "not found"


def test_an_index_that_names_the_package_needs_its_import(stranger, user):
    assert "does not exist" in stranger["naming"]
    assert same(user["naming"], user["naming, stock"]) and same(user["naming"], user["shards"])


def test_a_model_beyond_the_stock_classes_runs_without_the_package(stranger, user):
    assert np.shape(stranger["odd"]) == (2, 7, 5, 1) and same(stranger["odd"], user["odd"])


def test_a_model_with_an_upsampler_draws_large_pictures_from_its_page(stranger, user):
    assert len(user["words"]) == 16 * 16 * 3 and same(user["words"], stranger["words"], tolerance=2)


def test_a_model_of_embeddings_draws_from_its_page(stranger, user):
    """By a prior and a decoder, whose components are all on the page."""
    assert len(user["embedded"]) == 8 * 8 * 3 and same(user["embedded"], stranger["embedded"], tolerance=2)


def test_what_is_no_ddpm_or_wants_its_own_code_run_is_refused_by_name(user):
    other, _, evil, untrusted, *nothing = user["refused"]
    assert "'alice/other' must be a DDPMPipeline or IFPipeline or " in other
    assert "got LDMPipeline" in other
    assert "'alice/evil' requires code" in evil and "Evil from 'pipeline'" in evil
    assert "trust_remote_code" in untrusted and not user["trace"]
    assert len(nothing) == 2 and "cannot load pipeline 'alice/nothing' from a folder or the Hub" in nothing[0]


def test_the_examples_of_the_cards_run(stranger, user):
    assert stranger["blocks"] == [[[8, 8], "L"]] * 2 and stranger["sample"] == "PNG"
    assert user["blocks"] == [4] * 2


def test_diffusers_own_push_is_portable(user, hub):
    files = pages(hub, "alice/by-hand")
    index = json.loads(files["model_index.json"])
    assert index["unet"] == ["diffusers", "UNet2DModel"] and index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert json.loads(files["unet/config.json"])["_class_name"] == "UNet2DModel"
    assert files[WEIGHTS] == pages(hub, "alice/digits")[WEIGHTS]
    for page, config, name in (("network", "config", "UNet2DModel"), ("process", "scheduler_config", "DDPMScheduler")):
        assert json.loads(pages(hub, f"alice/{page}")[f"{config}.json"])["_class_name"] == name


def test_nothing_was_asked_that_the_hub_of_these_tests_does_not_know(user, hub):
    """And the storage behind it, which belongs to somebody else, was never shown a token."""
    assert hub.surprises == []
    assert any(request.startswith("PUT /") for request in hub.requests)
