"""Models to and from a hub that is a local folder: bit for bit, nothing more than is needed, one sentence if not."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import errors
from PIL import Image

import longtail
from longtail import hub as module
from longtail.errors import UserError
from longtail.models import Classifier

NAME = "zoo/cats"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder, `owner/name` a folder each; what it is asked is in `hub.asked`."""

    class Hub:
        folder = tmp_path / "hub"
        asked: list = []  # noqa: RUF012
        fail: Exception | None = None

        def files(self, name=NAME):
            return {path.name: path.read_bytes() for path in (self.folder / name).iterdir()}

    hub = Hub()
    hub.asked = []

    def asked(what, *values):
        hub.asked.append((what, *values))
        if hub.fail is not None:
            raise hub.fail

    def create_repo(self, repo_id, *, private, repo_type, exist_ok):
        asked("create", repo_id, private, repo_type, exist_ok, self.token)
        (hub.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return f"address/of/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns=None, delete_patterns=None):
        asked("upload", repo_id)
        for path in (hub.folder / repo_id).iterdir():
            if path.name in (delete_patterns or []):
                path.unlink()
        for path in Path(folder_path).iterdir():
            if path.name not in (ignore_patterns or []):
                shutil.copy(path, hub.folder / repo_id)

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked("snapshot", repo_id, revision)
        into = tmp_path / "fetched" / repo_id
        into.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            if (hub.folder / repo_id / file).exists():
                shutil.copy(hub.folder / repo_id / file, into)
        return str(into)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "file_exists", lambda self, repo, file: (hub.folder / repo / file).exists()
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


def pixels_for(model):
    return torch.randint(0, 256, (3, 3, *model.image_size), generator=torch.Generator().manual_seed(3)).byte()


def same(one, other):
    assert one.class_names == other.class_names
    assert one.framing == other.framing
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    return torch.equal(one.predict(pixels_for(one)), other.predict(pixels_for(one)))


def test_a_run_there_and_back_bit_for_bit(hub, calibrated, desk):
    address = longtail.push_to_hub(calibrated, NAME, private=True, token="secret", quiet=True)
    assert address == f"address/of/{NAME}"
    assert hub.asked == [("create", NAME, True, "model", True, "secret"), ("upload", NAME)]
    original = longtail.load(calibrated)
    fetched = longtail.load(f"hf-hub:{NAME}@v1")
    assert hub.asked[-1] == ("snapshot", NAME, "v1")
    assert original.temperature is not None
    assert fetched.temperature == original.temperature
    assert same(fetched, original)
    assert same(Classifier.from_pretrained(NAME), original)
    assert same(Classifier.from_pretrained(f"hf-hub:{NAME}"), original)
    asked = len(hub.asked)
    assert same(Classifier.from_pretrained(calibrated), original)
    assert len(hub.asked) == asked


def test_what_goes_up_is_the_export_and_names_nothing_of_this_machine(hub, calibrated, tmp_path):
    longtail.push_to_hub(calibrated, f"hf-hub:{NAME}", quiet=True)
    exported = longtail.export(calibrated, format="safetensors", quiet=True)
    up = hub.files()
    assert up.keys() == {path.name for path in exported.iterdir()}
    for path in exported.iterdir():
        if path.name != "README.md":
            assert up[path.name] == path.read_bytes()
    assert not any(str(tmp_path).encode() in data or b"secret" in data for data in up.values())
    assert not any(name.endswith((".pt", ".pth", ".bin", ".pkl")) for name in up)


def test_the_card_has_the_head_that_the_hub_reads(hub, run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": "hf:zoo/photos@v2:small"}))
    longtail.push_to_hub(run, NAME, quiet=True)
    text = hub.files()["README.md"].decode()
    assert f'longtail.load("hf-hub:{NAME}")' in text
    assert "hf:zoo/photos@v2:small" in text  # the command that trained it
    card = huggingface_hub.ModelCard(text)  # the hub's own reader
    assert card.data.library_name == "longtail"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["zoo/photos"]
    figures = json.loads((run / "evaluation.json").read_text())
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == pytest.approx(figures["top1"], abs=1e-4)
    assert results["balanced_accuracy"].metric_value == pytest.approx(figures["balanced_accuracy"], abs=1e-4)
    assert results["accuracy"].dataset_type == "zoo/photos"


def test_a_classifier_pushes_itself_and_leaves_a_card_as_it_is(hub, calibrated):
    model = longtail.load(calibrated)
    assert model.push_to_hub(NAME) == f"address/of/{NAME}"
    assert hub.files().keys() == {"model.safetensors", "model.json", "calibration.json", "README.md"}
    fetched = Classifier.from_pretrained(NAME)
    assert fetched.temperature == model.temperature
    assert same(fetched, model)
    card = huggingface_hub.ModelCard(hub.files()["README.md"].decode())
    assert (card.data.library_name, card.data.pipeline_tag) == ("longtail", "image-classification")
    assert all(name in card.text for name in model.class_names)
    (hub.folder / NAME / "README.md").write_text("mine")
    model.push_to_hub(NAME)
    assert hub.files()["README.md"] == b"mine"


def test_nothing_of_an_earlier_model_stays(hub, calibrated):
    longtail.push_to_hub(calibrated, NAME, quiet=True)
    assert "calibration.json" in hub.files()
    for name in ("validation.json", "validation.safetensors", "notes.txt"):
        (hub.folder / NAME / name).write_text("of someone's")
    model = longtail.load(calibrated)
    model.temperature = None
    model.push_to_hub(NAME)
    assert hub.files().keys() == {"model.safetensors", "model.json", "README.md", "notes.txt"}
    assert Classifier.from_pretrained(NAME).temperature is None


def test_the_commands_take_a_model_of_the_hub(hub, calibrated, desk, make_photos):
    out, _ = desk.run("push", calibrated, NAME)
    assert out.splitlines() == [
        f"address/of/{NAME}",
        f'longtail.load("hf-hub:{NAME}") reads it, and longtail predict hf-hub:{NAME} IMAGES.',
    ]
    model = longtail.load(calibrated)
    for label, name in enumerate(("cat", "lynx | *big*")):
        (desk.folder / "photos" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (16, 16), (90 * label, 40 * number, 7))
            image.save(desk.folder / "photos" / name / f"{number}.png")
    for place in (f"hf-hub:{NAME}", calibrated):
        desk.run("predict", place, "photos", "--out", f"{Path(str(place)).name}.csv", "--device", "cpu", "--quiet")
    assert (desk.folder / "cats.csv").read_bytes() == (desk.folder / f"{calibrated.name}.csv").read_bytes()
    out, _ = desk.run("evaluate", f"hf-hub:{NAME}", "photos", "--out", "figures.json", "--device", "cpu")
    figures = json.loads((desk.folder / "figures.json").read_text())
    assert figures["test_images"] == 6
    desk.run("export", f"hf-hub:{NAME}", "--format", "safetensors", "--quiet")
    assert same(longtail.load(desk.folder / "export" / "cats" / "safetensors"), model)


def test_a_model_that_pushed_itself_can_be_evaluated_and_exported(hub, calibrated, desk):
    longtail.load(calibrated).push_to_hub(NAME)
    for label, name in enumerate(("cat", "lynx | *big*")):
        (desk.folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (90 * label, 40, 7)).save(desk.folder / "photos" / name / "a.png")
    desk.run("evaluate", f"hf-hub:{NAME}", "photos", "--device", "cpu")
    desk.run("export", f"hf-hub:{NAME}", "--format", "card", "--out", "card", "--quiet")
    assert "A temperature of 1.7 was fitted." in (desk.folder / "card" / "README.md").read_text()


# --- What goes wrong


def error_of(kind, text="no", status=None):
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.response = type("Response", (), {"status_code": status})()
    return error


FAILURES = [
    (OSError("unreachable"), r"no network for this hub name \(unreachable\)"),
    (error_of(errors.RepositoryNotFoundError, status=401), "the hub has no such repository or revision"),
    (error_of(errors.LocalTokenNotFoundError), "log in by hf auth login, or set HF_TOKEN"),
    (error_of(errors.HfHubHTTPError, status=403), "log in by hf auth login, or set HF_TOKEN"),
    (error_of(errors.HfHubHTTPError, "500 a; b", 500), r"the hub refused it \(500 a, b\)"),
    (error_of(errors.GatedRepoError, status=403), "accepted its terms"),
]


@pytest.mark.parametrize(("error", "words"), FAILURES)
def test_what_the_hub_refuses_is_one_sentence(hub, run, desk, error, words):
    hub.fail = error
    for call in (
        lambda: longtail.push_to_hub(run, NAME, quiet=True),
        lambda: longtail.load(run).push_to_hub(NAME),
        lambda: longtail.load(f"hf-hub:{NAME}"),
        lambda: Classifier.from_pretrained(NAME),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert NAME in str(caught.value)
    desk.refuse("predict", f"hf-hub:{NAME}", "photos", naming=[NAME])


def test_names_and_repositories_that_hold_no_model(hub, run, tmp_path):
    for name in ("cats", "zoo/cats@v1", "a/b/c", "zoo/my cats", str(tmp_path)):
        with pytest.raises(UserError, match="written owner/name"):
            longtail.push_to_hub(run, name, quiet=True)
    with pytest.raises(UserError, match="is not a run folder"):
        longtail.push_to_hub(tmp_path / "nothing", NAME, quiet=True)
    assert hub.asked == []
    (hub.folder / NAME).mkdir(parents=True)
    (hub.folder / NAME / "model.safetensors").write_bytes(b"another program's")
    with pytest.raises(UserError, match=r"hf-hub:zoo/cats holds no model of longtail \(no model.json\)"):
        longtail.load(f"hf-hub:{NAME}")


def test_a_changed_file_of_the_hub_is_refused(hub, run):
    longtail.push_to_hub(run, NAME, quiet=True)
    path = hub.folder / NAME / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="does not match the SHA-256"):
        longtail.load(f"hf-hub:{NAME}")


def test_without_a_network_the_real_client_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf-hub:zoo/cats: no network for this hub name \(.*\); name the folder"):
        longtail.load(f"hf-hub:{NAME}")


def test_only_the_models_files_are_asked_for(hub, run):
    longtail.push_to_hub(run, NAME, quiet=True)
    (hub.folder / NAME / "training.bin").write_bytes(b"x")
    folder = module.fetch_model(f"hf-hub:{NAME}")
    assert {path.name for path in folder.iterdir()} <= set(module.MODEL_FILES)
