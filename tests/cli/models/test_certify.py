import json


def test_the_bound_is_printed(run, model):
    done = run("certify", model)
    assert done.code == 0, done.err
    lines = done.out.decode().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("With 95 % confidence, the threshold of alpha 0.1")
    assert lines[2].startswith("Not proven, an estimate: ")


def test_it_is_printed_for_other_programs(run, model):
    done = run("certify", model, "--alpha", "0.2", "--confidence", "0.9", "--json")
    found = json.loads(done.out)
    assert (found["alpha"], found["confidence"], found["proven"]) == (0.2, 0.9, False)
    assert 0.2 < found["bound"] < found["bound_of_all"] <= 1
    assert len(found["sentences"]) == 4


def test_one_sentence_for_bad_input(run, model, tmp_path):
    done = run("certify", model, "--alpha", "2")
    assert (done.code, done.out) == (2, b"")
    assert done.err == "pydfm: alpha is 2.0; it must be a number above 0 and below 1\n"
    done = run("certify", tmp_path / "none.pydfm")
    assert done.code == 2
    assert done.err.count("\n") == 1


def test_info_certifies_each_threshold(run, model):
    found = json.loads(run("info", model, "--certify", "--json").out)
    assert [own["alpha"] for own in found["certificates"]] == [0.01, 0.05, 0.1]
    shown = run("info", model, "--certify").out.decode()
    for sentence in found["certificates"][2]["sentences"]:
        assert f"certificate {sentence}\n" in shown
    assert "certificate" not in run("info", model).out.decode()
