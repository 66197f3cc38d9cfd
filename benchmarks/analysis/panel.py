"""Panels: rows that may share an axis, and how every table, plot and grid shows them.

All of it is computed once, by `panels`, so that a curve has one name, one place and one look
wherever it appears.
"""

from dataclasses import dataclass

import pandas as pd

from benchmarks.analysis import choices
from benchmarks.analysis.curves import distance_title, in_order, names_without_seeds

# what must be the same for two distances to be compared
GROUP = [
    "data",
    "image_size",
    "autoencoder",
    "features",
    "num_samples",
    "reference_images",
    "device",
    "evaluated_by",
]
MOST_CURVES = 8  # more on one pair of axes cannot be told apart
MARKERS = "osD^vPX"
COLOURS = 10  # of matplotlib's cycle; with seven markers a look repeats after 70 networks


@dataclass(frozen=True)
class Look:
    """The look of a curve: no two of a panel are alike."""

    colour: str
    marker: str
    line: str
    hollow: bool

    def style(self) -> dict[str, object]:
        """As matplotlib's keywords."""
        inside = "white" if self.hollow else self.colour
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 5,
            "markerfacecolor": inside,
            "linestyle": self.line,
        }


@dataclass(frozen=True)
class Panel:
    """One comparable group of measurements, of finished trainings unless it says otherwise.

    `curve` names rows of one network and choice whatever the training seed, `network` the network,
    `pick` the choice.
    """

    title: str  # data, size, latents, N, M and features; the device in a second line
    features: str
    distance: str  # what the leading distance is called
    rows: pd.DataFrame  # all of them
    with_kept: pd.DataFrame  # and those of weights kept on the way
    by_sampling: pd.DataFrame  # all of them, with names
    by_training: pd.DataFrame  # several samplings of one training as their mean
    shown: pd.DataFrame  # and several trainings, too: one row for each curve and step count
    leading: pd.DataFrame  # of `by_training`: each recipe at its chosen settings, if it has any
    names: list[str]  # of the curves, in order
    looks: dict[str, Look]  # by name; no two are alike

    @property
    def first(self) -> pd.Series:
        """Any row, for what all have in common."""
        return self.rows.iloc[0]

    def floors_through_codebooks(self, column: str) -> dict[str, float]:
        """Such a floor by the name of the codebook; by none where all models have the same."""
        rows = self.rows[self.rows[column].notna()]
        of_tokens = rows[rows["codebook"].notna()].drop_duplicates("codebook")
        if len(of_tokens) > 1:
            named = of_tokens.sort_values(column)[["codebook", column]]
            return {str(name): float(value) for name, value in named.values}
        one = of_tokens if len(of_tokens) else rows  # models of latents have the floor, too
        return {"": float(one[column].iloc[0])} if len(one) else {}

    def curve(self, name: str) -> pd.DataFrame:
        """The rows of a curve that is shown."""
        return self.shown[self.shown["curve"] == name]

    def facets(self) -> list[tuple[str, list[str]]]:
        """The curves that share a pair of axes, each group with its title."""
        models = self.shown.drop_duplicates("curve").set_index("curve")["model"]
        return facets({name: str(models[name]) for name in self.names})


def panels(table: pd.DataFrame) -> list[Panel]:
    """The panels of a table of records (`records.table`), in the order of their keys.

    Measurements that failed or diverged belong to none.
    """
    good = table[table["status"] == "ok"]
    built = []
    for key, rows in good.groupby(GROUP, dropna=False, sort=True):
        whole = rows[rows["train_fraction"] == 1]
        if len(whole):
            built.append(_panel(_title(key), whole, rows))
    return built


def _title(key: tuple) -> str:
    data, size, autoencoder, features, samples, reference, device, _ = key
    what = f"{data} {size:.0f} px, {autoencoder} latents"
    return f"{what}, N={samples:.0f}, M={reference:.0f}, {features}\n{device}"


def _panel(title: str, rows: pd.DataFrame, with_kept: pd.DataFrame) -> Panel:
    named = choices.picked(rows)
    named = named.assign(curve=names_without_seeds(named))
    named = named.assign(network=[_network(row) for _, row in named.iterrows()])
    by_training = choices.over_samplings(named)
    shown = choices.over_trainings(by_training)
    names = in_order(shown)
    features = str(rows["features"].iloc[0])
    generator = bool(rows["fd_generator"].notna().any())
    return Panel(
        title=title,
        features=features,
        distance=distance_title(features, generator),
        rows=rows,
        with_kept=with_kept,
        by_sampling=named,
        by_training=by_training,
        shown=shown,
        leading=choices.leading_rows(by_training),
        names=names,
        looks=_looks(shown, names),
    )


def _network(row: pd.Series) -> str:
    """A curve's name without what says how its settings came about."""
    return str(row["curve"]).removesuffix(f", {row['pick']}")


def _looks(shown: pd.DataFrame, names: list[str]) -> dict[str, Look]:
    """Colour and marker tell networks apart, the line whether settings were chosen."""
    of_curve = shown.drop_duplicates("curve").set_index("curve")
    networks = list(dict.fromkeys(of_curve.loc[names, "network"]))
    tuned = (of_curve["pick"] != "").any()
    looks = {}
    for name in names:
        place = networks.index(of_curve.loc[name, "network"])
        # without any choice there is nothing to tell apart by lines and hollow markers
        as_set = tuned and of_curve.loc[name, "pick"] == ""
        line, hollow = ("--", True) if as_set else ("-", False)
        looks[name] = look(place, line, hollow)
    return looks


def look(place: int, line: str = "-", hollow: bool = False) -> Look:
    """The look of the network at `place` of a list."""
    return Look(f"C{place % COLOURS}", MARKERS[place % len(MARKERS)], line, hollow)


def facets(models: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Curves, given with their models, in groups of at most eight, each group with a title.

    All share one pair of axes where they are that few (the title is empty); else each model has
    its own, or several where its curves are more.
    """
    if len(models) <= MOST_CURVES:
        return [("", list(models))] if models else []
    groups = []
    for model in dict.fromkeys(models.values()):
        names = [name for name, other in models.items() if other == model]
        for start in range(0, len(names), MOST_CURVES):
            groups.append((model, names[start : start + MOST_CURVES]))
    return groups
