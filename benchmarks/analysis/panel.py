"""Panels: rows that may share an axis, and how every table, plot and grid shows them.

All of it is computed once, by `panels`, so that a curve has one name, one place and one look
wherever it appears.
"""

from dataclasses import dataclass

import pandas as pd

from benchmarks.analysis import verdicts
from benchmarks.analysis.curves import curve_names, distance_name, in_order, names_without_seeds

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
# the line of what is chosen among a network's rows, and whether its markers are hollow
LINES = {
    "": ("-", False),
    "best guidance": ("-", False),
    "no guidance": ("--", True),
    "heun": (":", False),
    "heun, best guidance": (":", False),
    "heun, no guidance": ("-.", True),
}


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
    """One comparable group of measurements, of finished trainings unless it says otherwise."""

    title: str  # data, size, latents, N, M and features; the device in a second line
    distance: str  # FID, or FD[...]
    rows: pd.DataFrame  # all of them
    with_kept: pd.DataFrame  # and those of weights kept on the way
    shown: pd.DataFrame  # what a user could have chosen; `curve`, `network` and `pick` name rows
    means: pd.DataFrame  # of `shown`: seeds averaged, one row for each curve and step count
    answered: pd.DataFrame  # `shown`, its curves' names without seeds
    best: pd.DataFrame  # each network at its own best, for every step count
    best_of_seeds: pd.DataFrame  # `best`, its curves' names without seeds
    chosen_of_seeds: pd.DataFrame  # also without guidance, every sampling seed, names likewise
    names: list[str]  # of the curves of `shown`, in order
    looks: dict[str, Look]  # by name; no two are alike

    @property
    def first(self) -> pd.Series:
        """Any row, for what all have in common."""
        return self.rows.iloc[0]

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
    best, chosen = verdicts.own_best(rows), verdicts.chosen(rows)
    shown = verdicts.over_samplings(chosen)
    answered = shown.assign(curve=names_without_seeds(shown))
    shown = shown.assign(curve=curve_names(shown))
    shown = shown.assign(network=[_network(row) for _, row in shown.iterrows()])
    names = in_order(shown)
    return Panel(
        title=title,
        distance=distance_name(rows["features"].iloc[0]),
        rows=rows,
        with_kept=with_kept,
        shown=shown,
        means=verdicts.averaged(answered),
        answered=answered,
        best=best.assign(curve=curve_names(best)),
        best_of_seeds=best.assign(curve=names_without_seeds(best)),
        chosen_of_seeds=chosen.assign(curve=names_without_seeds(chosen)),
        names=names,
        looks=_looks(shown, names),
    )


def _network(row: pd.Series) -> str:
    """A curve's name without what was chosen among the network's rows."""
    return str(row["curve"]).removesuffix(f", {row['pick']}")


def _looks(shown: pd.DataFrame, names: list[str]) -> dict[str, Look]:
    """Colour and marker tell networks apart, the line what was chosen."""
    of_curve = shown.drop_duplicates("curve").set_index("curve")
    networks = list(dict.fromkeys(of_curve.loc[names, "network"]))
    looks = {}
    for name in names:
        place = networks.index(of_curve.loc[name, "network"])
        line, hollow = LINES[of_curve.loc[name, "pick"]]
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
