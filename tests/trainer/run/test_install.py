import logging
from pathlib import Path

import pytest
from stillmotion.trainer.base.auto import AUTO
from stillmotion.trainer.run import install as module
from stillmotion.trainer.run.install import NO, install, place_to_install


@pytest.fixture
def comfyui(tmp_path):
    for name in ("models/stillmotion", "custom_nodes"):
        (tmp_path / "ComfyUI" / name).mkdir(parents=True)
    return tmp_path / "ComfyUI"


@pytest.fixture
def run(tmp_path, comfyui, caplog):
    """Installs a motion file of this content, and gives what lies in ComfyUI then, and the last line of the log."""
    caplog.set_level(logging.INFO, "stillmotion")

    def installed(content, place=comfyui):
        motion, workflow = tmp_path / "motion.safetensors", tmp_path / "motion_workflow.json"
        motion.write_text(content)

        def write(name):
            workflow.write_text(f"uses {name}")
            return workflow

        install(place, motion, write)
        files = (path for path in comfyui.rglob("*") if path.is_file())
        return {path.relative_to(comfyui).as_posix(): path.read_text() for path in files}, caplog.messages[-1]

    return installed


def test_motion_and_workflow_lie_where_comfyui_lists_them_and_one_line_says_so(run, comfyui):
    files, line = run("weights")
    motion, workflow = "models/stillmotion/motion.safetensors", "user/default/workflows/motion.json"
    assert files == {motion: "weights", workflow: "uses motion.safetensors"}
    assert line == f"In ComfyUI: open the workflow {comfyui / workflow}, which uses {comfyui / motion}."


def test_a_file_that_is_there_stays_and_the_workflow_uses_the_new_one(run):
    run("weights")
    files, _ = run("others")
    assert files["models/stillmotion/motion.safetensors"] == "weights"
    assert files["models/stillmotion/motion-2.safetensors"] == "others"
    assert files["user/default/workflows/motion-2.json"] == "uses motion-2.safetensors"
    assert run("others")[0] == files, "the same file is not copied again"


def test_a_broken_link_is_not_written_through(run, comfyui, tmp_path):
    (comfyui / "models/stillmotion/motion.safetensors").symlink_to(tmp_path / "nowhere")
    files, _ = run("weights")
    assert files["models/stillmotion/motion-2.safetensors"] == "weights" and not (tmp_path / "nowhere").exists()


def test_a_disk_that_refuses_is_said_and_the_workflow_is_there(run, monkeypatch, caplog, tmp_path):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.shutil, "copyfile", refused)
    files, line = run("weights")
    assert not files and "could not be put into ComfyUI" in caplog.text and "Permission denied" in caplog.text
    assert line == f"Put it into ComfyUI's models/stillmotion and open {tmp_path / 'motion_workflow.json'} there."


def test_without_a_comfyui_one_is_told_what_to_do(run):
    assert run("weights", NO)[0] == {} and run("weights", NO)[1].startswith("Put it into ComfyUI's models/stillmotion")


def test_a_comfyui_without_the_nodes_is_told_of_them(run, comfyui):
    (comfyui / "models/stillmotion").rmdir()
    assert "seem to lack Stillmotion" in run("weights")[1]


def test_where_it_goes(comfyui, tmp_path):
    base = tmp_path / "elsewhere.safetensors"
    for asked, comfyuis, place in (
        (AUTO, [comfyui, tmp_path], comfyui),
        (AUTO, [], NO),
        (NO, [comfyui], NO),
        (comfyui, [], comfyui),
    ):
        assert place_to_install(asked, comfyuis, base) == place
    with pytest.raises(ValueError, match="--install is .*, where no ComfyUI is"):
        place_to_install(Path(tmp_path), [comfyui], base)


def test_of_several_comfyuis_it_goes_into_the_one_that_lists_the_base(comfyui, tmp_path):
    base = tmp_path / "second/models/checkpoints/sd15/a.safetensors"
    base.parent.mkdir(parents=True)
    base.touch()
    assert place_to_install(AUTO, [comfyui, tmp_path / "second"], base) == tmp_path / "second"
