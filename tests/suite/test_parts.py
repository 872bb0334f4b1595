"""`make test` prints how long each part took, and exits with the status of the part that failed."""

import re

import parts


def test_every_part_is_listed_with_its_share(capsys):
    assert parts.main(["quick: true", "with a name: exit $((1 - 1))"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", line)[0] for line in lines] == ["", "quick", "with a name", "all"]
    shares = [int(found) for found in re.findall(r"(\d+)%", "".join(lines))]
    assert len(shares) == 2 and sum(shares) in (99, 100, 101)


def test_the_first_failure_ends_it(capsys, tmp_path):
    after = tmp_path / "after"
    assert parts.main(["one: true", "two: exit 3", f"three: touch {after}"]) == 3
    said = capsys.readouterr().out
    assert re.search(r"^one .*%$", said, re.MULTILINE) and re.search(r"^two .*%, failed$", said, re.MULTILINE)
    assert re.search(r"^three +not run$", said, re.MULTILINE) and not after.exists()
