"""Tables of points as programs write them: the right columns, numbers and findings."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from shapespace.io.scan_files import read_scan

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (150, 3)).round(3)
NORMALS = RNG.normal(size=(150, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)
COLORS = RNG.uniform(0, 1, (150, 3)).round(3)
GRAY = RNG.integers(0, 256, 150)


def rows(*columns: np.ndarray, sep: str = " ", form: str = "%.3f") -> str:
    table = np.column_stack(columns)
    return "".join(sep.join(form % value for value in row) + "\n" for row in table)


def commas(text: str) -> str:
    return text.replace(".", ",")


def grouped(join: Callable[[Iterable[str]], str], mark: str) -> str:
    """Rows in thousandths, with a mark between thousands."""
    return "".join(join(f"{1000 * value:,.1f}".replace(",", mark) for value in row) + "\n" for row in POINTS)


WRITTEN: dict[str, tuple[str, bytes | str]] = {
    "names": ("x.csv", "x,y,z\n" + rows(POINTS, sep=",")),
    "names in quotes": ("x.csv", '"X","Y","Z"\n' + rows(POINTS, sep=",")),
    "names of ParaView": ("x.csv", '"Points:0","Points:1","Points:2"\n' + rows(POINTS, sep=",")),
    "names with units": ("x.csv", "id;x [m];y [m];z [m]\n" + rows(np.arange(150) + 7, POINTS, sep=";")),
    "names in another order": ("x.csv", "intensity,Z,Y,X\n" + rows(GRAY, POINTS[:, ::-1], sep=",")),
    "names of a survey": ("x.txt", "Easting Northing Height\n" + rows(POINTS)),
    "names behind slashes": ("x.txt", "//X Y Z\n" + rows(POINTS)),
    "names in a comment": ("x.xyz", "# scanned in May\n# x y z\n\n" + rows(POINTS)),
    "a title above the names": ("x.txt", "Point cloud, exported\n\nX\tY\tZ\n" + rows(POINTS, sep="\t")),
    "words at the end": ("x.xyz", rows(POINTS) + "END\n"),
    "a count": ("x.xyz", "150\n" + rows(POINTS)),
    "counts of two parts": ("x.pts", "100\n" + rows(POINTS[:100]) + "50\n" + rows(POINTS[100:])),
    "comments everywhere": ("x.xyz", "% one\n" + rows(POINTS[:9]) + "// two\n# three\n" + rows(POINTS[9:]) + "; end\n"),
    "a byte order mark": ("x.csv", b"\xef\xbb\xbf" + ("x;y;z\n" + rows(POINTS, sep=";")).encode()),
    "sixteen bits": ("x.txt", ("x\ty\tz\n" + rows(POINTS, sep="\t")).encode("utf-16")),
    "Latin-1": ("x.txt", ("# Gr\xf6\xdfe in m\n" + rows(POINTS)).encode("latin-1")),
    "decimal commas, blanks": ("x.xyz", commas(rows(POINTS))),
    "decimal commas, semicolons": ("x.csv", "x;y;z\n" + commas(rows(POINTS, sep=";"))),
    "decimal commas, tabs": ("x.tsv", commas(rows(POINTS, sep="\t"))),
    "thousands, Swiss": ("x.txt", grouped(";".join, "'").replace("-", "\u2212")),
    "thousands, German": ("x.csv", "x;y;z\n" + commas(grouped(";".join, "_")).replace("_", ".")),
    "decimal commas, quotes": (
        "x.csv",
        "".join(",".join(f'"{commas(word)}"' for word in row.split()) + "\n" for row in rows(POINTS).splitlines()),
    ),
    "commas and blanks": ("x.csv", rows(POINTS, sep=", ")),
    "bars": ("x.txt", rows(POINTS, sep=" | ")),
    "lines of Windows": ("x.asc", rows(POINTS).replace("\n", "\r\n")),
    "a comma at the end": ("x.csv", rows(POINTS, sep=",").replace("\n", ",\n")),
    "intensity and colors of a scanner": ("x.pts", "150\n" + rows(POINTS, -GRAY, GRAY, GRAY, GRAY)),
    "COLMAP": (
        "points3D.txt",
        "# 3D point list\n#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]\n"
        + "".join(f"{i + 7} {x} {y} {z} 1 2 3 0.5" + " 4 5" * (i % 4) + "\n" for i, (x, y, z) in enumerate(POINTS)),
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_points_come_out_of_any_table_without_findings(tmp_path: Path, case: str) -> None:
    name, content = WRITTEN[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    scan = read_scan(tmp_path / name, unit=0.001 if "thousands" in case else 1.0)
    np.testing.assert_allclose(scan.points, POINTS, atol=1e-6)
    assert scan.normals is None
    assert scan.findings == ()


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ((POINTS, NORMALS), ""),
        ((POINTS, 0.01 * NORMALS), ""),
        ((POINTS, NORMALS), "//X Y Z Nx Ny Nz\n"),
        ((POINTS, COLORS, NORMALS), "x y z r g b nx ny nz\n"),
        ((POINTS, GRAY, NORMALS), "X Y Z I Normals:0 Normals:1 Normals:2\n"),
    ],
)
def test_normals_are_columns_of_one_length_or_of_their_names(
    tmp_path: Path, columns: tuple[np.ndarray, ...], names: str
) -> None:
    (tmp_path / "x.txt").write_text(names + rows(*columns, form="%.6f"))
    scan = read_scan(tmp_path / "x.txt")
    np.testing.assert_allclose(scan.points, POINTS, atol=1e-6)
    np.testing.assert_allclose(scan.normals, NORMALS, atol=1e-3)
    assert scan.findings == ()


@pytest.mark.parametrize(
    ("columns", "code", "ignored"),
    [
        ((POINTS, COLORS), "colors-dropped", "4, 5, 6"),
        ((POINTS, (255 * COLORS).round()), "colors-dropped", "4, 5, 6"),
        ((POINTS, np.full((150, 3), 200)), "colors-dropped", "4, 5, 6"),
        ((POINTS, COLORS, np.full(150, 255)), "colors-dropped", "4, 5, 6, 7"),
        ((POINTS, GRAY), "columns-dropped", "4"),
        ((POINTS, GRAY / 255), "columns-dropped", "4"),
        ((POINTS * (1, 1, 0.2), np.ones(150)), "columns-dropped", "4"),
        ((POINTS, NORMALS * RNG.uniform(1, 9, (150, 1))), "columns-dropped", "4, 5, 6"),
        ((POINTS, -900 + 0 * GRAY, GRAY, GRAY, GRAY), "columns-dropped", "4, 5, 6, 7"),
        ((np.arange(150), POINTS), "columns-dropped", "1"),
        ((np.arange(150) // 12, np.arange(150) % 12, POINTS + 1e-4, -GRAY), "columns-dropped", "1, 2, 6"),
        ((POINTS, NORMALS, COLORS), "colors-dropped", "7, 8, 9"),
    ],
)
def test_what_is_no_normal_is_ignored_with_a_finding(
    tmp_path: Path, columns: tuple[np.ndarray, ...], code: str, ignored: str
) -> None:
    table = np.column_stack(columns)
    np.save(tmp_path / "x.npy", table)
    (tmp_path / "x.xyz").write_text(rows(table, form="%.6f"))
    for name in ("x.npy", "x.xyz"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_allclose(scan.points[:, :2], POINTS[:, :2], atol=1e-3)
        assert (scan.normals is not None) == (ignored == "7, 8, 9")
        assert [(found.code, found.values["columns"]) for found in scan.findings] == [(code, ignored)]


@pytest.mark.parametrize("word", ["nan", "NaN", "-nan(ind)", "1.#QNAN", "-1.#IND00", "NA", "null"])
def test_rows_without_a_number_are_dropped(tmp_path: Path, word: str) -> None:
    text = "".join(f"{word} {word} {word}\n{row}\n" for row in rows(POINTS).splitlines())
    (tmp_path / "x.xyz").write_text(text)
    scan = read_scan(tmp_path / "x.xyz")
    np.testing.assert_allclose(scan.points, POINTS, atol=1e-6)
    assert [(found.code, found.values) for found in scan.findings] == [
        ("unmeasured-points-dropped", {"count": 150, "total": 300})
    ]


def test_empty_fields_are_missing_values(tmp_path: Path) -> None:
    first, *others = rows(POINTS, sep=",").replace("\n", ",arm\n").splitlines(keepends=True)
    (tmp_path / "x.csv").write_text("x,y,z,label\n" + first + ",,,\n" * 5 + "".join(others))
    scan = read_scan(tmp_path / "x.csv")
    np.testing.assert_allclose(scan.points, POINTS, atol=1e-6)
    assert scan.findings[0].values == {"count": 5, "total": 155}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x,y,z\n" + rows(POINTS, sep=",") + "1,2\n",
            r"not a valid CSV file \(row 151 of the numbers has 2 columns, the first has 3",
        ),
        ("only words\nhere\n", r"not a valid CSV file \(no row of numbers"),
        (
            "x,y,z\n" + rows(POINTS, sep=",").replace(",-0.", ",-0o"),
            r"not a valid CSV file \(row \d+, column [23] is no number: -0o\d+\)",
        ),
        ("ncols 4\nnrows 5\n1 2 3 4\n", r"a grid of heights \(ncols, nrows\) is no scan\. Export it as points"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scan(tmp_path / "x.csv")


def test_scans_of_ptx_are_placed_and_have_their_scanners(tmp_path: Path) -> None:
    turn = "0 1 0 0\n-1 0 0 0\n0 0 1 0\n5 6 7 1\n"  # images of the axes, then the position
    header = "1 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    there = "".join(f"{y} {-x} {z} 0.5\n" for x, y, z in POINTS) + "0 0 0 0.5\n" * 10
    (tmp_path / "x.ptx").write_text(
        f"10\n16\n{header}{turn}{there}" + f"10\n15\n{header}1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n{rows(POINTS)}"
    )
    scan = read_scan(tmp_path / "x.ptx")
    np.testing.assert_allclose(scan.points[:150], POINTS + np.array([5, 6, 7]), atol=1e-5)
    np.testing.assert_allclose(scan.points[150:], POINTS, atol=1e-5)
    np.testing.assert_array_equal(scan.sensors[[0, 299]], [[5, 6, 7], [0, 0, 0]])
