"""Which code this is, on hosts that have no repository."""

from launch.code_version import code_version


def test_commit_of_the_environment_where_there_is_no_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMAGEN_FT_COMMIT", "0123456789abcdef")
    assert code_version().split()[-1] == "0123456789ab"
