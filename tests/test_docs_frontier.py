"""The pages on the frontier, the sites and the choice of a method: their pictures, and the facts that they state."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from methods import METHODS
from torch import nn

import mtopt
from mtopt._graph.loss_graph import LossGraph, edge_of

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
MODELS = {"frontier-heads": ("two_heads", "TWO_HEADS"), "frontier-skip": ("skip_connection", "SKIP")}


@pytest.fixture
def docs(monkeypatch):
    """The scripts of the docs."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.syspath_prepend(PICTURES)
    import frontier
    import properties

    return SimpleNamespace(frontier=frontier, properties=properties)


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def gids(picture):
    """What the groups of an SVG say that they are."""
    found = [group.get("id", "") for group in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}g")]
    return sorted(gid for gid in found if gid.startswith(("node ", "edge ", "row ", "alone ", "combined ")))


# -- the pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["two_heads", "skip_connection"])
def test_the_walk_of_the_pictures_finds_what_the_library_finds(docs, model):
    drawn = getattr(docs.frontier, model)()
    names = list(drawn.losses)
    graph = LossGraph([edge_of(loss) for loss in drawn.losses.values()])
    found = {meeting.edge[0]: {names[i] for i in meeting.positions} for meeting in graph.frontier()}
    assert found == {node: set().union(*map(drawn.reach.get, above)) for node, above in drawn.frontier.items()}
    assert all(drawn.combined(node) == (len(losses) > 1) for node, losses in found.items())


@pytest.mark.parametrize("name", MODELS)
def test_the_committed_pictures_are_what_the_script_draws(docs, name, tmp_path):
    model, layout = (getattr(docs.frontier, part) for part in MODELS[name])
    docs.frontier.draw(model(), layout, tmp_path / "drawn.svg")
    assert gids(tmp_path / "drawn.svg") == gids(PICTURES / f"{name}.svg")


@pytest.mark.parametrize("name", MODELS)
def test_a_picture_shows_each_node_and_edge_and_has_a_white_background(docs, name):
    graph = getattr(docs.frontier, MODELS[name][0])()
    kinds = [gid.split()[0] for gid in gids(PICTURES / f"{name}.svg")]
    assert kinds.count("node") == len(graph.reach)
    assert sum(map(kinds.count, ("edge", "row", "alone"))) == len(graph.edges)
    assert kinds.count("combined") == sum(map(graph.combined, graph.frontier))
    background = (PICTURES / f"{name}.svg").read_text(encoding="utf-8").split("<path")[1]
    assert "fill: #ffffff" in background


def test_every_picture_of_the_page_exists_and_says_what_is_seen():
    pictures = re.findall(r"!\[(.+?)\]\((\S+)\)", page("frontier.md"))
    assert {f"{name}.svg" for name in MODELS} == {Path(path).name for _, path in pictures}
    assert all((ROOT / "docs" / path).is_file() and len(alt) > 100 for alt, path in pictures)


# -- the frontier, the sites -------------------------------------------------------------------------------------------


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"trunk": nn.Linear(4, 4), "heads": nn.ModuleList(nn.Linear(4, 1) for _ in range(5))})


def losses_of(net):
    features = net["trunk"](torch.ones(3, 4))
    return features, [(head(features) - i).square().mean() for i, head in enumerate(net["heads"])]


@pytest.mark.parametrize(("at", "times"), [("activations", 1), ("parameters", 5)])
def test_the_trunk_is_differentiated_once_at_activations_and_once_per_loss_at_parameters(net, at, times):
    features, losses = losses_of(net)
    passes = []
    features.grad_fn.register_prehook(passes.append)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    mtopt.MultiLossOptimizer(sgd, at=at, chunk_size=1).backward(losses)
    assert len(passes) == times


def test_every_engine_in_the_table_is_one_that_the_library_names():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mtopt" / "_backward").glob("*.py"))
    table = page("frontier.md").partition("| `engine:` |")[2].partition("\n\n")[0]
    engines = [line.split("`")[1].removeprefix("... ") for line in table.splitlines() if line.startswith("| `")]
    assert len(engines) == 9
    assert all(engine in source for engine in engines)


def test_adapters_beside_a_frozen_trunk_are_shared(net):
    net["trunk"].requires_grad_(False)
    down, up = nn.Linear(4, 2), nn.Linear(2, 4)
    net["adapter"] = nn.Sequential(down, up)
    x = torch.ones(3, 4)
    features = net["trunk"](x) + net["adapter"](x)
    optimizer = mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    optimizer.backward([head(features).square().mean() for head in net["heads"]])
    assert up.weight.grad.any()


def test_a_loss_of_zero_makes_mgda_stand_still_and_an_absent_one_does_not(net):
    grads = []
    for absent in (0, None):
        features, (first, *_) = losses_of(net)
        other = None if absent is None else 0 * features.sum()
        net.zero_grad()
        mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), mtopt.MGDA()).backward([first, other])
        grads.append(net["trunk"].weight.grad)
    assert [bool(grad.any()) for grad in grads] == [False, True]


def test_a_layer_goes_with_an_optimizer_that_only_weights_the_losses(net):
    share = mtopt.MultiLossLayer(5)
    optimizer = mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), mtopt.ConstantWeights(0.5))
    aliases = share(net["trunk"](torch.ones(3, 4)))
    optimizer.backward([head(alias).mean() for head, alias in zip(net["heads"], aliases, strict=True)])
    assert net["trunk"].weight.grad.any()


# -- the choice of a method --------------------------------------------------------------------------------------------


@pytest.fixture
def choices():
    """The decision table: for each "if" the methods and the cells."""
    table = page("methods.md").partition("| if | then | why |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {row[0]: re.findall(r"`(\w+)[`(]", row[1]) for row in rows}


def row_of(choices, word):
    (names,) = [names for condition, names in choices.items() if word in condition]
    return [getattr(mtopt, name) for name in names]


def test_the_decision_table_has_every_method(choices):
    named = {name for names in choices.values() for name in names}
    assert named == {type(make()).__name__ for make in METHODS.values()}


def test_no_new_learning_rate_is_promised_only_where_equal_gradients_add_up(choices, docs):
    methods = row_of(choices, "tune the learning rate again")
    assert {docs.properties._size(method()) for method in methods} == {"3 g"}


def test_no_harm_is_promised_only_where_the_method_promises_it(choices):
    methods = row_of(choices, "no loss may get worse")
    assert {method.__name__ for method in methods if not method.non_conflicting} == {"ConFIG"}


def test_a_layer_takes_every_gramian_method_but_those_named(choices, docs):
    gramian = [m for m in map(type, (make() for make in METHODS.values())) if issubclass(m, mtopt.GramianTransform)]
    refused = {m.__name__ for m in gramian if docs.properties.usual(m).uses_values}
    assert refused == {"GradNorm", "DBMTL"} == {m.__name__ for m in row_of(choices, "in a layer")} - {"GradDrop"}


def test_methods_for_many_losses_do_not_hold_all_rows(choices, docs):
    (method,) = row_of(choices, "many losses")
    assert docs.properties._row(method())[docs.properties.HEADER.index("rows")] == ""
