from pathlib import Path

import pytest
from stillmotion.trainer.base import comfyui
from stillmotion.trainer.base.comfyui import extra_folders, find_comfyuis, model_folders


def new_comfyui(folder):
    for name in ("models/checkpoints", "custom_nodes"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose home is an empty folder, with this checkout elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui, "CHECKOUT", home / "code/stillmotion")
    monkeypatch.setattr(comfyui, "roots", lambda: [home])
    return home


def test_every_usual_place_is_found_and_what_is_likeliest_comes_first(machine, monkeypatch, tmp_path):
    usual, desktop = (new_comfyui(machine / name) for name in ("comfy/ComfyUI", "Documents/ComfyUI"))
    around = new_comfyui(tmp_path / "around")
    monkeypatch.setattr(comfyui, "CHECKOUT", around / "custom_nodes/stillmotion")
    named = new_comfyui(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert find_comfyuis() == [named, around, usual, desktop]
    monkeypatch.setenv("COMFYUI_PATH", str(usual))
    assert find_comfyuis() == [usual, around, desktop], "none twice"


def test_the_roots_are_home_and_where_one_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert {Path.home(), tmp_path, Path(comfyui.__file__).parents[3]} <= set(comfyui.roots())


def test_a_checkout_at_the_root_of_a_disk_stops_no_search(machine, monkeypatch):
    usual = new_comfyui(machine / "ComfyUI")
    monkeypatch.setattr(comfyui, "CHECKOUT", Path("/stillmotion"))  # as in a container
    assert find_comfyuis() == [usual]


def test_a_user_whom_the_system_does_not_know_has_no_home_and_no_error(monkeypatch):
    pwd = pytest.importorskip("pwd")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert comfyui.roots()[0] == Path("~")


def test_a_variable_may_name_the_home_by_its_sign(machine, monkeypatch):
    usual, named = (new_comfyui(machine / name) for name in ("ComfyUI", "mine"))
    monkeypatch.setenv("HOME", str(machine))
    monkeypatch.setenv("USERPROFILE", str(machine))  # on Windows
    monkeypatch.setenv("COMFYUI_PATH", "~/mine")
    assert find_comfyuis() == [named, usual]


def test_a_variable_that_names_no_comfyui_is_said_and_the_search_goes_on(machine, monkeypatch, caplog):
    usual = new_comfyui(machine / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", str(machine / "nowhere"))
    assert find_comfyuis() == [usual]
    assert f"COMFYUI_PATH is {machine / 'nowhere'}, where no ComfyUI is" in caplog.text


def test_a_folder_that_may_not_be_entered_is_none(machine, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(comfyui.os, "stat", refused)
    assert find_comfyuis() == []


PATHS = """
# ours
mine:
    base_path: {base}
    is_default: true
    checkpoints: |
        sd
        deeper/sd

    loras: loras
elsewhere:
    checkpoints: beside
    diffusers: /absolute
nothing:
"""


def test_extra_model_paths_are_read_as_comfyui_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELS", str(tmp_path / "models of all"))
    place = new_comfyui(tmp_path / "ComfyUI")
    (place / "extra_model_paths.yaml").write_text(PATHS.format(base="$MODELS"), encoding="utf-8")
    base = tmp_path / "models of all"
    assert model_folders(place, "checkpoints") == [
        *(place / "models/checkpoints", base / "sd", base / "deeper/sd", place / "beside")
    ]
    assert model_folders(place, "diffusers") == [place / "models/diffusers", Path("/absolute")]
    (place / "extra_model_paths.yaml").write_text(PATHS.format(base="../up"), encoding="utf-8")
    assert ("loras", place / "../up/loras") in extra_folders(place)


@pytest.mark.parametrize(
    "text", [b"a: [", b"- a\n- b", b"\xff\xfe\x00", b"a: !!python/object:os.system {}", b"[" * 10000, b""]
)
def test_a_broken_file_is_said_and_stops_nothing(tmp_path, caplog, text):
    place = new_comfyui(tmp_path / "ComfyUI")
    (place / "extra_model_paths.yaml").write_bytes(text)
    assert model_folders(place, "checkpoints") == [place / "models/checkpoints"]
    assert f"{place / 'extra_model_paths.yaml'} cannot be read" in caplog.text and len(caplog.records) == 1


def test_values_that_are_no_folders_are_passed_by(tmp_path):
    place = new_comfyui(tmp_path / "ComfyUI")
    (place / "extra_model_paths.yaml").write_text("a:\n  checkpoints: [x, y]\n  loras: 3\n  vae: v\nb: 7\n")
    assert extra_folders(place) == [("vae", place / "v")]
