"""The commands as a user types them: what is wrong is said in one line, and nothing is written or lost."""

import pytest
from running import load_script


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "digit"], ["digit", "ddpm-cifar10"]),
        (["--train_data_dir", "EMPTY"], ["train_data_dir", "no images"]),
        (["--output_dir", "OCCUPIED"], ["--output_dir", "thesis.tex", "--overwrite_output_dir"]),
    ],
)
def test_bad_input_of_a_training_is_one_line_and_status_two(tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("all of it")
    places = {"EMPTY": tmp_path / "empty", "OCCUPIED": tmp_path / "occupied"}
    given = ["--output_dir", str(tmp_path / "out"), *(str(places.get(argument, argument)) for argument in arguments)]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        load_script("train.py").main(given)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and error.startswith("train.py: error: ")
    assert all(word in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "occupied" / "thesis.tex").read_text() == "all of it"


@pytest.mark.processes
@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py", "push.py"])
def test_bad_input_in_a_process_of_its_own(command, script):
    process = command(script, "--train_data_dir=/nowhere" if script == "train.py" else "/nowhere")
    assert process.wait() == 2 and process.out == ""
    assert process.err.count("\n") == 1 and process.err.startswith(f"{script}: error: ") and "/nowhere" in process.err
