"""`vadis leaderboard DIR`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, check_output, say


@dataclass(frozen=True)
class Leaderboard:
    """Merge the reports under a folder into one sortable page; reports that don't compare are refused.

    vadis leaderboard results -o leaderboard.html
    """

    folder: Annotated[Positional[str], arg(metavar="DIR")]
    """Folder with reports of `vadis evaluate … -o DIR/NAME`."""
    protocol: str | None = None
    """Only reports of this protocol."""
    out: Annotated[str, arg(aliases=["-o", "--output"])] = ""
    """Page to write, by default DIR/leaderboard.html."""

    def run(self) -> None:
        folder = check_input(self.folder)
        target = check_output(self.out or folder / "leaderboard.html", (".html",))
        from vadis.evaluation.leaderboard import find_reports, markdown, merge, write_leaderboard

        reports = merge(find_reports(folder, self.protocol))
        write_leaderboard(reports, target)
        print(markdown(reports), end="")
        say(str(target))
