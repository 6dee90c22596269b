"""The claims of the two papers' abstracts, beside what the committed results say of each.

`experiments/README.md` is made of this; see `experiments.report`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.softplus_table import PHIS, variant
from lenext.reporting.pages import heading_slug
from lenext.reporting.records import Record
from lenext.reporting.tables import figure, lengths, one, select

Contents = Mapping[str, dict[str, Any]]
"""What the JSON files of the experiments hold, by their names."""

INFOSCALE = "Information Entropy Invariance (arXiv 2501.08570)"
SOFTPLUS = "Softplus Attention with Re-weighting (arXiv 2501.13428)"
NONE = "–"
SECOND_HAND = "second-hand, two sources agree"
NEAR = 0.1  # share within which a figure counts as held
CONSTANT = 0.05  # share by which a nearly constant loss may rise
# The paper says seven; eight names are listed for it, and PoSE has two rows here.
PEERS = ("pi", "pose", "pose+pi", "yarn", "alibi", "streaming_llm", "lm_infinite", "rerope",
         "windowed")  # fmt: skip


class Found(NamedTuple):
    """What our results say of a claim."""

    ours: str
    verdict: str


class Claim(NamedTuple):
    """A claim of an abstract.

    Attributes:
      paper: `INFOSCALE` or `SOFTPLUS`.
      says: the claim, in our words.
      figure: the paper's, where one is at hand.
      source: of that figure, and how sure it is.
      needs: the experiments whose results it wants.
      table: the heading on their pages of the table with these figures; "" where there is none.
      judge: what they say of it.
    """

    paper: str
    says: str
    figure: str
    source: str
    needs: Sequence[str]
    table: str
    judge: Callable[..., Found]


def _ends(records: Sequence[Record]) -> tuple[int, int]:
    found = lengths(records)
    return found[0], found[-1]


def _value(records: Sequence[Record], method: str, metric: str, length: int) -> float:
    return one(records, method=method, metric=metric, length=length, positions=None)["value"]


def _entropy_held(dilution: dict[str, Any]) -> Found:
    records = dilution["records"]
    short, long = _ends(records)
    trained = _value(records, "softmax", "entropy", short)
    plain, scaled = (_value(records, m, "entropy", long) for m in ("softmax", "infoscale"))
    verdict = "reproduced" if abs(scaled / trained - 1) <= NEAR else "not reproduced"
    if verdict != "reproduced" and abs(scaled - trained) < abs(plain - trained):
        verdict += ": nearer, not held"
    return Found(
        f"{trained:.2f} nats at {short}; at {long} {plain:.2f} under softmax and {scaled:.2f} "
        "under InfoScale",
        verdict,
    )


def _focus_kept(dilution: dict[str, Any]) -> Found:
    records = dilution["records"]
    _, long = _ends(records)
    plain, scaled = (
        one(records, method=m, metric="dilution", length=long) for m in ("softmax", "infoscale")
    )
    low, high = scaled["difference_interval"]
    return Found(
        f"at {long} original tokens keep {1 - plain['value']:.3f} of the weight under softmax, "
        f"{1 - scaled['value']:.3f} under InfoScale (by [{-high:+.3f}, {-low:+.3f}])",
        "reproduced" if high < 0 else "not reproduced",
    )


def _best_of_all(infoscale_table: dict[str, Any]) -> Found:
    records = infoscale_table["records"]
    _, long = _ends(records)
    column = select(records, metric="accuracy", length=long)
    both = [r for r in column if "cosscale" in r["method"] and "infoscale" in r["method"]]
    mine = max(both, key=lambda r: r["value"])
    others = [r for r in column if r["method"] in PEERS]
    best = max(others, key=lambda r: r["value"])
    beaten = [r for r in others if r["value"] < mine["value"]]
    return Found(
        f"accuracy at {long}: {mine['method']} {mine['value']:.3f}, above {len(beaten)} of "
        f"{len(others)} rows of the other methods; of them {best['method']} has the most, "
        f"{best['value']:.3f}",
        "reproduced" if mine["best"] and len(beaten) == len(others) else "not reproduced",
    )


def _window(cosscale_sweep: dict[str, Any]) -> Found:
    looked_at = {r["name"]: r for r in cosscale_sweep["runs"] if "window" in r}
    scales = [name for name in looked_at if name != "softmax"]
    # A window of one token is no window: such a model sees its own token alone.
    used = [looked_at[name]["window"] for name in scales if max(looked_at[name]["window"]) > 1]
    words = "; ".join(
        f"{name.removeprefix('cosscale(cos_scale=').removesuffix(')')}: "
        + " / ".join(map(str, looked_at[name]["window"]))
        for name in scales
    )
    length = cosscale_sweep["config"]["data"]["train_length"]
    narrower = len(used) > 1 and max(used[-1]) < min(*used[0], length)
    return Found(
        "90 % of the weight lies within so many tokens, 1 being the token itself, by c and layer: "
        f"{words}",
        "reproduced" if narrower else "not reproduced",
    )


def _dilution_matters(dilution: dict[str, Any]) -> Found:
    records = dilution["records"]
    _, long = _ends(records)
    methods = list(dict.fromkeys(r["method"] for r in records))
    diluted, right = (
        [_value(records, m, metric, long) for m in methods] for metric in ("dilution", "accuracy")
    )
    ranks = [np.argsort(np.argsort(x)) - (len(x) - 1) / 2 for x in (diluted, right)]
    correlation = float(ranks[0] @ ranks[1] / (ranks[0] @ ranks[0]))
    return Found(
        f"over {len(methods)} methods on the same weights, dilution and accuracy at {long} have a "
        f"rank correlation of {correlation:.2f}",
        "reproduced" if correlation <= -0.5 else "not reproduced",
    )


def _softmax_degrades(softplus_table: dict[str, Any]) -> Found:
    records = softplus_table["records"]
    short, long = _ends(records)
    first, last = (_value(records, "softmax", "loss", n) for n in (short, long))
    return Found(
        f"{first:.3f} nats at {short}, {last:.3f} at {long}",
        "reproduced" if last > first * (1 + NEAR) else "not reproduced",
    )


def _stable(softplus_table: dict[str, Any]) -> Found:
    records = softplus_table["records"]
    high = [r for r in softplus_table["runs"] if "spikes" in r]
    names = {
        "softmax": "softmax", "lssa": "LSSA", "lssar": "LSSAR",
        "softmax, QK-norm": "softmax with QK-norm",
    }  # fmt: skip
    trouble, losses, words = {}, {}, []
    for name, called in names.items():
        own = [r for r in high if r["name"].startswith(f"{name} at ")]
        stopped, spikes = sum(bool(r["stopped"]) for r in own), sum(r["spikes"] for r in own)
        trouble[name] = stopped, spikes
        # At the highest rate; nothing is evaluated of what was stopped.
        last = [r for r in records if r["trained"] == own[-1]["name"]]
        loss, logit = (select(last, metric=metric) for metric in ("loss", "max_logit"))
        losses[name] = loss[0]["value"] if loss else float("inf")
        end = f", {figure(losses[name])} and {logit[0]['value']:.0f}" if loss else ""
        words.append(f"{called} {stopped} stopped, {spikes} spikes{end}")
    if max(trouble["lssa"], trouble["lssar"]) < trouble["softmax"]:
        verdict = "reproduced"
    else:
        worse = losses["softmax"] > (1 + NEAR) * max(losses["lssa"], losses["lssar"])
        verdict = "partly" if worse else "not reproduced"
    return Found(
        "three trainings each at high learning rates; loss and largest logit at the highest: "
        + "; ".join(words), verdict,
    )  # fmt: skip


def _norm_matters(softplus_table: dict[str, Any]) -> Found:
    every = [r for r in softplus_table["records"] if r["method"].startswith("ablation: ")]
    ablated = [r for r in every if not r["evaluated"].startswith("lssar")]
    short, long = _ends(ablated)
    found = {(r["evaluated"], r["length"]): r["value"] for r in select(ablated, metric="loss")}
    means, better = {}, True
    for norm in ("l1", "none"):
        without = norm == "none"
        own = {m for m, _ in found if ('norm="none"' in m) == without and "exp" not in m}
        means[norm] = [float(np.mean([found[m, n] for m in own])) for n in (short, long)]
    for phi in PHIS:
        pair = [variant("lssa", phi, norm) for norm in ("l1", "none")]
        if all((m, short) in found for m in pair):
            better &= all(found[pair[0], n] < found[pair[1], n] for n in (short, long))
    lower = means["l1"][0] < means["none"][0] and means["l1"][1] < means["none"][1]
    return Found(
        f"mean over phi of the loss with the l1 norm {figure(means['l1'][0])} at {short} and "
        f"{figure(means['l1'][1])} at {long}; without {figure(means['none'][0])} and "
        f"{figure(means['none'][1])}; {'' if better else 'not '}lower for every phi at both "
        "(one seed)",
        "reproduced" if lower and better else "partly" if lower else "not reproduced",
    )


def _lssa_better(softplus_table: dict[str, Any]) -> Found:
    records = softplus_table["records"]
    column = sorted(select(records, method="lssa", metric="loss"), key=lambda r: r["length"])
    below = [r["length"] for r in column if r["difference_interval"][1] < 0]
    words = ", ".join(f"{r['difference']:+.3f} at {r['length']}" for r in column)
    verdict = "reproduced" if len(below) == len(column) else "partly" if below else "not reproduced"
    return Found(f"loss less softmax's: {words}", verdict)


def _constant(softplus_table: dict[str, Any]) -> Found:
    records = softplus_table["records"]
    short, long = _ends(records)
    rise = {
        m: _value(records, m, "loss", long) - _value(records, m, "loss", short)
        for m in ("softmax", "lssar")
    }
    first = _value(records, "lssar", "loss", short)
    if rise["lssar"] <= CONSTANT * first:
        verdict = "reproduced"
    else:
        verdict = "partly" if rise["lssar"] < rise["softmax"] / 2 else "not reproduced"
    return Found(
        f"{first:.3f} nats at {short}, {first + rise['lssar']:.3f} at {long} "
        f"(softmax rises by {rise['softmax']:.3f})",
        verdict,
    )


def _retrieves(passkey: dict[str, Any]) -> Found:
    records = passkey["records"]
    column = sorted(select(records, method="lssar", metric="retrieved"), key=lambda r: r["length"])
    words = ", ".join(
        f"{_value(records, 'softmax', 'retrieved', r['length']):.2f} → {r['value']:.2f} "
        f"at {r['length']}"
        for r in column
    )
    above = [r for r in column if r["difference_interval"][0] > 0]
    below = [r for r in column if r["difference_interval"][1] < 0]
    verdict = "reproduced" if above and not below else "partly" if above else "not reproduced"
    return Found(f"pass keys retrieved, softmax → LSSAR: {words}", verdict)


def _not_testable() -> Found:
    return Found("a model that answers such questions is beyond this size",
                 "not testable at this size")  # fmt: skip


CLAIMS = (
    Claim(INFOSCALE, "InfoScale keeps the entropy of attention consistent as length grows",
          NONE, NONE, ("dilution",),
          "entropy (nats)", _entropy_held),
    Claim(INFOSCALE, "so it preserves focus on the original tokens",
          NONE, NONE, ("dilution",),
          "weight on the original tokens", _focus_kept),
    Claim(INFOSCALE, "InfoScale with CosScale is the best at 64 times the training length, ahead "
          "of seven existing methods", NONE, NONE, ("infoscale_table",),
          "accuracy (higher is better)", _best_of_all),
    Claim(INFOSCALE, "a large CosScale approximates windowed attention",
          NONE, NONE, ("cosscale_sweep",),
          "window of 90% of the weight, by layer", _window),
    Claim(INFOSCALE, "dilution of attention scores is a key challenge of long contexts",
          NONE, NONE, ("dilution",),
          "dilution: weight beyond the training length", _dilution_matters),
    Claim(SOFTPLUS, "softmax attention loses performance as inference length grows",
          "3.19 at L, 6.28 at 8 L", SECOND_HAND, ("softplus_table",),
          "loss in nats (lower is better)", _softmax_degrades),
    Claim(SOFTPLUS, "softmax is numerically unstable, LSSA and LSSAR are stable",
          NONE, NONE, ("softplus_table",),
          "stability at high learning rates (one seed)", _stable),
    Claim(SOFTPLUS, "of softmax's two parts the l1 norm is the essential one",
          NONE, NONE, ("softplus_table",),
          "ablation: phi, normalisation, re-weighting (one seed)", _norm_matters),
    Claim(SOFTPLUS, "LSSA is better than softmax at all inference lengths",
          "3.19/4.13/5.30/5.94 against 3.19/4.17/5.45/6.28 at L, 2 L, 4 L, 8 L", SECOND_HAND,
          ("softplus_table",),
          "loss less softmax's", _lssa_better),
    Claim(SOFTPLUS, "LSSAR's loss is nearly constant up to 16 times the training length",
          "3.19/3.19/3.23/3.32 at L, 2 L, 4 L, 8 L", SECOND_HAND, ("softplus_table",),
          "loss in nats (lower is better)", _constant),
    Claim(SOFTPLUS, "LSSAR is superior at long-context retrieval",
          "pass keys, softmax → LSSAR: 64 → 86 % at L, 0 → 45 % at 1.5 L, 0 → 20 % at 4 L",
          SECOND_HAND, ("passkey",),
          "retrieved (higher is better)", _retrieves),
    Claim(SOFTPLUS, "and on standard downstream benchmarks",
          NONE, NONE, (),
          "", _not_testable),
)  # fmt: skip


def judged(claims: Sequence[Claim], contents: Contents) -> list[list[str]]:
    """A row a claim: what it says, the paper's figure, its source, ours, the verdict."""
    rows = []
    for claim in claims:
        if all(name in contents for name in claim.needs):
            found = claim.judge(*(contents[name] for name in claim.needs))
        else:
            found = Found(f"{', '.join(claim.needs)} was not run", "not run")
        place = f"#{heading_slug(claim.table)}" if claim.table else ""
        files = ", ".join(f"[{name}](results/{name}.md{place})" for name in claim.needs) or NONE
        rows.append([claim.says, claim.figure, claim.source, found.ours, found.verdict, files])
    return rows
