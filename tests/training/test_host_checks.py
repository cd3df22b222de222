"""The hosts compare configs, inputs and workdirs before they train."""

import threading
import time

from medjax.training.host_checks import digest_of


def test_a_file_that_shows_late_is_waited_for(tmp_path):
    file = tmp_path / "config.json"
    write = threading.Timer(0.2, file.write_text, ["{}"])
    write.start()
    late = digest_of(file, 30)
    write.join()
    assert late is not None
    assert late == digest_of(file, 0)
    file.write_text("{ }")
    assert digest_of(file, 0) != late


def test_a_file_that_does_not_show_is_given_up(tmp_path):
    start = time.monotonic()
    assert digest_of(tmp_path / "config.json", 0.1) is None
    assert time.monotonic() - start < 5
