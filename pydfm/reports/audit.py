"""An audit of good images, as text and as a page."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pydfm.conformal.checks.audit import Audit, AuditRow
from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.transforms import Preprocessing
from pydfm.reports.cards import Card, fit_on_page
from pydfm.reports.page import (
    PICTURE_SIDE,
    check_page,
    number,
    picture_data,
    share,
    shown,
    write_page,
)

_MOST_CARDS = 400


def audit_text(audit: Audit) -> Iterator[str]:
    """Yield the lines that say what an audit found."""
    unread = [row for row in audit.rows if _is_unread(row)]
    odd = [row for row in audit.rows if row.notes and not _is_unread(row)]
    flagged = [row for row in audit.rows if row.flagged]
    yield f"images      {len(audit.rows) - len(unread)} read, {len(unread)} not"
    for row in unread:
        yield f"            {shown(row.notes[0])}"
    yield (
        f"unlike      {len(flagged)} are unlike the others, at a false discovery rate of "
        f"{share(audit.fdr)}{':' if flagged else ''}"
    )
    for row in flagged:
        yield f"            {shown(row.name)}  score {number(row.score)}, fdr {row.fdr:.2g}"
    groups = audit.groups
    members = sum(len(group) for group in groups)
    yield f"copies      {members} are equal or nearly equal to others{_in_groups(audit)}"
    for group in groups:
        yield f"            {'; '.join(shown(name) for name in group)}"
    if groups:
        yield f"            {groups_advice(audit)}"
    yield f"odd         {len(odd)} differ from most in size, mode, exposure or sharpness"
    for row in odd:
        yield f"            {shown(row.name)}: {'; '.join(row.notes)}"
    yield f"levels      {levels_in_words(audit)}"
    if audit.threshold == audit.threshold:
        yield f"threshold   {threshold_in_words(audit)}"


def levels_in_words(audit: Audit) -> str:
    """Say which false-alarm rates the images allow."""
    n = audit.n_units
    least = f"{n} images or groups allow a false-alarm rate of {share(1 / (n + 1))}"
    if audit.missing == 0:
        return f"{least}; 0.001 can be kept"
    return f"{least} and more; {audit.missing} more are needed for 0.001"


def threshold_in_words(audit: Audit) -> str:
    """Say what the two worst images do to the threshold."""
    return (
        f"{number(audit.threshold)}; without the worst two scores it would be "
        f"{number(audit.threshold_without)}"
    )


def groups_advice(audit: Audit) -> str:
    """Say what keeps copies together."""
    if audit.groups_option is None:
        return "copies count as one image here; in a fit, delete them or pass --groups"
    return f"their names form groups: --groups '{audit.groups_option}'"


def write_audit(
    audit: Audit, path: "str | os.PathLike[str]", *, title: str, details: list[tuple[str, str]]
) -> None:
    """Write the page of an audit.

    Images that are flagged, copies or odd are shown, where their files are there.

    Parameters
    ----------
    audit : Audit
    path : path
    title : str
    details : list of (str, str)
        What is said of the model.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    OSError
        If the page cannot be written.
    """
    check_page(path)
    unread = [row for row in audit.rows if _is_unread(row)]
    wanted = [row for row in audit.rows if _group(row) and not _is_unread(row)]
    root = _common_folder([row.name for row in audit.rows])
    rows = wanted[:_MOST_CARDS]
    cards = fit_on_page([_card(row, root) for row in rows])
    write_page(
        path,
        "audit.html",
        title=title,
        audit=audit,
        cards=cards,
        more=len(wanted) - len(rows),
        unread=[(shown(_short(row.name, root)), shown(row.notes[0])) for row in unread],
        count_odd=sum(bool(row.notes) for row in wanted),
        count_copies=sum(len(group) for group in audit.groups),
        levels=levels_in_words(audit),
        threshold=threshold_in_words(audit) if audit.threshold == audit.threshold else "",
        advice=groups_advice(audit) if audit.groups else "",
        details=details,
        data=_data(rows, title, root),
    )


def _data(rows: list[AuditRow], title: str, root: str) -> dict[str, Any]:
    return {
        "id": f"pydfm-audit-{title}",
        "csv_name": f"{title}-audit-marks.csv",
        "cards": [
            {
                "index": row.index,
                "name": shown(_short(row.name, root)),
                "path": shown(row.name),
                "p": row.p_value if row.p_value == row.p_value else 1.0,
                "score": row.score if row.score == row.score else 0.0,
                "group": _group(row),
            }
            for row in rows
        ],
    }


def _card(row: AuditRow, root: str) -> Card:
    picture, size = b"", (1, 1)
    try:
        small, size = read_image(row.name, _thumbnail)
        picture = picture_data(small)
    except ImageError:
        pass  # an array, or a file that has gone: the card says so
    kinds = []
    if row.flagged:
        kinds.append("▲ unlike the others")
    if row.group:
        kinds.append(f"group {row.group} of copies")
    reasons = list(row.notes)
    if row.flagged:
        worse = f"{share(row.p_value)} of the images score as high, each under a model without it"
        reasons.insert(0, worse)
    for what, names in (("equal to", row.copies), ("nearly equal to", row.near)):
        if names:
            known = [shown(Path(name).name) for name in names[:4]]
            rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
            reasons.append(f"{what} {', '.join(known)}{rest}")
    return Card(
        row.index,
        _short(row.name, root),
        size,
        picture,
        reason="; ".join(reasons).capitalize() + ".",
        score=row.score,
        p_value=row.p_value,
        anomalous=row.flagged,
        kind=", ".join(kinds),
    )


def _common_folder(names: list[str]) -> str:
    """Return the folder that all files are in, or ""."""
    folders = {os.path.dirname(name) for name in names}  # noqa: PTH120 (names of arrays, too)
    return os.path.commonpath(folders) if folders and "" not in folders else ""


def _short(name: str, root: str) -> str:
    return os.path.relpath(name, root) if root else name


def _thumbnail(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    picture = Preprocessing().picture(image)
    small = picture.copy()
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BILINEAR)
    return small, (picture.height, picture.width)


def _group(row: AuditRow) -> str:
    """Return under which filter of the page an image is; "" where nothing is wrong with it."""
    if row.flagged:
        return "flagged"
    if row.group:
        return "copies"
    return "odd" if row.notes else ""


def _is_unread(row: AuditRow) -> bool:
    return bool(row.notes) and row.notes[0].startswith("cannot be read")


def _in_groups(audit: Audit) -> str:
    count = len(audit.groups)
    if count == 0:
        return ""
    return f", in {count} group{'s' if count > 1 else ''}:"
