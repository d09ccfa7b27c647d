"""Method, protocol, report and experiment file lead to each other on the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from incrlt.report import page

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def links():
    pytest.importorskip("sphinx")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        import links

        yield links


def test_every_report_leads_to_its_methods_its_protocol_its_table_and_its_file(links):
    for one in links.runs():
        found = dict(links.back(one.run))
        config = one.run.config
        assert (
            found[f"method {config['strategy']['name']}"]
            == f"../../methods/{config['strategy']['name']}.html"
        )
        assert (
            found[f"method {config['experts']['name']}"] == f"../../methods/{config['experts']['name']}.html"
        )
        assert found[f"protocol {one.run.protocol_name}"] == f"../../protocols/{one.run.protocol_name}.html"
        assert found["gallery"] == f"../../gallery/index.html#protocol-{one.run.protocol_hash[:8]}"
        for words, address in found.items():
            source = DOCS / address.removeprefix("../../").split("#")[0].replace(".html", ".md")
            assert source.is_file() or (links.EXPERIMENTS / words).is_file(), words
        if one.run.experiment + ".yaml" in links.files():
            assert found[f"{one.run.experiment}.yaml"] == f"../../experiments/{one.run.experiment}.yaml"


def test_every_run_and_every_file_stands_on_the_pages_of_its_methods_and_of_its_protocol(links):
    of_method = {
        path.stem: "\n".join(links.method_lines(path.stem)) for path in (DOCS / "methods").glob("*.md")
    }
    for one in links.runs():
        names = links.methods(one.run.config)
        assert len(names) >= 2
        for text in [of_method[name] for name in names]:
            assert f'href="../gallery/reports/{one.page}#verdict"' in text
        assert one.page in "\n".join(links.protocol_run_lines(one.run.protocol_name))
    for file, (names, _) in links.files().items():
        assert all(f'href="../experiments/{file}"' in of_method[name] for name in names), file
    assert "lucir_shike" not in of_method["icarl"], "a run without the method is not on its page"


def test_the_class_order_has_names(links):
    text = "\n".join(links.order_lines([[68, 56], [0]], "cifar100"))
    assert "| 0 | road&nbsp;68, palm tree&nbsp;56 |" in text and "| 1 | apple&nbsp;0 |" in text
    assert "| 0 | 3 |" in "\n".join(links.order_lines([[3]], "unheard of"))


def test_a_report_shows_what_it_leads_to_and_a_lone_one_nothing(make_run, tmp_path):
    from incrlt.report import read_run

    run = read_run(make_run(tmp_path, sizes=(4, 2), epochs=1))
    lone, led = tmp_path / "lone.html", tmp_path / "led.html"
    page.write_page(run, lone, "plotly.js")
    page.write_page(run, led, "plotly.js", [("method <x>", "../m.html?a=1&b=2")])
    assert '<a class="chip" href="../m.html?a=1&amp;b=2">method &lt;x&gt;</a>' in led.read_text()
    assert not re.search(r'class="chip" href', lone.read_text())


def test_the_small_table_takes_seeds_together(links):
    """LUCIR + RIDE + LWS has two seeds: mean, standard error |a - b| / 2, and their numbers."""
    import brief

    rows = brief.rows("aadac667")
    assert [row[2][0].mean for row in rows] == sorted((row[2][0].mean for row in rows), reverse=True)
    (name, _, numbers, lost, seeds), *more = [row for row in rows if row[0].startswith("LUCIR+RIDE+LWS")]
    own = [one for one in links.runs() if one.run.experiment.endswith("lucir_ride_lws")]
    for key, found in zip(brief.NUMBERS, numbers, strict=True):
        a, b = (one.numbers[key] for one in own)
        assert (found.mean, found.error) == (pytest.approx((a + b) / 2), pytest.approx(abs(a - b) / 2))
    assert (name, seeds, more, lost.n) == ("LUCIR+RIDE+LWS", ["0", "1"], [], 2)
    assert brief.told(numbers[0]).count("±") == 1 and len({row[0] for row in rows}) == len(rows)
    with pytest.raises(Exception, match="no run under protocol hash 'ffff'"):
        brief.rows("ffff")
